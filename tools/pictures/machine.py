"""The block diagram of a configuration: units, buffers with their sizes, memories."""

from dataclasses import dataclass

from jinja2 import Environment

from hw.spec.config import MULTIPLIERS_PER_CHAIN, Config
from tools.documents.machine import kilobytes
from tools.pictures import STYLE

WIDTH, HEIGHT = 980, 620
TEMPLATE = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {{ width }} {{ height }}" font-size="13" role="img">
  <title>Block diagram of configuration {{ config.name }}</title>
  <style>{{ style }}  </style>
  <defs>
    <marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto-start-reverse">
      <path d="M0 0 L8 4 L0 8 z" class="tip"/>
    </marker>
    <marker id="purple" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">
      <path d="M0 0 L8 4 L0 8 z" class="purple"/>
    </marker>
  </defs>
  <rect class="page" width="{{ width }}" height="{{ height }}"/>
  <rect class="frame" x="206" y="12" width="762" height="596" rx="8"/>
  <text x="220" y="598" class="small">accelerator {{ config.name }}, {{ macs }} MACs a cycle</text>
{%- for wire in wires %}
  <path class="{{ wire.kind }}" d="{{ wire.path }}" {% if wire.both %}marker-start="url(#tip)" {% endif -%}
  marker-end="url(#{{ 'purple' if wire.kind == 'order' else 'tip' }})"/>
{%- endfor %}
{%- for box in boxes %}
{%- for back in range(box.stack, -1, -1) %}
  <rect class="{{ box.kind }}" x="{{ box.x + 7 * back }}" y="{{ box.y + 7 * back }}" width="{{ box.width }}" \
height="{{ box.height }}" rx="4"/>
{%- endfor %}
{%- for line in box.lines %}
  <text x="{{ box.x + box.width // 2 }}" y="{{ box.first + 16 * loop.index0 }}" text-anchor="middle"\
{% if loop.first %} font-weight="600"{% else %} class="small"{% endif %}>{{ line }}</text>
{%- endfor %}
{%- endfor %}
{%- for note in notes %}
  <text x="{{ note[0] }}" y="{{ note[1] }}" class="small">{{ note[2] }}</text>
{%- endfor %}
</svg>
"""


@dataclass(frozen=True)
class Box:
    """A rectangle with centred lines; `stack` more of it lie behind it."""

    kind: str
    x: int
    y: int
    width: int
    height: int
    lines: tuple[str, ...]
    stack: int = 0

    @property
    def first(self) -> int:
        """Baseline of the first line."""
        return self.y + self.height // 2 - 8 * (len(self.lines) - 1) + 5


@dataclass(frozen=True)
class Wire:
    """A line that ends in an arrow; `wire` carries data, `order` instructions."""

    path: str
    kind: str = "wire"
    both: bool = False


WIRES = (
    Wire("M170 63 H230"),
    Wire("M390 63 H430"),
    Wire("M170 150 H230"),
    Wire("M330 160 H370"),
    Wire("M520 160 H650 V230"),
    Wire("M170 405 H230"),
    Wire("M330 405 H370"),
    Wire("M445 355 V300"),
    Wire("M520 275 H600"),
    Wire("M730 255 H800", both=True),
    Wire("M665 320 V410"),
    Wire("M610 435 H600"),
    Wire("M730 300 H770 V435 H800"),
    Wire("M865 460 V500"),
    Wire("M800 530 H188 V172 H170"),
    Wire("M188 480 H170"),
    Wire("M580 91 V108 H280 V135", "order"),
    Wire("M345 108 V390 H330", "order"),
    Wire("M580 108 H700 V230", "order"),
    Wire("M595 108 V385 H600", "order"),
    Wire("M700 108 H955 V525 H930", "order"),
)
NOTES = (
    (718, 128, "dashed: instructions"),
    (620, 548, "results, new keys and values"),
    (455, 332, "sums"),
    (676, 372, "int8 activations"),
)


def boxes(config: Config) -> list[Box]:
    """Everything with a size."""
    size = {buffer: f"{kilobytes(config, buffer):,} KB" for buffer in ("OB", "AB", "PB", "VB", "SB")}
    memory = {"hbm": "HBM2 timing", "fixed": "fixed latency"}[config.memory.kind]
    program = f"program memory: {config.imem_instructions:,} instructions"
    scalars = f"{config.rs_entries:,} row scalars"
    chains = f"{config.chains} chains x {MULTIPLIERS_PER_CHAIN} multipliers x 2"
    return [
        Box("memory", 20, 38, 150, 50, ("host", "starts, reads counters")),
        Box("memory", 20, 115, 150, 90, ("auxiliary memory", _bytes(config.aux_bytes), "programs, tables,", "results")),
        Box(
            "memory", 14, 345, 142, 150,
            (f"{config.units} channels", f"{_bytes(config.channel_bytes)} each", memory, "weights, keys, values"),
            2,
        ),
        Box("control", 230, 38, 160, 50, ("control registers", "AXI4-Lite")),
        Box("control", 430, 35, 300, 56, ("sequencer", program)),
        Box("unit", 230, 135, 100, 50, ("load unit", "LD")),
        Box("unit", 230, 380, 100, 50, ("read unit", "RD")),
        Box("buffer", 370, 135, 150, 50, (f"PB {size['PB']}", "parameter buffer")),
        Box("buffer", 370, 250, 150, 50, (f"AB {size['AB']}", "accumulator buffer")),
        Box(
            "unit", 370, 355, 216, 140,
            (f"{config.units} matrix units (MX)", f"FIFO: {config.fifo_beats:,} beats of 64 bytes", "unpacker", chains,
             f"accumulators: {config.acc_rows} rows"),
            2,
        ),
        Box("unit", 600, 230, 130, 90, ("vector unit (VU)", f"{config.lanes} lanes", scalars)),
        Box("buffer", 800, 230, 130, 50, (f"VB {size['VB']}", "vector buffer")),
        Box("buffer", 610, 410, 130, 50, (f"OB {size['OB']}", "operand buffer")),
        Box("buffer", 800, 410, 130, 50, (f"SB {size['SB']}", "store buffer")),
        Box("unit", 800, 500, 130, 50, ("store unit", "ST")),
    ]  # fmt: skip


def _bytes(count: int) -> str:
    return f"{count >> 30} GiB" if count >= 1 << 30 else f"{count >> 20} MiB"


def svg(config: Config) -> str:
    """The picture."""
    return Environment(autoescape=True).from_string(TEMPLATE).render(
        config=config, width=WIDTH, height=HEIGHT, style=STYLE, boxes=boxes(config), wires=WIRES, notes=NOTES,
        macs=f"{config.macs_per_cycle:,}",
    ) + "\n"  # fmt: skip
