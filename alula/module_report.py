"""What `verify` says of a module's program: bits, cycles, and how far the integers are from torch."""

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

from alula.cross import Outcome

if TYPE_CHECKING:
    from alula.api import Case, Program


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
        "cases": rows,
    }


def float_error(program: "Program", case: "Case") -> float | None:
    """Root mean square of the golden model's distance to torch, of what the module adds, over all results.

    A result of the shape of the first input is a sum with it in residual networks: what the module adds is the
    difference. None where there is nothing to compare: no result, or no row.
    """
    got = program.outputs(case, case.values)
    first = next(iter(program.integers.graph.inputs), None)
    base = None if first is None else program.inputs_at(case.lengths)[first].numpy()
    worst = None
    for name, value in got.items():
        want = case.expected[name].astype(np.float64)
        added = want - base if base is not None and base.shape == want.shape else want
        size = np.sqrt(np.mean(added**2)) if added.size else 0.0
        if size:
            error = float(np.sqrt(np.mean((value - want) ** 2)) / size)
            worst = error if worst is None else max(worst, error)
    return worst
