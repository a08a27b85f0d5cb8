"""What a legal instruction stream is, and what becomes of one that is not. Every executor goes by this page.

**Fields.** A field is 32 bits. Strides are signed (two's complement); every address, key and length of lanes is a sum
modulo 2**32, and what comes out is compared unsigned. A field that the instruction's other fields leave unused is
never looked at (a vector operand that no control field asks for: `USES`; `w_mid` with level 1; `d` without a
destination).

**Descriptors.** A unit refuses a descriptor when it starts it, one cycle later and before it has any effect, as
ILLEGAL_DESCRIPTOR: a count of 0 (`COUNTS`), an undefined enumeration (`ENUMERATIONS`, the control words of VU), more
rows in an MX than the accumulators hold, and addresses that are not aligned to what their mode moves at once
(`_misaligned`). On-chip addresses are checked as the unit comes to them, in the order in which it walks: what lies
ahead of the first address beyond a buffer happens, the rest does not (BUFFER_RANGE). Off-chip addresses are checked by
the memory: BUS_READ when the first beat of a burst beyond it comes back, BUS_WRITE with the response.

**Shifts.** Every shift of `hw.spec.numerics` is exact for any amount: sh3 of 64 and more gives 0.

**MX.** Results are written step after step, in a step row after row; where they overlap, the last stays. A step has
rounds of one format: a RAW and a STREAM round in one step are STREAM_HEADER.

**Streams.** RD checks no stream: a matrix unit's front does, beat by beat as it takes them. STREAM_HEADER and BUS_READ
of RD therefore come when the beat does, or never, if nobody makes room for it. They bear the pc of the RD that started
last, at the fault or behind it. A stream that ends inside a run waits for the rest; the next RD, whatever its format,
then begins with a beat that is none of a run.

**Order.** docs/machine.md has the cycle of every error. The machine stops at the first error in time; in one cycle the
units come before the sequencer, lower numbers first. RTL and cycle simulator agree in everything: status, detail, pc,
cycles, events, counters and memory. The functional simulator has no time. It lets the sequencer run until it must wait
and then the units, LD first, and stops at the first error that it comes across. Where a program can raise one error
only, it is the machine's. Where it can raise several, in several units or in a unit and the sequencer, it may name
another of them than the machine does; of one unit's faults it names that of the same instruction, of the sequencer's
the same. Where the machine ends well, so does the functional simulator, with the same memory and traffic; what memory
holds after an error it does not promise. It knows no WATCHDOG but that of a program that can never go on; it takes an
instruction of more than `MAX_WORK` for one that never ends.

**Races.** Instructions that no token and no FENCE orders, and of which one writes what the other reads or writes, leave
undefined values there; so does a pass of VU that reads what one of its earlier words wrote. Status and time are defined
all the same, unless LDS or a header of a stream reads such a value.

**Size.** Simulators follow an instruction up to `MAX_WORK` beats, items or words (RD: `max_beats`), so that no program
makes them take memory without bound. A run that lasts until a larger one ends is refused by them, with an error that
says so.
"""

from enum import IntEnum

from .config import BEAT_BYTES, Config
from .isa import (
    CTL0,
    CTL1,
    WORD_MASK,
    Add,
    Dst,
    Fin,
    LdKind,
    Mul1,
    Mul2,
    Mul3,
    MxMode,
    Reduce,
    Src,
    StKind,
    StMode,
    StreamFormat,
    Unit,
    unpack_bits,
)
from .timing import accumulator_places
from .weights import MAX_BUNDLE

WORD = WORD_MASK + 1
"""Addresses are modulo this."""
MAX_WORK = 1 << 18
"""Beats (LD), items (ST) and words (VU) of an instruction that simulators follow."""

COUNTS: dict[Unit, tuple[str, ...]] = {
    Unit.LD: ("n_outer", "n_inner"),
    Unit.ST: ("n_tok", "n_head", "n_gran"),
    Unit.RD: ("n_outer", "n_inner"),
    Unit.MX: ("n_rows", "kb", "ob", "n_outer"),
    Unit.VU: ("n_outer", "n_mid", "n_words"),
}
"""Fields that must not be 0."""
ENUMERATIONS: dict[Unit, dict[str, type[IntEnum]]] = {
    Unit.LD: {"kind": LdKind},
    Unit.ST: {"mode": StMode, "kind": StKind},
    Unit.RD: {"fmt": StreamFormat},
    Unit.MX: {"mode": MxMode},
    Unit.VU: {},
}
_CONTROL: tuple[tuple[str, int, type[int]], ...] = CTL0
CONTROL_ENUMERATIONS = tuple((name, kind) for name, _, kind in _CONTROL if issubclass(kind, IntEnum))
"""Fields of ctl0 that may hold an undefined code."""

