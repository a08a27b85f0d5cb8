"""The timeline of one decode step of one LLaVA-1.5-7B layer on `u280`, by the cycle simulator."""

from itertools import groupby

from hw.spec.config import get
from hw.spec.isa import Unit
from hw.spec.run import Event
from sim.trace import UNIT_NAMES
from tools.pictures import STYLE

MODEL, CONFIG, BITS, KEYS = "llava-1.5-7b", "u280", "3.5", 128
WIDTH, ROW, LEFT, TOP, RIGHT = 1000, 46, 120, 60, 70
TICK_CYCLES = 10_000
NAMES = {unit: UNIT_NAMES[unit] for unit in (Unit.RD, Unit.MX, Unit.VU, Unit.LD, Unit.ST)}
COLOURS = {Unit.LD: "#4493f8", Unit.ST: "#f85149", Unit.RD: "#2da44e", Unit.MX: "#8250df", Unit.VU: "#d4731c"}
LETTER = 6.2
"""Width of a letter of a label, in pixels."""


def simulated() -> tuple[list[Event], int, dict[int, str]]:
    """Events, cycles and the operator of every instruction."""
    from alula.session import open_flow
    from alula.simulation import simulate
    from ref_model.compress import Compression

    compression = Compression.parse(BITS, "dense", "best")
    flow = open_flow(MODEL, CONFIG, layers=1, vision=False, timing_only=True, compression=compression)
    found = simulate(flow, "decode", kv=KEYS)
    return found["trace"], found["cycles"], flow.compiled.program.operators


def title(cycles: int) -> str:
    """What the picture shows; a test reads the cycles in it."""
    return (
        f"One decode step of one LLaVA-1.5-7B layer on {CONFIG}: {cycles:,} cycles, {BITS}-bit weights, {KEYS} keys "
        "(cycle simulator)"
    )


def svg(events: list[Event], cycles: int, operators: dict[int, str]) -> str:
    """One row a unit, one rectangle an instruction, operators below the matrix units' rectangles, busy shares."""
    clock = get(CONFIG).clock_hz
    scale = WIDTH / cycles
    bottom = TOP + ROW * len(NAMES)
    width, height = LEFT + WIDTH + RIGHT, bottom + 62
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-size="13" role="img">',
        f"  <title>{title(cycles)}</title>",
        f"  <style>{STYLE}  </style>",
        f'  <rect class="page" width="{width}" height="{height}"/>',
        f'  <text x="{LEFT}" y="26" font-size="15">{title(cycles)}</text>',
        f'  <text x="{LEFT + WIDTH + 8}" y="{TOP - 10}" class="small">busy</text>',
    ]
    for at in range(0, cycles + 1, TICK_CYCLES):
        x = LEFT + at * scale
        parts += [
            f'  <line class="grid" x1="{x:.1f}" y1="{TOP - 6}" x2="{x:.1f}" y2="{bottom}"/>',
            f'  <text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle" class="small">{at:,}</text>',
            f'  <text x="{x:.1f}" y="{bottom + 32}" text-anchor="middle" class="small">{at / clock * 1e6:.0f}</text>',
        ]
    parts.append(f'  <text x="4" y="{bottom + 16}" class="small">cycle</text>')
    parts.append(f'  <text x="4" y="{bottom + 32}" class="small">microseconds</text>')
    assumed = f"microseconds at an assumed clock of {clock / 1e6:.0f} MHz; "
    assumed += "busy: an instruction runs, waiting for weights included"
    parts.append(f'  <text x="{LEFT}" y="{bottom + 50}" class="small">{assumed}</text>')
    for row, (unit, name) in enumerate(NAMES.items()):
        mine = sorted(event for event in events if event.unit == unit)
        parts += _row(mine, TOP + ROW * row, name, cycles)
        if unit == Unit.MX:
            parts += _labels(mine, TOP + ROW * row, scale, operators)
    return "\n".join([*parts, "</svg>\n"])


def _row(events: list[Event], y: int, name: str, cycles: int) -> list[str]:
    scale = WIDTH / cycles
    busy = sum(event.end - event.start for event in events) / cycles
    return [
        f'  <text x="4" y="{y + 17}">{name}</text>',
        *(
            f'  <rect x="{LEFT + e.start * scale:.2f}" y="{y}" width="{max((e.end - e.start) * scale - 0.4, 0.4):.2f}" '
            f'height="24" fill="{COLOURS[e.unit]}"/>'
            for e in events
        ),
        f'  <text x="{LEFT + WIDTH + 8}" y="{y + 17}">{busy:.0%}</text>',
    ]


def _labels(events: list[Event], y: int, scale: float, operators: dict[int, str]) -> list[str]:
    """The operator of each stretch of instructions that is wide enough for its name."""
    parts = []
    for operator, group in groupby(events, lambda event: operators.get(event.tag, "")):
        stretch = list(group)
        start, end = stretch[0].start * scale, stretch[-1].end * scale
        name = operator.rsplit(".", 1)[-1]
        if name and end - start > LETTER * len(name):
            middle = LEFT + (start + end) / 2
            parts.append(f'  <text x="{middle:.1f}" y="{y + 37}" text-anchor="middle" class="small">{name}</text>')
    return parts
