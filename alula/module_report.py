"""What `verify` says of a module's program: bits, cycles, and how far the integers are from torch."""

import hashlib
from typing import Any

import numpy as np

from alula.cross import Outcome
from alula.module_case import Case, outputs
from compiler.graph import values_of
from compiler.graph.ir import ON_DEVICE, Graph
from compiler.integer.integers import Integers
from compiler.integer.interpret import real
from compiler.integer.views import tensor
from compiler.stages.program import Lowered

VIEWS = ("reshape", "permute", "slice", "expand", "append")
"""Operators that compute nothing."""


def report(name: str, lowered: Lowered, cases: list[Case], outcomes: list[Outcome], last: str) -> dict[str, Any]:
    """The JSON of `alula verify` for a module of one's own."""
    from alula.verification import summary

    errors = [float_error(lowered.integers, case) for case in cases]
    found = [error for error in errors if error is not None]
    encoded = np.array(lowered.words, np.uint64).tobytes()
    rows = [
        outcome.as_json() | {"lengths": case.lengths, "float_error": error}
        for case, outcome, error in zip(cases, outcomes, errors, strict=True)
    ]
    return summary(outcomes) | {
        "module": name,
        "config": lowered.config.name,
        "backend": last,
        "float_error": max(found) if found else None,
        "instructions": len(lowered.words),
        "program_sha256": hashlib.sha256(encoded).hexdigest(),
        "operators": operator_errors(lowered.integers, cases[-1]),
        "cases": rows,
    }


def operator_errors(integers: Integers, case: Case) -> list[dict[str, Any]]:
    """Of every operator of the graph, in order: how far its integers are from torch, relative to their own size.

    Errors add up along the way: an operator's includes those of its operands.
    """
    graph, views = integers.graph, integers.views
    names = [name for name, view in views.items() if graph.nodes[name].op not in VIEWS]
    wanted = values_of(graph, names, case.inputs, case.lengths)
    found = []
    for name in names:
        want = wanted[name].numpy().astype(np.float64)
        got = tensor(views[name], real(integers, views[name].base, case.values[views[name].base]), case.lengths)
        node = graph.nodes[name]
        error = relative_rms(got.reshape(want.shape), want) if want.size else None
        found.append({"operator": node.op, "name": name, "module": node.module, "source": node.source, "error": error})
    return found


def relative_rms(got: np.ndarray, want: np.ndarray) -> float | None:
    """Root mean square of the difference, relative to that of what is wanted; None where that is 0."""
    size = np.sqrt(np.mean(want**2))
    return float(np.sqrt(np.mean((got - want) ** 2)) / size) if size else None


def _stream(graph: Graph, name: str) -> str | None:
    """The input that a value is a sum with, over any number of sums; None if there is none."""
    node = graph.nodes[name]
    if node.op == "input":
        return name
    found = [_stream(graph, each) for each in node.inputs] if node.op == "add" and node.kind == ON_DEVICE else []
    return next((each for each in found if each is not None), None)


def float_error(integers: Integers, case: Case) -> float | None:
    """Root mean square of the golden model's distance to torch, of what the module adds, over all results.

    A residual network gives its input and something besides: what it adds is the difference. None where there is
    nothing to compare: no result, or no row.
    """
    got = outputs(integers, case.values, case.lengths)
    worst = None
    for name, value in got.items():
        want = case.expected[name].astype(np.float64)
        stream = _stream(integers.graph, name)
        added = want if stream is None else want - case.inputs[stream].numpy()
        size = np.sqrt(np.mean(added**2)) if added.size else 0.0
        if size:
            error = float(np.sqrt(np.mean((value - want) ** 2)) / size)
            worst = error if worst is None else max(worst, error)
    return worst