USES = {
    "a": (("src", Src.A),),
    "p": (("src", Src.P), ("mul1", Mul1.P), ("mul1", Mul1.ROPE), ("add", Add.P)),
    "v": (("src", Src.V), ("add", Add.V), ("mul3", Mul3.V)),
    "r0": (("src", Src.R0), ("mul2", Mul2.R0), ("reduce", Reduce.SUMSQ), ("fin", Fin.RSQRT)),
    "r1": (("add", Add.SUB_R1), ("mul3", Mul3.R1)),
    "w": tuple(("reduce", kind) for kind in Reduce if kind != Reduce.NONE),
}
"""The control values with which a pass uses an operand: any of them is enough."""


# --- addresses -------------------------------------------------------------------------------------------


def signed(field: int) -> int:
    """A stride's value."""
    return field - WORD if field >> 31 else field


def first_beyond(base: int, dimensions: tuple[tuple[int, int], ...], size: int) -> int | None:
    """The first place of a walk, counted from 0, whose address is `size` or more; None if the walk stays below.

    dimensions: (count, stride) from the outermost to the innermost, which moves fastest; strides as fields hold them.
    size is at most 2**31, so that a step out of the buffer never lands inside it again.
    """
    if base + sum((count - 1) * stride for count, stride in dimensions) < size:
        return None  # nearly always, and no stride is negative
    spans = [(0, size - 1)]
    for count, stride in reversed(dimensions):
        low, high = spans[0]
        reach = (count - 1) * signed(stride)
        spans.insert(0, (low - min(reach, 0), high - max(reach, 0)))
    if spans[0][0] <= base <= spans[0][1]:
        return None
    place, at = 0, base
    for (count, stride), (low, high) in zip(dimensions, spans[1:], strict=True):
        step = signed(stride)
        inside = low <= at <= high
        steps = 0 if not inside else (high - at) // step + 1 if step > 0 else (at - low) // -step + 1
        place, at = place * count + steps, (at + steps * step) % WORD
    return place


