"""Traces of unit instructions: as a table, and for Chrome's or Perfetto's viewer."""

import json
from collections.abc import Callable, Iterable

from hw.spec.isa import Unit
from hw.spec.run import Event

UNIT_NAMES = {
    Unit.LD: "load unit (LD)",
    Unit.ST: "store unit (ST)",
    Unit.RD: "read unit (RD)",
    Unit.MX: "matrix units (MX)",
    Unit.VU: "vector unit (VU)",
}
"""How people read the units: in traces, reports and pictures."""
Namer = Callable[[Event], str]
"""The text an event is shown with."""


def tag_name(event: Event) -> str:
    return f"{event.unit.name.lower()}@{event.tag}"


def chrome(
    events: Iterable[Event],
    clock_hz: int,
    name: Namer = tag_name,
    process: str = "alula",
    arguments: Callable[[Event], dict] = lambda _: {},
) -> str:
    """JSON for Chrome's and Perfetto's viewer: a track a unit; times in microseconds at `clock_hz`.

    An event's arguments are its pc, its first cycle, the cycle behind its last one, and what `arguments` says of it.
    """
    scale = 1e6 / clock_hz
    out: list[dict] = [{"ph": "M", "name": "process_name", "pid": 0, "args": {"name": process}}]
    out += [
        {"ph": "M", "name": "thread_name", "pid": 0, "tid": int(unit), "args": {"name": text}}
        for unit, text in UNIT_NAMES.items()
    ]
    out += [
        {
            "ph": "X",
            "name": name(e),
            "pid": 0,
            "tid": int(e.unit),
            "ts": e.start * scale,
            "dur": (e.end - e.start) * scale,
            "args": {"pc": e.tag, "first_cycle": e.start, "end_cycle": e.end, **arguments(e)},
        }
        for e in sorted(events)
    ]
    return json.dumps({"traceEvents": out, "displayTimeUnit": "ns"})


def table(events: Iterable[Event], name: Namer = tag_name):
    """A rich table, an instruction a row."""
    from rich.table import Table

    out = Table("unit", "instruction", "start", "end", "cycles")
    for e in sorted(events):
        out.add_row(e.unit.name, name(e), str(e.start), str(e.end), str(e.end - e.start))
    return out


def differences(got: Iterable[Event], expected: Iterable[Event], limit: int = 5) -> list[str]:
    """The first events in which two traces differ, one line each."""
    lines = []
    mine, its = sorted(got), sorted(expected)
    for i in range(max(len(mine), len(its))):
        a, b = (events[i] if i < len(events) else None for events in (mine, its))
        if a != b:
            lines.append(f"event {i}: got {a}, expected {b}")
        if len(lines) == limit:
            break
    return lines
