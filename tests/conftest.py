"""What tests of several folders share."""

import logging

import pytest

from compiler.pipeline import compile_model
from hw.spec import config
from ref_model.checkpoints import open_synthetic
from ref_model.quantise import quantise

logging.getLogger("torch.__trace").propagate = False
"""torch.export writes thousands of lines a module to it, all of which pytest would keep."""


@pytest.fixture(scope="session")
def tiny():
    """llava-tiny on `tiny`, once for a process: (compiled, quantised model)."""
    checkpoint = open_synthetic("llava-tiny")
    return compile_model(checkpoint.config, config.get("tiny")), quantise(checkpoint)
