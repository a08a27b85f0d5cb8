"""What `verify` says of a module's program: bits, cycles, and how far the integers are from torch."""

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

from alula.cross import Outcome
from compiler.graph import values_of
from compiler.graph.ir import ON_DEVICE, Graph
from compiler.integer.interpret import real, tensor

if TYPE_CHECKING:
    from alula.api import Case, Program

VIEWS = ("reshape", "permute", "slice", "expand", "append")
"""Operators that compute nothing."""


def report(program: "Program", cases: "list[Case]", outcomes: list[Outcome], last: str) -> dict[str, Any]:
    """The JSON of `alula verify` for a module of one's own."""
    from alula.verification import summary

    errors = [float_error(program, case) for case in cases]
    found = [error for error in errors if error is not None]
    encoded = np.array(program.words, np.uint64).tobytes()
    rows = [
        outcome.as_json() | {"lengths": case.lengths, "float_error": error}
        for case, outcome, error in zip(cases, outcomes, errors, strict=True)
    ]
    return summary(outcomes) | {
        "module": program.name,
        "config": program.config.name,
        "backend": last,
        "float_error": max(found) if found else None,
        "instructions": len(program.words),
        "program_sha256": hashlib.sha256(encoded).hexdigest(),
        "operators": operator_errors(program, cases[-1]),
        "cases": rows,
    }


def operator_errors(program: "Program", case: "Case") -> list[dict[str, Any]]:
    """Of every operator of the graph, in order: how far its integers are from torch, relative to their own size.

    Errors add up along the way: an operator's includes those of its operands.
    """
    graph, views = program.graph, program.integers.views
    names = [name for name, view in views.items() if graph.nodes[name].op not in VIEWS]
    wanted = values_of(graph, names, program.inputs_at(case.lengths), case.lengths)
    found = []
    for name in names:
        want = wanted[name].numpy().astype(np.float64)
        got = tensor(views[name], real(program.integers, views[name].base, case.values[views[name].base]), case.lengths)
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


def float_error(program: "Program", case: "Case") -> float | None:
    """Root mean square of the golden model's distance to torch, of what the module adds, over all results.

    A residual network gives its input and something besides: what it adds is the difference. None where there is
    nothing to compare: no result, or no row.
    """
    got = program.outputs(case, case.values)
    inputs = program.inputs_at(case.lengths)
    worst = None
    for name, value in got.items():
        want = case.expected[name].astype(np.float64)
        stream = _stream(program.graph, name)
        added = want if stream is None else want - inputs[stream].numpy()
        size = np.sqrt(np.mean(added**2)) if added.size else 0.0
        if size:
            error = float(np.sqrt(np.mean((value - want) ** 2)) / size)
            worst = error if worst is None else max(worst, error)
    return worst
