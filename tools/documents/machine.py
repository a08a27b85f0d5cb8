"""Tables of the machine, from hw/spec."""

from dataclasses import fields as members

from hw.spec import timing
from hw.spec.cards import CARDS, HBM_CHANNELS, card_of
from hw.spec.config import CONFIGS, Config, Memory
from hw.spec.resources import Row
from tools.documents.results import table

FIELDS = {
    "units": ("matrix units, each with a memory channel of its own", "a power of two"),
    "chains": ("chains of 16 multipliers in a matrix unit", "1, 2, 4 or 8"),
    "lanes": ("int32 values that the vector unit works on in a cycle", "a multiple of 16 that divides units x 16"),
    "ob_blocks": ("operand buffer, in blocks of 16 bytes", "a power of two of at least units and 8"),
    "ab_granules": ("accumulator buffer, in granules of 64 bytes", "a multiple of lanes / 16"),
    "pb_granules": ("parameter buffer, in granules", "a multiple of lanes / 16"),
    "vb_granules": ("vector buffer, in granules", "a multiple of lanes / 16"),
    "sb_granules": ("store buffer, in granules", "a multiple of lanes / 16"),
    "rs_entries": ("row scalars of the vector unit: one number a row, such as its maximum", ""),
    "acc_rows": ("activation rows that one matrix instruction can take", ""),
    "fifo_beats": ("beats of 64 bytes that a matrix unit asks for ahead", "at least 32"),
    "imem_instructions": ("instructions of 8 bytes that the program memory holds", ""),
    "clock_hz": ("clock of the machine, in Hz: an assumption", "whole kHz, from 50 MHz to memory.clock_hz"),
    "channel_bytes": ("bytes of one memory channel", ""),
    "aux_bytes": ("bytes of the auxiliary memory", ""),
    "queue_depth": ("instructions that wait in front of each unit", ""),
}
"""Field of a configuration -> (meaning, limits)."""
MEMORY_FIELDS = {
    "kind": ("timing of the channels", "fixed or hbm"),
    "clock_hz": ("clock of the memory, in Hz", "at least the machine's"),
    "read_latency": ("memory clocks from a read's address to its first beat, ports of fixed latency", "at least 1"),
    "write_latency": ("memory clocks from a write's last beat to its response", "at least 1"),
}
BUFFERS = {
    "OB": ("ob_blocks", 16, "operand buffer: int8 activations for the matrix units"),
    "AB": ("ab_granules", 64, "accumulator buffer: sums from the matrix units"),
    "PB": ("pb_granules", 64, "parameter buffer: scales, embedding rows, RoPE tables"),
    "VB": ("vb_granules", 64, "vector buffer: int32 activations, the residual stream"),
    "SB": ("sb_granules", 64, "store buffer: what goes to memory"),
}
"""Buffer -> (field, bytes an element, meaning)."""


def _value(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def kilobytes(config: Config, buffer: str) -> int:
    """Size of a buffer in KB of 1,024 bytes."""
    field, element, _ = BUFFERS[buffer]
    return getattr(config, field) * element // 1024


def fields() -> str:
    """Every field of a configuration, what it means, what it can be, and its value in each configuration."""
    configs = list(CONFIGS.values())
    rows = []
    for member in members(Config):
        if member.name in FIELDS:
            meaning, limits = FIELDS[member.name]
            rows.append(
                [f"`{member.name}`", meaning, limits, *(_value(getattr(config, member.name)) for config in configs)]
            )
    for member in members(Memory):
        meaning, limits = MEMORY_FIELDS[member.name]
        values = (_value(getattr(config.memory, member.name)) for config in configs)
        rows.append([f"`memory.{member.name}`", meaning, limits, *values])
    return table(["field", "meaning", "can be", *(f"`{config.name}`" for config in configs)], rows)


def undescribed() -> set[str]:
    """Fields that no table describes, and descriptions of fields that are gone."""
    machine = {member.name for member in members(Config)} - {"name", "memory"}
    memory = {member.name for member in members(Memory)}
    return (machine ^ set(FIELDS)) | (memory ^ set(MEMORY_FIELDS))


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
    """The constants of hw/spec/timing.py that this document names."""
    names = (
        "SEQ_INTERVAL", "SEQ_FIRST", "SEQ_AFTER_FETCH", "LDS_RETURN", "BURST_BEATS", "ST_PIPE", "VU_LATENCY",
        "MX_ACC_LATENCY", "MX_DRAIN_LATENCY", "WEIGHT_BUFFER_ROUNDS", "SETTLE_CYCLES",
    )  # fmt: skip
    return table(["constant", "value"], [[f"`{name}`", str(getattr(timing, name))] for name in names])


def cards() -> str:
    """The cards and their totals."""
    rows = []
    for card in CARDS.values():
        config = CONFIGS[card.name]
        totals = (card.resources[kind] for kind in ("DSP48E2", "LUT", "FF", "BRAM36", "URAM"))
        channels = f"{config.units} of {HBM_CHANNELS}, {card.channel_bytes >> 20} MB each"
        rows.append(
            [
                card.name.upper(),
                f"`{config.name}`",
                str(config.units),
                str(card.slrs),
                *(f"{n:,}" for n in totals),
                channels,
                card.memory_of(config, config.aux_port),
            ]
        )
    kinds = ["DSP48E2", "LUT", "FF", "block RAM (36 Kb)", "UltraRAM"]
    columns = ["card", "configuration", "matrix units", "SLRs", *kinds, "HBM channels used", "auxiliary memory"]
    return table(columns, rows)


def budget() -> str:
    """What each card's configuration takes of it, by formula."""
    configs = [CONFIGS[name] for name in CARDS]
    found = [card_of(config).budget(config) for config in configs]
    rows = [[lines[0].unit, *(_share(row) for row in lines)] for lines in zip(*found, strict=True)]
    return table(["", *(f"`{config.name}`" for config in configs)], rows)


def _share(row: Row) -> str:
    return f"{row.used:,g} of {row.limit:,} ({row.used / row.limit:.1%})".replace("%", " %")
