"""The golden model of any module: its integer steps, one after the other, on NumPy arrays."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..ir import Length
from .steps import Array
from .views import CHANNEL, ROW, View

if TYPE_CHECKING:
    from .translate import Integers


def interpret(integers: "Integers", feed: Mapping[str, Any], lengths: Mapping[str, int]) -> dict[str, Any]:
    """Every step's value. feed: values of what comes from outside, by step name: see `compiler.integer.steps`."""
    values: dict[str, Any] = dict(feed)
    for name, step in integers.steps.items():
        if name not in values:
            values[name] = step.compute(values, lengths)
    return values


def real(integers: "Integers", name: str, value: Array) -> Array:
    """A wide value as real numbers float64[rows, channels], channels in the module's order."""
    step = integers.steps[name]
    return step.layout.restore(value) / (1 << 16) / step.mult


def tensor(view: View, rows: Array, lengths: Mapping[str, int]) -> Array:
    """The tensor that a view shows of a value's real rows."""
    shape = [int(np.prod([_count(a.size, lengths) for a in axis], initial=1)) for axis in view.axes]
    numbers = {ROW: np.full([1] * len(shape), view.row), CHANNEL: np.full([1] * len(shape), view.channel)}
    for at, axis in enumerate(view.axes):
        walks = {ROW: np.zeros(1, np.int64), CHANNEL: np.zeros(1, np.int64)}
        for atom in axis:
            steps = np.arange(_count(atom.size, lengths))
            for part, walk in walks.items():
                walks[part] = (walk[:, None] + steps * (atom.stride if part == atom.part else 0)).reshape(-1)
        for part, walk in walks.items():
            numbers[part] = numbers[part] + walk.reshape([-1 if i == at else 1 for i in range(len(shape))])
    return np.broadcast_to(rows[numbers[ROW], numbers[CHANNEL]], shape)


def _count(size, lengths: Mapping[str, int]) -> int:
    return size.at(lengths) if isinstance(size, Length) else int(size)
