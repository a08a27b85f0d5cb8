"""Random legal instructions of every unit for `tiny`, with what they read and write.

They keep to a window of each buffer and to areas of the memories, so that most of them have something to do with each
other. Control values, and values in fields that the instruction does not use, are anything.
"""

import random
from dataclasses import dataclass, field

import numpy as np

from hw.spec import numerics as nm
from hw.spec.config import CONFIGS
from hw.spec.isa import (
    CTL0,
    CTL1,
    FIELDS,
    Dst,
    Func,
    LdKind,
    Mul1,
    MxMode,
    Src,
    StKind,
    StMode,
    StreamFormat,
    Unit,
    pack_bits,
)
from hw.spec.legal import control, operands
from hw.spec.timing import accumulator_places
from hw.spec.weights import MAX_BUNDLE
from sim.functional_checks import spread
from sim.functional_state import cache_writes
from tests.sim.streams import group_sizes, random_shape, random_streams

TINY = CONFIGS["tiny"]
M32 = 0xFFFFFFFF

ROM, ROM_BEATS = 64, 1024
"""Aux beats that programs read only."""
SHARED, SHARED_BEATS = 4096, 512
"""Aux beats that ST writes and LD reads."""
RAW, RAW_BEATS = 0, 1024
"""Channel beats of random blocks that nobody writes; one more block of ones on the diagonal lies behind them."""
IDENTITY = RAW + RAW_BEATS
CACHE, CACHE_BEATS = 2048, 600
"""Channel beats that ST writes (keys and values) and RD reads."""
STREAMS = 16384
"""Channel beats from which streams lie."""

WINDOWS = {"ab": 192, "pb": 192, "vb": 192, "sb": 192, "ob": 256, "rs": 64}
"""Granules, blocks and entries of each buffer that a program uses."""
SIZES = {
    "ab": TINY.ab_granules,
    "pb": TINY.pb_granules,
    "vb": TINY.vb_granules,
    "sb": TINY.sb_granules,
    "ob": TINY.ob_blocks,
    "rs": TINY.rs_entries,
}
DESTINATIONS = {Dst.VB: "vb", Dst.SB: "sb", Dst.OB: "ob", Dst.OBH: "ob", Dst.OBL: "ob"}
BUFFERS = {"a": "ab", "p": "pb", "v": "vb", "r0": "rs", "r1": "rs", "w": "rs"}

Place = tuple
"""(buffer or memory, address) of something that is read or written."""


@dataclass
class Step:
    """One unit instruction. group: the stream whose rounds it reads or takes."""

    unit: Unit
    fields: dict[str, int]
    reads: set[Place] = field(default_factory=set)
    writes: set[Place] = field(default_factory=set)
    group: int | None = None


def step(unit: Unit, fields: dict, reads=(), writes=(), group: int | None = None) -> Step:
    """What is not named is 0; values are brought to 32 bits."""
    every = dict.fromkeys(FIELDS[unit], 0) | {name: int(value) & M32 for name, value in fields.items()}
    return Step(unit, every, set(reads), set(writes), group)


def walk(where: str, f: dict, base: str, *dimensions: tuple[int, str | int]) -> list[Place]:
    """The places of a walk over (count, stride field or stride) dimensions, in order."""
    strides = [(n, f[stride] & M32 if isinstance(stride, str) else stride) for n, stride in dimensions]
    return [(where, at) for at in spread(f[base] & M32, *strides).reshape(-1).tolist()]


