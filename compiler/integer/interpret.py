"""The golden model of any module: its integer steps, one after the other, on NumPy arrays."""

from collections.abc import Mapping
from typing import Any

from .integers import Integers
from .steps import Array


def interpret(integers: Integers, feed: Mapping[str, Any], lengths: Mapping[str, int]) -> dict[str, Any]:
    """Every step's value. feed: values of what comes from outside, by step name: see `compiler.integer.steps`."""
    values: dict[str, Any] = dict(feed)
    for name, step in integers.steps.items():
        if name not in values:
            values[name] = step.compute(values, lengths)
    return values


def real(integers: Integers, name: str, value: Array) -> Array:
    """A wide value as real numbers float64[rows, channels], channels in the module's order."""
    step = integers.steps[name]
    return step.layout.restore(value) / (1 << 16) / step.mult
