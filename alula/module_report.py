"""What `verify` says of a module's program: bits, cycles, and how far the integers are from torch."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from alula.cross import Outcome
from alula.module_case import Case, outputs
from alula.module_entry import CompiledEntry
from compiler.graph.ir import ON_DEVICE, Graph
from compiler.integer.errors import operator_errors
from compiler.integer.integers import Integers
from compiler.stages.program import Lowered


def report(
    name: str, lowered: Lowered, found: Sequence[tuple[CompiledEntry, Case, Outcome]], last: str
) -> dict[str, Any]:
    """The JSON of `alula verify` for a module of one's own. found: every case in the order in which they ran."""
    from alula.verification import summary

    outcomes = [outcome for *_, outcome in found]
    errors = [float_error(entry.integers, case) for entry, case, _ in found]
    known = [error for error in errors if error is not None]
    checked = [each for entry, case in _last_of_each(found) for each in _operators(entry, case)]
    encoded = np.array(lowered.words, np.uint64).tobytes()
    rows = [
        outcome.as_json() | {"entry": entry.name, "lengths": case.lengths, "float_error": error}
        for (entry, case, outcome), error in zip(found, errors, strict=True)
    ]
    return summary(outcomes) | {
        "module": name,
        "config": lowered.config.name,
        "backend": last,
        "float_error": max(known) if known else None,
        "instructions": len(lowered.words),
        "program_sha256": hashlib.sha256(encoded).hexdigest(),
        "entries": {entry: found.start for entry, found in lowered.entries.items()},
        "operators": checked,
        "choices": [each for each in checked if each["choices"] is not None],
        "cases": rows,
    }


def _last_of_each(found: Sequence[tuple[CompiledEntry, Case, Outcome]]) -> list[tuple[CompiledEntry, Case]]:
    """Every entry's last case that is no run of a session."""
    last = {entry.name: (entry, case) for entry, case, _ in found if not case.in_session}
    return list(last.values())


def _operators(entry: CompiledEntry, case: Case) -> list[dict[str, Any]]:
    """The errors of an entry's operators."""
    errors = operator_errors(entry.integers, case.inputs, case.lengths, case.values)
    return [asdict(error) | {"entry": entry.name} for error in errors]


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