class Steps:
    """A source of random steps. streams: what RD reads, (fields, bytes of every unit)."""

    def __init__(self, rng: random.Random, first_stream: int = STREAMS):
        self.rng, self.next_stream = rng, first_stream
        self.base = {name: self._window(SIZES[name], n) for name, n in WINDOWS.items()}
        self.streams: list[tuple[dict, list[bytes]]] = []

    def _window(self, size: int, n: int) -> int:
        """Often the end of a buffer."""
        return size - n if self.rng.random() < 0.35 else self.rng.randrange(size - n + 1)

    def place(self, low: int, size: int, counts: tuple[int, ...], inner: int, unit: int = 1) -> tuple[int, list[int]]:
        """(base, strides) of a walk over counts, then `inner` side by side, that stays in low .. low + size - 1."""
        rng = self.rng
        for attempt in range(40):
            choices = [[0, inner, inner + rng.randrange(3), rng.randrange(-9, 13)] for _ in counts]
            strides = [0 if attempt == 39 else rng.choice(c) * unit for c in choices]
            reach = [(n - 1) * stride for n, stride in zip(counts, strides, strict=True)]
            least, most = sum(min(0, r) for r in reach), sum(max(0, r) for r in reach) + inner - 1
            if most - least < size:
                at = low + rng.randrange(size - (most - least)) - least
                at -= at % unit
                if at + least >= low:
                    return at, strides
        raise ValueError(f"{counts} x {inner} do not fit {size}")

    def in_window(self, buffer: str, counts: tuple[int, ...], inner: int) -> tuple[int, list[int]]:
        return self.place(self.base[buffer], WINDOWS[buffer], counts, inner)

    # --- LD and ST

    def load(self) -> list[Step]:
        rng = self.rng
        rows, n = rng.randint(1, 4), rng.choice([1, 2, 3, 7, 16, 17, 30])
        f = {"n_outer": rows, "n_inner": n, "kind": rng.choice(list(LdKind))}
        f["dst"], (f["dst_stride"],) = self.in_window("pb", (rows,), n)
        low, size = (ROM, ROM_BEATS) if rng.random() < 0.7 else (SHARED, SHARED_BEATS)
        f["addr"], (f["stride"],) = self.place(low, size, (rows,), n)
        reads = walk("aux", f, "addr", (rows, "stride"), (n, 1))
        return [step(Unit.LD, f, reads, walk("pb", f, "dst", (rows, "dst_stride"), (n, 1)))]

    def store(self, channels: bool = True) -> list[Step]:
        rng = self.rng
        mode = rng.choice(list(StMode) if channels else [StMode.LIN, StMode.SC])
        tokens, heads, granules = rng.choice([1, 1, 2, 3, 5]), rng.choice([1, 1, 2, 3]), rng.choice([1, 1, 2, 4])
        tokens = 17 if heads == granules == 1 and rng.random() < 0.3 else tokens
        f = {name: rng.getrandbits(32) for name in FIELDS[Unit.ST]}
        f |= {
            "mode": mode,
            "n_tok": tokens,
            "n_head": heads,
            "n_gran": granules,
            "kind": rng.choice(list(StKind)),
            "pos": rng.choice([0, rng.randrange(64), rng.randrange(300)]),
        }
        f["src"], (f["src_tok"], f["src_head"]) = self.in_window("sb", (tokens, heads), granules)
        writes = self._stored(f, (tokens, heads, granules))
        reads = walk("sb", f, "src", (tokens, "src_tok"), (heads, "src_head"), (granules, 1))
        return [step(Unit.ST, f, reads, writes)]

    def _stored(self, f: dict, counts: tuple[int, int, int]) -> set[Place]:
        """Chooses the addresses of an ST; what it writes."""
        rng, (tokens, heads, granules) = self.rng, counts
        if f["mode"] == StMode.LIN:
            f["addr"], (f["stride_tok"], f["stride_head"]) = self.place(SHARED, SHARED_BEATS, (tokens, heads), granules)
            return set(walk("aux", f, "addr", (tokens, "stride_tok"), (heads, "stride_head"), (granules, 1)))
        if f["mode"] == StMode.SC:
            f["addr"], f["stride_head"] = SHARED + rng.randrange(100), rng.randrange(60)
            blocks = {f["pos"] + t >> 4 for t in range(tokens)}
            return {("aux", f["addr"] + h * f["stride_head"] + block) for h in range(heads) for block in blocks}
        f |= {
            "addr": CACHE + rng.randrange(64),
            "stride_head": rng.choice([0, 64, 100]),
            "stride_slot": rng.choice([4, 8, 5]),
            "stride_gran": rng.choice([4, 16, 1, 0]),
        }
        units, beats, _ = cache_writes(TINY, f)
        return {("channel", int(u), int(b)) for u, b in zip(units, beats, strict=True)}

    # --- VU

    def vector(self) -> list[Step]:
        while True:
            found = self._vector()
            if found is not None:
                return [found]

    def _vector(self) -> Step | None:
        """A pass, or None for one that reads what an earlier word of it wrote."""
        rng = self.rng
        counts = rng.choice([1, 1, 2, 3, 4]), rng.choice([1, 1, 2, 3, 5]), rng.choice([1, 1, 2, 3, 6])
        f = {name: rng.getrandbits(32) for name in FIELDS[Unit.VU]}
        f |= self._scalars_of_a_pass(counts)
        ctl, words = control(f), counts[2]
        used = operands(ctl)
        for name in sorted(used):
            inner = words if name in "apv" else 1
            f[name], (f[f"{name}_out"], f[f"{name}_mid"]) = self.in_window(BUFFERS[name], counts[:2], inner)
        to = DESTINATIONS.get(ctl["dst"])
        if to:
            f["d"], (f["d_out"], f["d_mid"]) = self.in_window(to, counts[:2], words)
            if to == "vb" and "v" in used and rng.random() < 0.4:
                f |= {f"d{part}": f[f"v{part}"] for part in ("", "_out", "_mid")}
        reads, writes = pass_places(f, ctl, used)
        if reads_its_own_results(reads, writes, ctl["level"]):
            return None
        read, written = ({p for each in by_operand.values() for p in each} for by_operand in (reads, writes))
        return step(Unit.VU, f, read, written)

    def _scalars_of_a_pass(self, counts: tuple[int, int, int]) -> dict[str, int]:
        rng, lanes = self.rng, counts[2] * TINY.lanes
        scale = nm.pack_scale(rng.randrange(1 << 16), rng.randrange(-2, 40), rng.randrange(2))
        ctl0, ctl1 = self._controls()
        return {
            "ctl0": pack_bits(CTL0, ctl0),
            "ctl1": pack_bits(CTL1, ctl1),
            "n_outer": counts[0],
            "n_mid": counts[1],
            "n_words": counts[2],
            "imm0": rng.choice([rng.getrandbits(32), scale]),
            "imm1": rng.choice([rng.getrandbits(32), rng.getrandbits(16), nm.encode_scale(1 / 48)]),
            "len0": rng.choice([lanes, lanes, rng.randrange(lanes + 1), 0]),
            "len_step": rng.choice([0, 0, 1, 3, 16, -5]),
        }

    def _controls(self) -> tuple[dict, dict]:
        """Every value of every control field, the plain ones more often."""
        rng = self.rng
        ctl0 = {name: rng.choice(list(kind)) if kind is not int else rng.getrandbits(bits) for name, bits, kind in CTL0}
        ctl0 |= {
            "src": rng.choice([Src.P, *Src]),
            "mul1": rng.choice([Mul1.NONE, Mul1.NONE, *Mul1]),
            "func": rng.choice([Func.NONE, Func.NONE, Func.NONE, *Func]),
            "clip8": rng.random() < 0.2,
            "dst": rng.choice([Dst.VB, Dst.VB, *Dst]),
        }
        near = rng.random() < 0.9
        adjust = [rng.randint(-20, 20) if near else rng.randint(-128, 127) for _ in range(2)]
        shift = rng.choice([0, 8, 15, 16, 30, rng.randrange(64), rng.randrange(256)])
        return ctl0, {"adj1": adjust[0], "adj2": adjust[1], "sh3": shift}

    # --- RD and MX

    def product(self) -> list[Step]:
        """The reads of one stream, then the instructions that take all of its rounds."""
        rng, group = self.rng, self.rng.getrandbits(40)
        if rng.random() < 0.4:
            mode, windows, kb, steps = rng.choice(list(MxMode)), 0, rng.randint(1, 5), rng.randint(1, 5)
            turns = self._turns(steps, mode, grouped=False)
            reads = self._raw_reads(kb * steps * 4, group)
        else:
            mode, windows = MxMode.SPLIT_N, rng.randint(1, 3)
            kb = windows * 8 - rng.randrange(8)
            turns = self._turns(rng.choice([1, 2, 3, 4, 8]), mode, grouped=True)
            reads = self._stream_reads(turns, windows, group)
        beats = set().union(*(read.reads for read in reads))
        each = {"kb": kb, "mode": mode}
        return [*reads, *(self._multiply(f | each, max(kb, 8 * windows), beats, group) for f in turns)]

    def _turns(self, steps: int, mode: MxMode, grouped: bool) -> list[dict[str, int]]:
        """Counts of the instructions that make so many steps; grouped: in groups of several, too."""
        rng, out, left = self.rng, [], steps
        while left:
            taken = rng.randint(1, left)
            left -= taken
            outer = rng.choice([d for d in range(1, taken + 1) if taken % d == 0])
            granules = taken * (1 if mode == MxMode.SPLIT_K else TINY.units)
            rows = rng.choice([1, 1, 2, 3, 5, 7, 8, 16, 17, 33, 64])
            rows = max(1, min(rows, WINDOWS["ab"] // granules))
            most = min(MAX_BUNDLE, accumulator_places(rows, TINY.acc_rows)) if grouped else 1
            f = {
                "n_rows": rows,
                "ob": taken // outer,
                "n_outer": outer,
                "n_last": rng.choice([0, 0, rng.randint(1, rows)]),
            }
            out.append(f | {"group": rng.choice([0, 1, most, rng.randint(1, most)])})
        return out

    def _raw_reads(self, n: int, group: int) -> list[Step]:
        rng = self.rng
        low, size = (CACHE, CACHE_BEATS) if rng.random() < 0.4 else (RAW, RAW_BEATS)
        first = rng.randint(1, n - 1) if rng.random() < 0.4 else n
        out = []
        for part in filter(None, (first, n - first)):
            rows = rng.choice([d for d in (1, 2, 3, 4) if part % d == 0])
            f = {"n_outer": rows, "n_inner": part // rows, "fmt": StreamFormat.RAW}
            f["addr"], (f["stride"],) = self.place(low, size, (rows,), part // rows)
            out.append(step(Unit.RD, f, channel_beats(f), (), group))
        return out

    def _stream_reads(self, turns: list[dict[str, int]], windows: int, group: int) -> list[Step]:
        """One read, or two of which the second goes on in the middle of a group."""
        rng = self.rng
        sizes = [size for f in turns for size in group_sizes(f["ob"], f["group"]) * f["n_outer"]]
        shape = random_shape(rng, sizes, windows, most=2)
        parts = [(shape, True)]
        if rng.random() < 0.3 and len(shape[-1]) > 1:
            parts = [([*shape[:-1], shape[-1][:1]], False), ([shape[-1][1:]], True)]
        out = []
        for part, ends in parts:
            data = random_streams(rng, TINY.units, part, ends, rng.random() < 0.3)
            rows = rng.choice([1, 1, 2])
            n = -(-len(data[0]) // 64 // rows)
            f = {"addr": self.next_stream, "n_outer": rows, "n_inner": n, "stride": n + 3, "fmt": StreamFormat.STREAM}
            self.streams.append((f, [each.ljust(rows * n * 64, b"\0") for each in data]))
            self.next_stream += rows * (n + 3)
            out.append(step(Unit.RD, f, channel_beats(f), (), group))
        return out

    def _multiply(self, f: dict[str, int], span: int, beats: set[Place], group: int) -> Step:
        rng, outer, rows = self.rng, f["n_outer"], f["n_rows"]
        unit, each = (TINY.units, 1) if f["mode"] == MxMode.SPLIT_K else (1, TINY.units)
        granules = f["ob"] * each
        f["act"], (f["act_out"], f["act_stride"]) = self._acts(outer, rows, f["kb"] * unit, unit)
        if rng.random() < 0.3:  # results may overlap
            f["dst"], (f["dst_out"], f["dst_stride"]) = self.in_window("ab", (outer, rows), granules)
        else:
            f["dst_stride"], f["dst_out"] = rng.choice([(granules, granules * rows), (granules * outer, granules)])
            f["dst"] = self.base["ab"] + rng.randrange(WINDOWS["ab"] - outer * rows * granules + 1)
        acts = walk("ob", f, "act", (outer, "act_out"), (rows, "act_stride"), (span * unit, 1))
        results = walk("ab", f, "dst", (outer, "dst_out"), (rows, "dst_stride"), (granules, 1))
        wrapped = {("ob", at % TINY.ob_blocks) for _, at in acts}
        return step(Unit.MX, f, wrapped | beats, results, group)

    def _acts(self, outer: int, rows: int, inner: int, unit: int) -> tuple[int, list[int]]:
        """Act blocks from a multiple of `unit` on, in steps of multiples."""
        rng = self.rng
        while True:
            strides = [rng.choice([0, inner, rng.randrange(12)]) // unit * unit for _ in range(2)]
            reach = (outer - 1) * strides[0] + (rows - 1) * strides[1] + inner
            if reach < WINDOWS["ob"] - unit:
                at = self.base["ob"] + rng.randrange(WINDOWS["ob"] - unit - reach)
                return at + -at % unit, strides


def channel_beats(f: dict) -> set[Place]:
    """What an RD reads."""
    beats = walk("beat", f, "addr", (f["n_outer"], "stride"), (f["n_inner"], 1))
    return {("channel", unit, at) for unit in range(TINY.units) for _, at in beats}


def pass_places(f: dict, ctl: dict, used: set[str]) -> tuple[dict[str, list[Place]], dict[str, list[Place]]]:
    """What a pass reads and writes, by operand, in the order of its words (row operands: of its rows)."""
    rows = lambda name: ((f["n_outer"], f"{name}_out"), (f["n_mid"], f"{name}_mid"))  # noqa: E731
    reads = {name: walk(BUFFERS[name], f, name, *rows(name), (f["n_words"], 1)) for name in used & {"a", "p", "v"}}
    reads |= {name: walk("rs", f, name, *rows(name)) for name in used & {"r0", "r1"}}
    writes = {}
    if "w" in used:
        last = (f["n_mid"], 0) if ctl["level"] else (f["n_mid"], "w_mid")
        writes["w"] = walk("rs", f, "w", (f["n_outer"], "w_out"), last)
    if ctl["dst"] in DESTINATIONS:
        writes["d"] = walk(DESTINATIONS[ctl["dst"]], f, "d", *rows("d"), (f["n_words"], 1))
    return reads, writes


def reads_its_own_results(reads: dict[str, list[Place]], writes: dict[str, list[Place]], level: int) -> bool:
    """Whether a word reads what an earlier one wrote; of one word (without level), reads come first."""
    for source, target in (("v", "d"), ("r0", "w"), ("r1", "w")):
        seen: set[Place] = set()
        for read, written in zip(reads.get(source, ()), writes.get(target, ()), strict=False):
            if read in seen or (level and target == "w" and read in set(writes[target])):
                return True
            seen.add(written)
    return False


def copy(src: Src, dst: Dst, source: int, target: int, n: int, **ctl) -> Step:
    """n words, or (from row scalars) n entries, each to a word of its own."""
    name = {Src.A: "a", Src.P: "p", Src.V: "v", Src.R0: "r0"}[src]
    f = {
        "ctl0": pack_bits(CTL0, {"src": src, "dst": dst} | ctl),
        "n_outer": 1,
        "n_mid": 1,
        "n_words": n,
        "len0": n * TINY.lanes,
        "d": target,
        name: source,
    }
    if src == Src.R0:
        f |= {"n_mid": n, "n_words": 1, "len0": TINY.lanes, "r0_mid": 1, "d_mid": 1}
    return step(Unit.VU, f)


def rom(seed: int) -> np.ndarray:
    """int32[ROM_BEATS, 16]: values of every magnitude, scale words, bytes, anything."""
    from tests.hw.vector_oracle import parameters, values

    rng, generator = random.Random(seed), np.random.default_rng(seed)
    parts = [
        values(rng, 160, 16),
        parameters(rng, 160, 16),
        generator.integers(-127, 128, (160, 16)),
        generator.integers(-(1 << 31), 1 << 31, (ROM_BEATS - 480, 16)),
    ]
    return np.concatenate(parts)[generator.permutation(ROM_BEATS)].astype("<i4")