def size_beats(size_bytes: int) -> int:
    """Beats of a memory, for `first_beyond`: more than an address can be."""
    return min(size_bytes // BEAT_BYTES, WORD // 2)


def load_beyond(config: Config, f: dict[str, int]) -> int | None:
    """The first beat of an LD whose granule is beyond PB."""
    return first_beyond(f["dst"], ((f["n_outer"], f["dst_stride"]), (f["n_inner"], 1)), config.pb_granules)


def read_beyond(f: dict[str, int], beats: int) -> int | None:
    """The first beat of an LD or RD that is beyond a memory of so many beats."""
    return first_beyond(f["addr"], ((f["n_outer"], f["stride"]), (f["n_inner"], 1)), beats)


def store_beyond(config: Config, f: dict[str, int]) -> int | None:
    """The first item of an ST whose source is beyond SB."""
    walk = (f["n_tok"], f["src_tok"]), (f["n_head"], f["src_head"]), (f["n_gran"], 1)
    return first_beyond(f["src"], walk, config.sb_granules)


def row_parts(f: dict[str, int]) -> list[tuple[int, int, int]]:
    """(first outer turn, turns, rows of each) of an MX: the last turn may have fewer rows than the others."""
    n, rows, last = f["n_outer"], f["n_rows"], f["n_last"]
    if last in (0, rows):
        return [(0, n, rows)]
    return [part for part in ((0, n - 1, rows), (n - 1, 1, last)) if part[1]]


def result_beyond(config: Config, f: dict[str, int]) -> tuple[int, int] | None:
    """(step of the instruction, drain cycle of the step) of the first result of an MX beyond AB."""
    wide = f["mode"] == MxMode.SPLIT_N
    each, cycles = (config.units, config.drain_cycles_a_row) if wide else (1, 1)
    word = (cycles, config.granules_per_word if wide else 1)
    for first, turns, rows in row_parts(f):
        walk = ((turns, f["dst_out"]), (f["ob"], each), (rows, f["dst_stride"]), word)
        place = first_beyond((f["dst"] + first * f["dst_out"]) % WORD, walk, config.ab_granules)
        if place is not None:
            step, cycle = divmod(place, rows * cycles)
            return first * f["ob"] + step, cycle
    return None


def vector_beyond(config: Config, f: dict[str, int]) -> int | None:
    """The first word of a VU pass of which an address is beyond its buffer."""
    ctl, each, entries = control(f), config.granules_per_word, config.rs_entries
    used = operands(ctl)
    words = {"a": config.ab_granules, "p": config.pb_granules, "v": config.vb_granules}
    walks = [(name, f[f"{name}_mid"], 1, size // each) for name, size in words.items() if name in used]
    rows = {"r0": f["r0_mid"], "r1": f["r1_mid"], "w": 0 if ctl["level"] else f["w_mid"]}
    walks += [(name, mid, 0, entries) for name, mid in rows.items() if name in used]
    if ctl["dst"] in (Dst.VB, Dst.SB):
        size = config.vb_granules if ctl["dst"] == Dst.VB else config.sb_granules
        walks.append(("d", f["d_mid"], 1, size // each))
    elif ctl["dst"] != Dst.NONE:
        walks.append(("d", f["d_mid"], each, config.ob_blocks))
    found = [
        first_beyond(f[name], ((f["n_outer"], f[f"{name}_out"]), (f["n_mid"], mid), (f["n_words"], step)), size)
        for name, mid, step, size in walks
    ]
    return min((place for place in found if place is not None), default=None)


# --- descriptors -----------------------------------------------------------------------------------------


def control(f: dict[str, int]) -> dict:
    """The unpacked control words of a vector descriptor."""
    return unpack_bits(CTL0, f["ctl0"]) | unpack_bits(CTL1, f["ctl1"])


def operands(ctl: dict) -> set[str]:
    """The operands that a pass uses."""
    return {name for name, uses in USES.items() if any(ctl[field] == value for field, value in uses)}


def illegal(config: Config, unit: int, f: dict[str, int]) -> bool:
    """Whether the unit refuses this descriptor."""
    unit = Unit(unit)
    if any(not f[name] for name in COUNTS[unit]):
        return True
    if any(f[name] not in kind._value2member_map_ for name, kind in ENUMERATIONS[unit].items()):
        return True
    if unit == Unit.MX:
        return _too_many_rows(config, f) or _misaligned(config, f)
    return unit == Unit.VU and _bad_control(config, f)


def _too_many_rows(config: Config, f: dict[str, int]) -> bool:
    """More rows than the accumulators hold, of a step or of a group's steps; more last rows than rows."""
    if f["n_rows"] > config.acc_rows or f["n_last"] > f["n_rows"]:
        return True
    return f["group"] > min(MAX_BUNDLE, accumulator_places(f["n_rows"], config.acc_rows))


def _misaligned(config: Config, f: dict[str, int]) -> bool:
    """SPLIT_K reads a block for every unit at once, SPLIT_N writes a vector word at once."""
    if f["mode"] == MxMode.SPLIT_K:
        return any(f[name] % config.units for name in ("act", "act_stride", "act_out"))
    return any(f[name] % config.granules_per_word for name in ("dst", "dst_stride", "dst_out"))


def _bad_control(config: Config, f: dict[str, int]) -> bool:
    """An undefined code, or operand blocks that do not begin at a vector word."""
    ctl = unpack_bits(CTL0, f["ctl0"])
    if any(ctl[name] not in kind._value2member_map_ for name, kind in CONTROL_ENUMERATIONS):
        return True
    return ctl["dst"] >= Dst.OB and any(f[name] % config.granules_per_word for name in ("d", "d_out", "d_mid"))


# --- what simulators follow ------------------------------------------------------------------------------


def max_beats(config: Config) -> int:
    """Beats of a channel that simulators follow in one RD: as many as the channel has, or MAX_WORK."""
    return max(MAX_WORK, config.channel_bytes // BEAT_BYTES)


def work(unit: int, f: dict[str, int]) -> int:
    """Beats (LD, RD), items (ST) or words (VU) of a descriptor; MX is bounded by the rounds that it is given: 0."""
    if unit == Unit.MX:
        return 0
    total = 1
    for name in COUNTS[Unit(unit)]:
        total *= f[name]
    return total


def followed(config: Config, unit: int, f: dict[str, int]) -> bool:
    """Whether simulators follow the whole instruction."""
    return work(unit, f) <= (max_beats(config) if unit == Unit.RD else MAX_WORK)
