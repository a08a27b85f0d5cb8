"""What tests of several folders share."""

import logging
import os
import shutil

import pytest
import torch

from compiler.pipeline import compile_model
from hw.spec import config
from ref_model.checkpoints import open_synthetic
from ref_model.quantise import quantise

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)
"""Workers of pytest share the processors: threads of their own would wait for each other."""

needs_icarus = pytest.mark.skipif(
    shutil.which("iverilog") is None, reason="Icarus Verilog is not installed: apt-get install iverilog"
)

logging.getLogger("torch.__trace").propagate = False
"""torch.export writes thousands of lines a module to it, all of which pytest would keep."""


@pytest.fixture(scope="session")
def tiny():
    """llava-tiny on `tiny`, once for a process: (compiled, quantised model)."""
    checkpoint = open_synthetic("llava-tiny")
    return compile_model(checkpoint.config, config.get("tiny")), quantise(checkpoint)
