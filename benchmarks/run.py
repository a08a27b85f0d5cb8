"""`python -m benchmarks.run [NAME ...]`: every benchmark (or the named ones) into benchmarks/results/NAME.json."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

from alula.output import console, progress, show, table, write_atomically
from benchmarks import bits, lengths, multiplexers, perplexity, quality, simulator, sparse, synthesis, tokens, vlm

RESULTS = Path(__file__).parent / "results"
BENCHMARKS: dict[str, Callable[[], dict]] = {
    "perplexity": perplexity.measure,
    "simulator": simulator.measure,
    "sparse": sparse.measure,
    "bits": bits.measure,
    "quality": quality.measure,
    "multiplexers": multiplexers.measure,
    "tokens": tokens.measure,
    "lengths": lengths.measure,
    "vlm": vlm.measure,
    "synthesis": synthesis.measure,
}


def main(names: list[str]) -> int:
    """Exit code 1 for an unknown name."""
    if unknown := [name for name in names if name not in BENCHMARKS]:
        print(f"unknown benchmark {unknown[0]}: choose from {', '.join(BENCHMARKS)}", file=sys.stderr)
        return 1
    RESULTS.mkdir(exist_ok=True)
    for name in names or BENCHMARKS:
        with progress(name):
            result = BENCHMARKS[name]()
        write_atomically(RESULTS / f"{name}.json", json.dumps(result, indent=2) + "\n")
        rows = result.get("runs", [result])
        console.print(table(name, list(rows[0]), [[show(value) for value in row.values()] for row in rows]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
