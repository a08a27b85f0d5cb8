"""Every module of the zoo is what it says: it runs at several lengths, and is the same each time."""

import inspect
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.zoo import CASES, decoders, projectors, tokens, vision
from compiler.graph.ir import DEVICE
from compiler.graph.meaning import FUNCTIONS

NAMES = sorted(CASES)
ROOT = Path(__file__).parents[2]


def run(case, inputs):
    """The outputs of a case's module as a tuple."""
    with torch.no_grad():
        out = case.make()(**inputs)
    return (out,) if isinstance(out, Tensor) else out


def test_no_name_stands_in_two_families():
    assert len(CASES) == sum(len(family.CASES) for family in (decoders, vision, projectors, tokens))


@pytest.mark.parametrize("name", NAMES)
def test_a_module_runs_and_is_the_same_each_time(name):
    case = CASES[name]
    first, second = run(case, case.inputs()), run(case, case.inputs())
    for one, other in zip(first, second, strict=True):
        assert torch.isfinite(one).all()
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if CASES[name].lengths])
def test_a_module_runs_at_its_smallest_and_its_largest_lengths(name):
    case = CASES[name]
    for end in (0, 1):
        inputs = case.inputs(**{length: values[end] for length, values in case.lengths.items()})
        for key, axes in case.dynamic.items():
            for axis, length in axes.items():
                assert inputs[key].shape[axis] == case.lengths[length][end], key
        assert all(torch.isfinite(out).all() for out in run(case, inputs))


@pytest.mark.parametrize("name", NAMES)
def test_a_case_names_the_inputs_of_its_module(name):
    case = CASES[name]
    parameters = list(inspect.signature(case.make().forward).parameters)
    assert list(case.inputs()) == parameters
    assert case.family in ("decoders", "vision", "projectors", "tokens")
    assert case.about.endswith(".")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_input_has_an_effect(name):
    """A compiler refuses an input that nothing depends on."""
    case = CASES[name]
    inputs = {key: tensor.clone().requires_grad_() for key, tensor in case.inputs().items()}
    out = case.make()(**inputs)
    total = sum(x.square().sum() for x in ((out,) if isinstance(out, Tensor) else out))
    for key, gradient in zip(inputs, torch.autograd.grad(total, list(inputs.values()), allow_unused=True), strict=True):
        assert gradient is not None and gradient.abs().sum() > 0, key


def test_the_page_about_own_modules_names_every_operator():
    page = (ROOT / "docs" / "howto" / "own-module.md").read_text()
    _, _, table = page.partition("## Operators")
    first_column = "".join(line.split("|")[1] for line in table.splitlines() if line.startswith("|"))
    assert [op for op in DEVICE if f"`{op}`" not in first_column] == []
    assert [name for name in FUNCTIONS if f"`{name}`" not in first_column] == []
