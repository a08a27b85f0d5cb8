"""`python -m benchmarks.run [NAME ...]`: every benchmark (or the named ones) into benchmarks/results/NAME.json.

`--confirm NAME ...` is for benchmarks that take hours: it measures chosen rows of the recorded result again, and where
every figure of these comes out as it was, the result is stamped as confirmed by the sources of today.
"""

import argparse
import json
import math
import sys
from pathlib import Path
from types import ModuleType

from alula.output import console, progress, write_atomically
from benchmarks import (
    bits,
    commands,
    hbm,
    headline,
    lengths,
    modules,
    perplexity,
    quality,
    simulator,
    sparse,
    synthesis,
    tables,
    tokens,
    vlm,
)
from benchmarks.depends import KEY, stamp

RESULTS = Path(__file__).parent / "results"
BENCHMARKS: dict[str, ModuleType] = {
    module.__name__.split(".")[-1]: module
    for module in (
        headline,
        hbm,
        perplexity,
        simulator,
        sparse,
        bits,
        quality,
        tables,
        tokens,
        lengths,
        vlm,
        synthesis,
        modules,
    )
}
"""Each has `measure() -> dict` and `DEPENDS`; those that take hours have `confirm(result) -> rows` besides."""
ON_REQUEST = {"commands": commands}
"""Run only by name: it takes an hour, and runs the tests."""
SECONDS = "seconds"
"""Keys with this in them are times of this run, which differ from run to run."""


def path_of(name: str) -> Path:
    """The file of a benchmark's result."""
    return RESULTS / f"{name}.json"


def write(name: str, result: dict) -> None:
    """Stamps a result with what it depends on, and writes it."""
    text = json.dumps(result | {KEY: stamp((BENCHMARKS | ON_REQUEST)[name].DEPENDS)}, indent=2)
    write_atomically(path_of(name), text + "\n")


def confirm(name: str) -> None:
    """Stamps the recorded result, if the rows that its benchmark measures again equal those recorded."""
    result = json.loads(path_of(name).read_text())
    again = BENCHMARKS[name].confirm(result)
    for recorded, found in again:
        if not same(recorded, found):
            sys.exit(f"{name}: recorded {recorded}, measured now {found}: run `python -m benchmarks.run {name}`")
    earlier = result.get(KEY, {})
    stamped = stamp((BENCHMARKS | ON_REQUEST)[name].DEPENDS)
    stamped |= {"measured_on": earlier.get("measured_on", earlier.get("date")), "rows_confirmed": len(again)}
    write_atomically(path_of(name), json.dumps(result | {KEY: stamped}, indent=2) + "\n")


def same(recorded: object, found: object) -> bool:
    """Whether two results are the same figures: floats to six digits, times of the run left out."""
    if isinstance(recorded, dict) and isinstance(found, dict):
        keys = {key for key in recorded.keys() | found.keys() if SECONDS not in key}
        return all(key in recorded and key in found and same(recorded[key], found[key]) for key in keys)
    if isinstance(recorded, float) and isinstance(found, float):
        return math.isclose(recorded, found, rel_tol=1e-6)
    return recorded == found


def main(arguments: list[str]) -> int:
    """Exit code 1 for an unknown name."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--confirm", action="store_true", help="measure chosen rows again, and stamp the result")
    options = parser.parse_args(arguments)
    known = BENCHMARKS | ON_REQUEST
    if unknown := [name for name in options.names if name not in known]:
        print(f"unknown benchmark {unknown[0]}: choose from {', '.join(known)}", file=sys.stderr)
        return 1
    RESULTS.mkdir(exist_ok=True)
    for name in options.names or BENCHMARKS:
        with progress(name):
            if options.confirm:
                confirm(name)
                continue
            result = known[name].measure()
        write(name, result)
        console.print(f"{path_of(name).relative_to(RESULTS.parents[1])}: {len(result.get('runs', [result]))} rows")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
