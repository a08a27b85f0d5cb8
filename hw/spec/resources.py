"""What a configuration takes of a card: memories, DSPs, wires between dies. Standard library only.

`alula info --synth yosys` counts memories and DSPs in the netlist and compares. Yosys may need fewer UltraRAMs: it puts
words into the bits that narrow columns leave over. Logic is not here.
"""

from dataclasses import dataclass, replace
from enum import Enum

from .config import BEAT_BYTES, BLOCK, GRANULE_LANES, Config, ConfigError
from .isa import FIELDS, Unit

LANE_DSPS = 14
"""Multipliers of one vector lane after Yosys has cut them into 27 x 18 bits."""
FINALISER_DSPS = 3
SEQUENCER_DSPS = 3
"""The scalar MUL, 32 x 32 bits."""
STORE_DSPS = 3
"""Address strides of the store unit."""
MAX_DSPS, MAX_CHAIN_DSPS = 6500, 6144
"""FlightLLM's U280 has 6,345: more would compare what is not alike. A card with fewer is the limit before."""

MAX_LUT_LEVELS = 8
"""LUTs on a path, carry cells apart. At 225 MHz a LUT and the net behind it may take 0.5 ns each time."""
MAX_FANOUT = 256
"""Loads of a net but the clock: more of them do not lie beside each other."""
MAX_PACKED_SHARE, MAX_SLR_SHARE = 0.62, 0.75
"""Of the platform's LUTs and of those of its fullest die (`hw.packing`): a design rule, not the vendor's. Fuller dies
rarely meet 225 MHz."""
NETLIST_BOUNDS: dict[str, float] = {
    "lut_levels_whole": MAX_LUT_LEVELS,
    "largest_fanout": MAX_FANOUT,
    "unregistered_crossings": 0,
    "payload_resets": 0,
    "packed_share": MAX_PACKED_SHARE,
    "slr_share": MAX_SLR_SHARE,
    "wires_share": 1.0,
}
"""Figures of a mapped netlist that say whether it can be placed (`hw.netlist_check`), and what they must not exceed."""
PAYLOAD_BITS = 16
"""From this width on a register with a reset counts as payload: control state is narrower."""


class Store(Enum):
    """A kind of memory; the value is what synthesis tools call it (`ram_style`)."""

    ULTRA = "ultra"
    BLOCK = "block"


KIND = {Store.ULTRA: "URAM", Store.BLOCK: "BRAM36"}
"""Rows of the card's table."""
UNIT = {Store.ULTRA: "UltraRAMs", Store.BLOCK: "block RAMs of 36 Kb"}
COLUMN_BITS = 72
"""Data width of a RAMB36E2 and of a URAM288 with one port to write and one to read."""
BYTE_BITS = 9
"""What a URAM288 can write singly."""
ULTRA_WORDS = 4096
HALF_BLOCK_SHAPES = ((36, 512), (18, 1024), (9, 2048), (4, 4096), (2, 8192), (1, 16384))
"""(bits, words) of a RAMB18E2."""


@dataclass(frozen=True)
class Column:
    """The bits of a memory's words that lie in one primitive's width: `parts`: (part, bits), from the lowest bit on."""

    parts: tuple[tuple[int, int], ...]

    @property
    def bits(self) -> int:
        return sum(bits for _, bits in self.parts)


