"""Every one of these modules compiles to what it means, or is refused with the reason: none crashes, none is taken for
something else."""

import pytest
import torch

from compiler.pipeline import compile_model
from hw.spec import config
from hw.spec.errors import UserError
from ref_model.config import named_config
from tests.compiler.modules_decoder import DECODERS
from tests.compiler.modules_projector import PROJECTORS
from tests.compiler.modules_vision import VISION_PARTS

CASES = DECODERS | VISION_PARTS | PROJECTORS


def compiled(case):
    with torch.device("meta"):
        part = case.build()
    return compile_model(named_config("llava-tiny"), config.get("tiny"), replaced={case.part: part})


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.refusal])
def test_a_module_that_kernels_know_compiles(name):
    """The verifier, which runs in it, compares every value with the module's own."""
    assert compiled(CASES[name]).program.words


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.refusal])
def test_any_other_module_is_refused_with_the_reason(name):
    with pytest.raises(UserError, match=CASES[name].refusal) as refusal:
        compiled(CASES[name])
    assert "\n" not in str(refusal.value)
