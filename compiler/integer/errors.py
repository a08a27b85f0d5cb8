"""The check of the integer level: every operator's integers against what the operator means.

An operator's *own* error is the distance to what its meaning gives for the very integers of its operands. It is
rounding, about a hundredth; anything more, and the integers are those of another operator. Errors from torch add up
along the way, and are only reported.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from hw.spec.errors import InternalError

from ..graph.ir import Node, Ref
from ..graph.meaning import argmax, node_value, route, values_of
from .integers import Integers
from .interpret import real
from .views import tensor

VIEWS = ("reshape", "permute", "slice", "expand", "append")
"""Operators that compute nothing."""
OWN_LIMIT = 0.1
"""The largest own error that is taken for rounding."""


@dataclass(frozen=True)
class OperatorError:
    """error: from torch; own: from the meaning for its own operands. Both relative to the root mean square of what is
    wanted; None where that is 0."""

    operator: str
    name: str
    module: str
    source: str
    error: float | None
    own: float | None
    choices: int | None = None
    """Of a router, an argmax or a top-k: the choices it makes; None for other operators."""
    changed: int | None = None
    """How many of these are not torch's: where two values lie close together, rounding decides."""


def operator_errors(
    integers: Integers, inputs: Mapping[str, Tensor], lengths: Mapping[str, int], values: Mapping[str, Any]
) -> list[OperatorError]:
    """Of every operator that computes something, in order. InternalError where an own error is more than rounding.

    values: those of `interpret`.
    """
    graph = integers.graph
    wanted = values_of(graph, list(graph.nodes), inputs, lengths)
    reals = _Reals(integers, values, lengths, wanted)
    found = []
    for name in integers.views:
        node = graph.nodes[name]
        if node.op in VIEWS:
            continue
        operands = {each: reals[each] for each in node.inputs}
        meant = node_value(graph, node, operands, lengths, torch.float64)
        error, own = (relative_rms(reals[name].numpy(), want.numpy()) for want in (wanted[name], meant))
        if own is not None and own > OWN_LIMIT:
            raise InternalError(
                f"module {node.module}: the integers of {node.op} {name} differ by {own:.1%} from what it means"
            )
        made = _choices(node, operands), _choices(node, {each: wanted[each] for each in node.inputs})
        choices, changed = (None, None) if made[0] is None or made[1] is None else _changed(made[0], made[1])
        found.append(OperatorError(node.op, name, node.module, node.source, error, own, choices, changed))
    return found


def _choices(node: Node, operands: Mapping[str, Tensor]) -> Tensor | None:
    """What an operator chooses, bool[choices, places]; None where it chooses nothing."""
    value = {name: operands[ref.name].double() for name, ref in node.arguments.items() if isinstance(ref, Ref)}
    match node.op:
        case "route":
            return (route(value["x"], node.arguments["k"]) != 0).flatten(0, -2)
        case "argmax":
            return functional.one_hot(argmax(value["x"]), value["x"].shape[-1]).bool().flatten(0, -2)
        case "select_rows":
            scores = value["scores"].flatten()
            order = torch.sort(scores, descending=True, stable=True).indices[: node.arguments["k"]]
            return torch.zeros(len(scores), dtype=torch.bool).index_fill(0, order, True)[:, None]
    return None


def _changed(ours: Tensor, torchs: Tensor) -> tuple[int, int]:
    """(choices, those that differ). A top-k makes as many as it keeps rows, others one a row."""
    if ours.shape[-1] == 1:
        return int(torchs.sum()), int((torchs & ~ours).sum())
    return len(torchs), int((ours != torchs).any(-1).sum())


class _Reals(dict):
    """The real values that integers stand for, by node; torch's of what the host brings."""

    def __init__(self, integers: Integers, values: Mapping[str, Any], lengths: Mapping[str, int], wanted) -> None:
        super().__init__()
        self.integers, self.values_of, self.lengths, self.wanted = integers, values, lengths, wanted

    def __missing__(self, name: str) -> Tensor:
        node, view = self.integers.graph.nodes[name], self.integers.views.get(name)
        if node.op == "append":
            past, new = (self[node.arguments[each].name] for each in ("past", "new"))
            found = torch.cat((past, new), node.arguments["axis"])
        elif view is None:
            found = self.wanted[name]
            found = found.double() if found.is_floating_point() else found
        else:
            rows = real(self.integers, view.base, self.values_of[view.base])
            found = torch.from_numpy(tensor(view, rows, self.lengths).astype(np.float64))
            found = found.reshape(self.wanted[name].shape)
        self[name] = found
        return found


def relative_rms(got: np.ndarray, want: np.ndarray) -> float | None:
    """Root mean square of the difference, relative to that of what is wanted; None where that is 0."""
    if not want.size:
        return None
    got, want = got.astype(np.float64), want.astype(np.float64)
    size = np.sqrt(np.mean(want**2))
    return float(np.sqrt(np.mean((got - want) ** 2)) / size) if size else None
