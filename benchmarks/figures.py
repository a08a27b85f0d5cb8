"""`python -m benchmarks.figures`: the timeline of a decode step on the cycle simulator as docs/img/timeline.svg."""

from pathlib import Path

from alula.output import write_atomically
from alula.session import open_flow
from alula.simulation import simulate
from hw.spec.isa import Unit
from hw.spec.run import Event
from sim.trace import UNIT_NAMES

WIDTH, ROW, LEFT, TOP = 1000, 34, 96, 46
COLOURS = {Unit.LD: "#7aa6c2", Unit.ST: "#c27a7a", Unit.RD: "#8fb573", Unit.MX: "#4a6fa5", Unit.VU: "#c2a14a"}


def svg(events: list[Event], cycles: int, title: str) -> str:
    """One row a unit, one rectangle an instruction, the share of busy cycles at the end."""
    scale = WIDTH / cycles
    height = TOP + ROW * len(Unit) + 46
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + WIDTH + 70}" height="{height}" '
        'font-family="sans-serif" font-size="13" fill="#333">',
        f'<rect width="100%" height="100%" fill="white"/><text x="{LEFT}" y="24" font-size="15">{title}</text>',
    ]
    for unit in Unit:
        y = TOP + ROW * unit
        mine = [event for event in events if event.unit == unit]
        parts.append(f'<text x="4" y="{y + 17}">{UNIT_NAMES[unit]}</text>')
        parts += [
            f'<rect x="{LEFT + e.start * scale:.2f}" y="{y}" width="{max((e.end - e.start) * scale, 0.3):.2f}" '
            f'height="{ROW - 10}" fill="{COLOURS[unit]}"/>'
            for e in mine
        ]
        busy = sum(event.end - event.start for event in mine) / cycles
        parts.append(f'<text x="{LEFT + WIDTH + 8}" y="{y + 17}">{busy:.0%}</text>')
    bottom = TOP + ROW * len(Unit)
    parts += [
        f'<text x="{LEFT + WIDTH * n // 4}" y="{bottom + 18}" text-anchor="middle">{cycles * n // 4:,}</text>'
        for n in range(5)
    ]
    parts.append(f'<text x="{LEFT + WIDTH // 2}" y="{bottom + 38}" text-anchor="middle">cycle</text>')
    return "\n".join([*parts, "</svg>\n"])


def main() -> None:
    """A decode step of one LLaVA-1.5-7B layer would drown in rectangles: llava-tiny shows the same structure."""
    flow = open_flow("llava-tiny", "tiny", vision=False)
    result = simulate(flow, "decode", kv=64)
    folder = Path(__file__).parents[1] / "docs" / "img"
    folder.mkdir(exist_ok=True)
    title = f"llava-tiny on tiny: one decode step at 64 keys, {result['cycles']:,} cycles, and each unit's busy share"
    write_atomically(folder / "timeline.svg", svg(result["trace"], result["cycles"], title))


if __name__ == "__main__":
    main()
