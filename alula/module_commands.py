"""compile, simulate and verify of a module of one's own: what the commands do when they are given FILE.py:NAME."""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from alula import api
from alula.module_entry import ONLY
from alula.module_source import read_source
from alula.output import console, duration, percent, size, table
from alula.summary import MEMORIES
from hw.spec.config import BEAT_BYTES, Config
from hw.spec.errors import UserError
from hw.spec.memory import MemoryModel
from hw.spec.run import Event
from sim.trace import chrome

EXECUTORS = {
    "functional": "functional simulator",
    "cycle": "functional and cycle simulator",
    "rtl": "functional and cycle simulator, RTL",
}


def open_module(text: str, machine: Config, seed: int) -> api.Program:
    """The program of FILE.py:NAME."""
    source = read_source(text, seed)
    program = api.compile(source.module, config=machine, entries=source.entries)
    program.name = source.name
    return program


@dataclass(frozen=True)
class Asked:
    """Which runs are meant: --entry and --length."""

    entry: str | None
    lengths: dict[str, list[int]]

    @classmethod
    def of(cls, texts: Iterable[str] | None, entry: str | None) -> "Asked":
        """["seq=1,37", "cache=0"] -> lengths by symbol; UserError for other texts."""
        found: dict[str, list[int]] = {}
        for text in texts or ():
            name, equals, values = text.partition("=")
            if not equals or not all(value.strip().isdecimal() for value in values.split(",")):
                raise UserError(f"--length is {text!r}: give a symbol and its values, as seq=37 or seq=1,2,37")
            found[name.strip()] = [int(value) for value in values.split(",")]
        return cls(entry, found)

    def single(self) -> dict[str, int]:
        """One value for every length; UserError for several."""
        if many := [name for name, values in self.lengths.items() if len(values) != 1]:
            raise UserError(f"--length {many[0]} has several values, a simulation has one: use verify for several")
        return {name: values[0] for name, values in self.lengths.items()}


def verify(program: api.Program, last: str, asked: Asked, memory: MemoryModel) -> dict:
    """The JSON of `alula verify FILE.py:NAME`."""
    began = time.monotonic()
    result = program.verify(last, memory, asked.entry, **asked.lengths)
    return result | {"wall_seconds": time.monotonic() - began}


def show_verified(result: dict, full: bool) -> None:
    """A line about every case; full: one about every operator, too."""
    exact = {True: "yes", False: "NO", None: "-"}
    rows = [
        [
            case["name"],
            case["compared_bytes"],
            exact[case["bit_exact"]],
            case["cycles_simulated"],
            exact[case["cycle_exact"]],
            _share(case["float_error"]),
        ]
        for case in result["cases"]
    ]
    cases = f"{len(rows)} case{'s' * (len(rows) != 1)}"
    console.print(f"{result['module']} on {result['config']}: {cases}, {result['instructions']:,} instructions")
    console.print(f"  executors    golden model, {EXECUTORS[result['backend']]}")
    heads = ["case", "bytes\ncompared", "bit-\nexact", "cycles", "cycle-\nexact", "error\nto torch"]
    console.print(table("", heads, rows))
    several = len(result["entries"]) > 1
    for choice in result["choices"]:
        part = f"{choice['changed']:,} of {choice['choices']:,} are not torch's"
        place = f"{choice['module']} ({choice['operator']})" + (f", {choice['entry']}" if several else "")
        console.print(f"  choices      {part} in {place}", markup=False)
    if full:
        heads = ["value", "operator", "module", "error\nto torch", "own\nerror"]
        operators = [
            [o["name"], o["operator"], o["module"], _share(o["error"]), _share(o["own"])] for o in result["operators"]
        ]
        if several:
            heads = ["entry", *heads]
            operators = [[o["entry"], *row] for o, row in zip(result["operators"], operators, strict=True)]
        console.print(table("", heads, operators))
    for reason in result["left_out"]:
        console.print(f"  left out     {reason}", markup=False)
    console.print(f"  took         {duration(result['wall_seconds'])}")


def _share(error: float | None) -> str:
    return "-" if error is None else percent(error)


def simulate(program: api.Program, asked: Asked, memory: MemoryModel) -> dict:
    """The JSON of `alula simulate FILE.py:NAME`."""
    began = time.monotonic()
    chosen, found = asked.single(), program.entry(asked.entry)
    result = program.simulate(memory, found.name, **chosen)
    assert result.cycles is not None
    seconds = result.cycles / program.config.clock_hz
    return {
        "module": program.name,
        "config": program.config.name,
        "entry": found.name,
        "lengths": found.check_lengths(chosen),
        "cycles": result.cycles,
        "seconds": seconds,
        "clock_hz": program.config.clock_hz,
        "instructions": len(program.words),
        **memory.report(),
        "counters": result.counters,
        "trace": result.trace,
        "wall_seconds": time.monotonic() - began,
    }


def show_simulated(result: dict) -> None:
    lengths = ", ".join(f"{name} {value:,}" for name, value in result["lengths"].items()) or "fixed lengths"
    counters = result["counters"]
    channels = counters["read_beats_weights"] + counters["read_beats_kv"] if "read_beats_weights" in counters else None
    lines = [
        ("machine", f"{result['config']}, {MEMORIES[result['memory']]}"),
        (
            "time",
            f"{result['cycles']:,} cycles, {duration(result['seconds'])} at {result['clock_hz'] / 1e6:g} MHz (assumed)",
        ),
        ("program", f"{result['instructions']:,} instructions"),
    ]
    if channels is not None:
        lines.append(("channels", f"{size(channels * BEAT_BYTES)} read"))
    called = "" if result["entry"] == ONLY else f".{result['entry']}"
    console.print(f"{result['module']}{called}: {lengths}")
    for subject, text in lines:
        console.print(f"  {subject:<11}  {text}", markup=False)


def trace_json(program: api.Program, events: list[Event]) -> str:
    """A trace for Chrome's and Perfetto's viewer; events have the names of the module's operators."""
    names = program.lowered.operators
    title = f"{program.name} on {program.config.name}"
    return chrome(events, program.config.clock_hz, lambda event: names.get(event.tag, "program"), title)


def compile_to(program: api.Program, out: Path) -> dict:
    """The JSON of `alula compile FILE.py:NAME -o FILE`."""
    manifest = program.save(out)
    return manifest | {"file": str(out), "file_bytes": out.stat().st_size}


def show_compiled(result: dict) -> None:
    console.print(f"{result['model']} for {result['config']}")
    entries = ", ".join(f"{name} at {entry['entry']:,}" for name, entry in result["entries"].items())
    lines = [
        ("program", f"{result['instructions']:,} instructions, SHA-256 {result['program_sha256'][:12]}.."),
        *([("entries", entries)] if len(result["entries"]) > 1 else []),
        ("weights", f"{size(result['weight_bytes'])} in the channels"),
        ("file", f"{result['file']}, {size(result['file_bytes'])}"),
    ]
    for subject, text in lines:
        console.print(f"  {subject:<11}  {text}", markup=False)
