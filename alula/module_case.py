"""One run of a module's program: its inputs, the golden model's values, and what torch gives."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from compiler.integer.integers import Integers
from compiler.integer.interpret import real
from compiler.integer.views import tensor

Array = np.ndarray


@dataclass
class Case:
    """feed, values: integers by step, of what is brought and of everything. expected: torch's results by name. label:
    what stands in front of its name. in_session: it began with what runs before had left."""

    lengths: dict[str, int]
    inputs: dict[str, Tensor]
    feed: dict[str, Any]
    values: dict[str, Any]
    expected: dict[str, Array]
    label: str = ""
    in_session: bool = False

    @property
    def name(self) -> str:
        lengths = ", ".join(f"{name} {value}" for name, value in self.lengths.items()) or "fixed lengths"
        return f"{self.label}: {lengths}" if self.label else lengths


def outputs(integers: Integers, values: Mapping[str, Any], lengths: Mapping[str, int]) -> dict[str, Array]:
    """Results as real numbers, in the shapes of the module's; state is not among them."""
    return {
        name: tensor(view, real(integers, view.base, values[view.base]), lengths)
        for name, view in integers.results.items()
    }
