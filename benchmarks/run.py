"""`python -m benchmarks.run [NAME ...]`: every benchmark (or the named ones) into benchmarks/results/NAME.json."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

from alula.output import console, progress, show, table, write_atomically
from benchmarks import (
    bits,
    commands,
    hbm,
    headline,
    lengths,
    ltp,
    multiplexers,
    perplexity,
    quality,
    simulator,
    sparse,
    tokens,
    vlm,
)

RESULTS = Path(__file__).parent / "results"
ON_REQUEST: dict[str, Callable[[], dict]] = {"commands": commands.measure}
"""Run only by name: it takes an hour, and runs the tests."""
BENCHMARKS: dict[str, Callable[[], dict]] = {
    "headline": headline.measure,
    "hbm": hbm.measure,
    "perplexity": perplexity.measure,
    "simulator": simulator.measure,
    "sparse": sparse.measure,
    "bits": bits.measure,
    "quality": quality.measure,
    "multiplexers": multiplexers.measure,
    "tokens": tokens.measure,
    "lengths": lengths.measure,
    "vlm": vlm.measure,
    "ltp": ltp.measure,
}


def main(names: list[str]) -> int:
    """Exit code 1 for an unknown name."""
    known = BENCHMARKS | ON_REQUEST
    if unknown := [name for name in names if name not in known]:
        print(f"unknown benchmark {unknown[0]}: choose from {', '.join(known)}", file=sys.stderr)
        return 1
    RESULTS.mkdir(exist_ok=True)
    for name in names or BENCHMARKS:
        with progress(name):
            result = known[name]()
        write_atomically(RESULTS / f"{name}.json", json.dumps(result, indent=2) + "\n")
        rows = result.get("runs", [result])
        console.print(table(name, list(rows[0]), [[show(value) for value in row.values()] for row in rows]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
