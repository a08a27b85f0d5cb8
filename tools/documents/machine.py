"""Tables of the machine, from hw/spec."""

from hw.spec import timing
from hw.spec.cards import CARDS, card_of
from hw.spec.config import CONFIGS, MEMORY_KINDS, Config
from hw.spec.config_fields import FIELDS, MEMORY_FIELDS, Field
from hw.spec.resources import Row
from tools.documents.results import table

BUFFERS = {
    "OB": ("ob_blocks", 16, "operand buffer: int8 activations for the matrix units"),
    "AB": ("ab_granules", 64, "accumulator buffer: sums from the matrix units"),
    "PB": ("pb_granules", 64, "parameter buffer: scales, norms' weights, embedding rows, RoPE tables"),
    "VB": ("vb_granules", 64, "vector buffer: int32 activations, the residual stream"),
    "SB": ("sb_granules", 64, "store buffer: what goes to memory"),
}
"""Buffer -> (field, bytes an element, meaning)."""


def kilobytes(config: Config, buffer: str) -> int:
    """Size of a buffer in KB of 1,024 bytes."""
    field, element, _ = BUFFERS[buffer]
    return getattr(config, field) * element // 1024


def fields() -> str:
    """Every field of a configuration: what it means, in which unit and range it is, what it costs."""
    rows = [_described(name, field) for name, field in FIELDS.items()]
    kinds = " or ".join(f"`{kind}`" for kind in MEMORY_KINDS)
    rows.append(["`memory.kind`", "Timing of the channels: [the memory](../memory.md).", "word", kinds, ""])
    rows += [_described(f"memory.{name}", field) for name, field in MEMORY_FIELDS.items()]
    return table(["field", "meaning", "unit", "can be", "what it costs"], rows)


def _described(name: str, field: Field) -> list[str]:
    limits = f"{field.least:,} to {field.most:,}" + (f"; {field.rule}" if field.rule else "")
    return [f"`{name}`", field.meaning, field.unit, limits, field.costs]


def values() -> str:
    """Every field of the built-in configurations."""
    configs = list(CONFIGS.values())
    rows = [[f"`{name}`", *(f"{getattr(config, name):,}" for config in configs)] for name in FIELDS]
    rows.append(["`memory.kind`", *(config.memory.kind for config in configs)])
    rows += [
        [f"`memory.{name}`", *(f"{getattr(config.memory, name):,}" for config in configs)] for name in MEMORY_FIELDS
    ]
    return table(["field", *(f"`{config.name}`" for config in configs)], rows)


def peaks() -> str:
    """What follows from the fields."""
    rows = [
        [
            f"`{config.name}`",
            f"{config.macs_per_cycle:,}",
            f"{config.macs_per_cycle * config.clock_hz / 1e9:,.0f}",
            f"{config.peak_bytes_per_cycle * config.clock_hz / 1e9:,.1f}",
            f"{config.units * 16:,}",
            config.memory.kind,
        ]
        for config in CONFIGS.values()
    ]
    columns = ["configuration", "MACs a cycle", "10^9 MACs a second", "GB/s of the channels' ports"]
    return table([*columns, "tokens of a key slot", "memory timing"], rows)


def buffers() -> str:
    """The buffers and their sizes."""
    configs = list(CONFIGS.values())
    rows = [
        [name, meaning, *(f"{kilobytes(config, name):,}" for config in configs)]
        for name, (_, _, meaning) in BUFFERS.items()
    ]
    return table(["buffer", "holds", *(f"`{config.name}`, KB" for config in configs)], rows)


def latencies() -> str:
    """The constants of hw/spec/timing.py."""
    constants = {name: value for name, value in vars(timing).items() if name.isupper()}
    return table(["constant", "value"], [[f"`{name}`", str(value)] for name, value in constants.items()])


def cards() -> str:
    """The cards and their totals."""
    rows = []
    for card in CARDS.values():
        config = CONFIGS[card.name]
        totals = (card.resources[kind] for kind in ("DSP48E2", "LUT", "FF", "BRAM36", "URAM"))
        channels = f"{config.units} of {card.hbm_channels}, {card.channel_bytes >> 20} MiB each"
        rows.append(
            [
                card.name.upper(),
                f"`{config.name}`",
                f"{config.units} of {config.chains} chains",
                f"{card.memory_masters(config)} of {card.masters}",
                str(card.slrs),
                *(f"{n:,}" for n in totals),
                channels,
                card.memory_of(config, config.aux_port),
            ]
        )
    kinds = ["DSPs", "LUT", "FF", "block RAM (36 Kb)", "UltraRAM"]
    columns = ["card", "configuration", "matrix units", "memory ports used", "SLRs", *kinds, "HBM channels used"]
    columns.append("auxiliary memory")
    return table(columns, rows)


def budget() -> str:
    """What each card's configuration takes of it, by formula."""
    configs = [CONFIGS[name] for name in CARDS]
    found = [card_of(config).budget(config) for config in configs]
    rows = [[lines[0].unit, *(_share(row) for row in lines)] for lines in zip(*found, strict=True)]
    return table(["", *(f"`{config.name}`" for config in configs)], rows)


def _share(row: Row) -> str:
    return f"{row.used:,g} of {row.limit:,} ({row.used / row.limit:.1%})".replace("%", " %")
