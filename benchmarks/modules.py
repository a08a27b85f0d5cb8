"""Modules of one mechanism each, compiled for `tiny` and run on every executor: `benchmarks.zoo`, from graph to RTL."""

import alula
from benchmarks.depends import TIMING
from benchmarks.zoo import CASES, Case
from hw.spec.errors import UserError

CONFIG = "tiny"
DEPENDS = (
    *TIMING,
    f"machine:{CONFIG}",
    "benchmarks/zoo/*.py",
    "compiler/graph/**/*.py",
    "compiler/integer/**/*.py",
    "compiler/stages/*.py",
    "compiler/stream.py",
    "hw/spec/attention.py",
    "hw/spec/numerics.py",
    "hw/spec/rows.py",
    "hw/spec/vector.py",
)


def measure() -> dict:
    """One entry a module: what it agreed in, or why it is refused."""
    runs = [one(name, case) for name, case in CASES.items()]
    compiled = [run for run in runs if run["compiled"]]
    return {
        "config": CONFIG,
        "modules": len(runs),
        "compiled": len(compiled),
        "bit_exact": sum(run["bit_exact"] for run in compiled),
        "cycle_exact": sum(run["cycle_exact"] for run in compiled),
        "runs": runs,
    }


def one(name: str, case: Case) -> dict:
    """At the least lengths and at those of the example inputs."""
    run = {"name": name, "family": case.family, "about": case.about, "router": case.router}
    try:
        program = alula.compile(case.make(), case.inputs(), case.dynamic, case.lengths, CONFIG)
    except UserError as refusal:
        return run | {"compiled": False, "refusal": str(refusal)}
    found = program.verify("rtl")
    keys = (
        "bit_exact",
        "cycle_exact",
        "float_error",
        "compared_bytes",
        "cycles_simulated",
        "cycles_rtl",
        "instructions",
    )
    cases = [{"lengths": each["lengths"], "cycles": each["cycles_rtl"]} for each in found["cases"]]
    return run | {"compiled": True} | {key: found[key] for key in keys} | {"cases": cases}