def columns(bits: int, parts: int, store: Store) -> list[Column]:
    """How the words of a memory are cut into columns.

    Block RAM: each within a part, full ones and a rest, which takes less. UltraRAM of one part: equal ones (synthesis
    tools differ in how they pack a narrow rest). UltraRAM of several parts: a part is whole bytes of nine bits, which
    a URAM288 can write singly, so that a column may hold the end of one part and the beginning of the next:

        2,048 bits in 4 parts of 512: 57 bytes a part (the last byte one bit short), 228 bytes, 29 columns of 8 bytes
    """
    part = bits // parts
    if store is Store.BLOCK:
        return [
            Column(((number, min(COLUMN_BITS, part - at)),))
            for number in range(parts)
            for at in range(0, part, COLUMN_BITS)
        ]
    if parts == 1:
        count = -(-part // COLUMN_BITS)
        return [Column(((0, part // count + (number < part % count)),)) for number in range(count)]
    every = [(number, min(BYTE_BITS, part - at)) for number in range(parts) for at in range(0, part, BYTE_BITS)]
    each = COLUMN_BITS // BYTE_BITS
    return [Column(tuple(every[at : at + each])) for at in range(0, len(every), each)]


@dataclass(frozen=True)
class Memory:
    """`count` equal memories; a word is `bits`, written by `parts`."""

    name: str
    bits: int
    words: int
    store: Store
    parts: int = 1
    count: int = 1

    @property
    def primitives(self) -> float:
        """UltraRAMs or block RAMs of 36 Kb."""
        return self.count * sum(self._column(each.bits) for each in columns(self.bits, self.parts, self.store))

    def _column(self, bits: int) -> float:
        if self.store is Store.ULTRA:
            return -(-self.words // ULTRA_WORDS)
        return min(-(-bits // width) * -(-self.words // depth) for width, depth in HALF_BLOCK_SHAPES) / 2


def store_of(words: int) -> Store:
    """UltraRAM for what fills at least half of one."""
    return Store.ULTRA if 2 * words >= ULTRA_WORDS else Store.BLOCK


BEAT_TAG_BITS = 2
ROW_SCALAR_BITS, ROW_SCALAR_READS = 64, 2
TABLE_BITS, TABLE_WORDS = 32, 1024
"""A vector lane's table of the gates and of the exponential."""
INSTRUCTION_BITS = 64


def buffer(config: Config, name: str) -> Memory:
    """The memory behind AB, PB, VB, SB or OB (there: one of its banks)."""
    if name == "OB":
        words = config.ob_blocks // config.ob_banks
        return Memory(name, 8 * BLOCK, words, store_of(words), count=config.ob_banks)
    words = getattr(config, f"{name.lower()}_granules") // config.granules_per_word
    parts = config.granules_per_word if name in ("AB", "PB") else 1
    return Memory(name, 32 * config.lanes, words, store_of(words), parts)


def memories(config: Config) -> list[Memory]:
    """Everything in block RAM and UltraRAM. Queues, tags and rounds of weights are in LUTs."""
    beat = 8 * BEAT_BYTES
    return [
        *(buffer(config, name) for name in ("AB", "PB", "VB", "SB", "OB")),
        Memory("row scalars", ROW_SCALAR_BITS, config.rs_entries, Store.BLOCK, count=ROW_SCALAR_READS),
        Memory("program", beat, config.imem_instructions * INSTRUCTION_BITS // beat, Store.BLOCK),
        Memory("tables", TABLE_BITS, TABLE_WORDS, Store.BLOCK, count=config.lanes),
        fifo(config),
        accumulators(config),
    ]


def fifo(config: Config) -> Memory:
    """The weight FIFOs of the matrix units."""
    return Memory(
        "weight FIFOs",
        8 * BEAT_BYTES + BEAT_TAG_BITS,
        config.fifo_beats,
        store_of(config.fifo_beats),
        count=config.units,
    )


def accumulators(config: Config) -> Memory:
    """Of each matrix unit: two steps' rows, in a copy for sums and one for drains."""
    return Memory("accumulators", 32 * GRANULE_LANES, 2 * config.acc_rows, Store.BLOCK, config.passes, 2 * config.units)


def accumulator_dsps(config: Config) -> int:
    """One for each sum of a step: two a chain."""
    return 2 * config.chains * config.units


def dsp_total(config: Config) -> int:
    """Chains and accumulators (instantiated), and the multipliers that synthesis infers around them."""
    return (
        config.chain_dsps
        + accumulator_dsps(config)
        + LANE_DSPS * config.lanes
        + FINALISER_DSPS
        + SEQUENCER_DSPS
        + STORE_DSPS
    )


# --- wires between dies ----------------------------------------------------------------------------------

READ_CHANNEL_WIRES = 64 + 8 + 2 + 8 * BEAT_BYTES + 2 + 1 + 2
"""AR: address, length, handshake; R: data, response, last, handshake."""
WRITE_SHARED_WIRES, WRITE_PORT_WIRES = 64 + 8 * BEAT_BYTES + BEAT_BYTES, 4 + 2 + 2
"""Address, data and strobes are one register for all ports; handshakes and responses each port's."""
ROUND_WIRES = 16
"""What a unit says of its next round, its errors and counters."""
SHARED_STEP_WIRES = 64
"""Steps, drains, takes, stops, to all units."""
WINDOW_BLOCKS = 8


def crossing_wires(floorplan: dict[int, list[int]], core: int, noc: bool = False) -> list[int]:
    """Nets over each boundary (between dies i and i + 1) with the HBM on die 0 and all but the matrix units on `core`.

    noc: every unit's port leads into a network on chip on its own die. Then read data crosses no boundary in wires, and
    ST's writes cross to the units beyond.

    A net is counted once however many units beyond the boundary it reaches. A core that spills over its die, as large
    buffers do, crosses more: that is for the placer.
    """
    block, row = 8 * BLOCK, 32 * GRANULE_LANES
    descriptor = 32 * len(FIELDS[Unit.RD])
    n_units = sum(map(len, floorplan.values()))
    wires = []
    for boundary in range(len(floorplan) - 1):
        above = sum(len(units) for die, units in floorplan.items() if die > boundary)
        beyond = above if core <= boundary else n_units - above  # units on the other side than the core
        crossed = 0 if noc else READ_CHANNEL_WIRES * above  # from the HBM
        if beyond:
            crossed += beyond * (row + block + ROUND_WIRES)
            crossed += SHARED_STEP_WIRES + descriptor + (WINDOW_BLOCKS - 1) * block
        if noc and beyond:
            crossed += WRITE_SHARED_WIRES + WRITE_PORT_WIRES * beyond
        elif core > boundary:  # the core's own masters: auxiliary reads, and ST's writes to every port
            crossed += READ_CHANNEL_WIRES + WRITE_SHARED_WIRES + WRITE_PORT_WIRES * (n_units + 1)
        wires.append(crossed)
    return wires


# --- the budget ------------------------------------------------------------------------------------------

CROSSING = "SLR crossing"


@dataclass(frozen=True)
class Row:
    """One line of the budget: `used` of `limit` `unit`; `parts` of it, by name."""

    kind: str
    used: float
    limit: int
    unit: str
    parts: dict[str, float]
    platform_limit: int | None = None
    """What the platform leaves to the user, where that is known."""
    platform_share: float | None = None


def budget(
    config: Config,
    limits: dict[str, int],
    floorplan: dict[int, list[int]],
    core: int,
    crossing_limit: int,
    noc: bool = False,
) -> list[Row]:
    """limits: a card's totals; floorplan: die -> matrix units; core: the die of all else; crossing_limit: wires over a
    boundary of two dies; noc: as `crossing_wires` has it."""
    parts = {store: {m.name: m.primitives for m in memories(config) if m.store is store} for store in Store}
    rest: dict[str, float] = {
        "accumulators": accumulator_dsps(config),
        "vector lanes": LANE_DSPS * config.lanes,
        "finaliser": FINALISER_DSPS,
        "sequencer": SEQUENCER_DSPS,
        "store": STORE_DSPS,
    }
    chains: dict[str, float] = {"chains": config.chain_dsps}
    dsps = limits["DSP48E2"]
    rows = [
        *(Row(KIND[store], sum(of.values()), limits[KIND[store]], UNIT[store], of) for store, of in parts.items()),
        Row("DSP48E2", dsp_total(config), min(MAX_DSPS, dsps), "DSPs", chains | rest),
        Row("chain DSP48E2", config.chain_dsps, min(MAX_CHAIN_DSPS, dsps), "DSPs in chains", chains),
    ]
    if len(floorplan) > 1:
        wires = crossing_wires(floorplan, core, noc)
        names = {f"SLR{i} to SLR{i + 1}": float(n) for i, n in enumerate(wires)}
        rows.append(Row(CROSSING, max(wires), crossing_limit, f"wires between two dies (core on SLR{core})", names))
    return rows


def with_platform(row: Row, resources: dict[str, int], crossings: tuple[int, ...]) -> Row:
    """A row with its share of what a platform leaves; of wires, those of the boundary that is the fullest."""
    if row.kind == CROSSING:
        used, limit = max(zip(row.parts.values(), crossings, strict=True), key=lambda wires: wires[0] / wires[1])
    else:
        used, limit = row.used, resources[row.kind.removeprefix("chain ")]
    return replace(row, platform_limit=limit, platform_share=used / limit)


def refuse_excess(where: str, rows: list[Row]) -> None:
    """ConfigError, in one line, for the first row above its limit."""
    for row in rows:
        if row.used > row.limit:
            raise ConfigError(
                f"{where}: needs {row.used:g} {row.unit}, the limit is {row.limit}: choose a smaller configuration"
            )
