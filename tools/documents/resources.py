"""What Yosys counts of a configuration, by unit: benchmarks/results/synthesis.json."""

from tools.documents import results
from tools.documents.results import figure, table

NAME = "synthesis"
KINDS = ("LUT", "LUTRAM", "FF", "BRAM36", "URAM", "DSP48E2")


def table_of(found: dict) -> str:
    """One row a unit, in the order of the file."""
    runs = found["runs"]
    kinds = [kind for kind in KINDS if any(kind in run for run in runs)]
    rows = [[run["unit"], *(f"{run.get(kind, 0):,g}" for kind in kinds)] for run in runs]
    return table(["unit", *kinds], rows)


def synthesis() -> str:
    """The table, or a line that says that nothing has been counted yet."""
    if not results.exists(NAME):
        return f"`benchmarks/results/{NAME}.json` has not been written: run `python -m benchmarks.run {NAME}`."
    return figure(NAME)(table_of)()
