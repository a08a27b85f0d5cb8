"""Attention of a tile of queries, a key-value head at a time (operators 6 to 8 of docs/machine.md).

Per head: keys stream through the matrix units against the queries; the vector unit makes probabilities of the scores
and divides them into two planes of int8; values stream against the planes; the planes' sums are put together.

    queries  OB  [head][row]                       scores  AB  [head of the group][row][keys]
    planes   OB  [row][head of the group][2][keys]  sums    AB  [row][head of the group][2][channels]
"""

from typing import Any

from hw.spec import weights
from hw.spec.attention import (
    HIGH_PLANE,
    KEY_ADJUST,
    LOW_PLANE,
    OUT_ADJUST,
    QUERY_ADJUST,
    VALUE_ADJUST,
    VALUE_REFERENCE,
    VALUE_SHIFT,
)
from hw.spec.isa import (
    Add,
    Dst,
    Fin,
    Func,
    LdKind,
    Mul1,
    Mul2,
    Mul3,
    MxMode,
    Op,
    Reduce,
    Row,
    Src,
    StreamFormat,
    Tap,
    Unit,
)
from hw.spec.timing import VU_LATENCY

from ..integer import steps as s
from ..kernels.builder import At, Rows, Value
from ..kernels.regions import memory_region
from .body import Buffer, Memory
from .emit import Emitter, Scores
from .lower import PhaseLowering
from .memory import Cache


def lower_attention(lowering: PhaseLowering, step: s.Attend) -> None:
    _Attention(lowering, step).run()


class _Attention:
    def __init__(self, lowering: PhaseLowering, step: s.Attend) -> None:
        self.lowering, self.step, self.config = lowering, step, lowering.config
        self.body, self.former = lowering.body, lowering.former
        self.keys, self.values = (lowering.caches[name] for name in (step.keys, step.values))
        self.heads = step.layout.groups
        self.group = self.heads // self.keys.heads
        self.query = next(h for h in self.former.homes[step.query] if h.heads_first)
        self.entry = self.former.homes[step.entry][0]
        self.tile = 1 if step.rows == 1 else self.body.tile
        self.most = self._most_granules(lowering.arguments.most(step.n_keys))
        self.words = self.values.size // self.config.lanes
        self.out = self.former.in_vb(step.name)

    def _most_granules(self, keys: int) -> int:
        return weights.cache_slots(keys, self.config.units) * self.config.units

    def run(self) -> None:
        """The mask is in VB, where a score has it added; in PB with a soft cap, which leaves that port free."""
        shared = self._mask(0) if self.mask_heads == 1 else None
        for head in range(self.keys.heads):
            _Head(self, head, self._mask(head) if self.mask_heads > 1 else shared).run()

    @property
    def mask_heads(self) -> int:
        """Heads of the mask: 0 without one, 1 where all heads share it."""
        return self.lowering.steps[self.step.mask].layout.groups if self.step.mask else 0

    @property
    def masks_a_row(self) -> int:
        """Rows of the mask that a token's queries of one key head read: one, or one a query."""
        return 1 if self.mask_heads == 1 else self.group

    def _mask(self, head: int) -> Buffer:
        """The tile's rows of the mask; head: the key head whose queries read them."""
        name, tile, count = self.step.mask, self.tile, self.masks_a_row
        size = tile * count * self.most
        loaded, mask = (Buffer(f"{name} {where}", where, size) for where in ("PB", "VB"))
        base, heads = self.lowering.rows[name].base, self.mask_heads

        def load(e: Emitter) -> None:
            row = self.scores(e).granules
            part, whole = e.times(row, count), e.times(row, heads)
            address = e.sum(e.product(e.at, whole), e.times(row, head * count if heads > 1 else 0)) + base
            e.b.load(address, e.region(loaded), part, self.m(e), whole, 0, part, kind=LdKind.TABLES)

        def copy(e: Emitter) -> None:
            score = self.scores(e)
            source, to = (self.mask_rows(e, buffer) for buffer in (loaded, mask))
            e.b.vu_pass((self.m(e), count, score.words), score.keys, p=source, d=to, src=Src.P)

        self.issue(Unit.LD, [], [loaded], load, size + self.config.read_latency)
        if self.step.cap:
            return loaded
        self.issue(Unit.VU, [loaded], [mask], copy, self.passes(count))
        return mask

    def mask_rows(self, e: Emitter, mask: Buffer) -> At:
        """Rows of the mask as an operand: token by token, the queries of a key head one after the other."""
        words = self.scores(e).words
        return At(e.region(mask), e.times(words, self.masks_a_row), words if self.masks_a_row > 1 else 0)

    # --- lengths -----------------------------------------------------------------------------------------

    def issue(self, unit: Unit, reads, writes, emit, cycles: int) -> None:
        self.lowering.issue(unit, self.step.operator, reads, writes, emit, cycles)

    def passes(self, rows: int) -> int:
        """Cycles of a pass over so many rows of scores a token."""
        return self.tile * rows * self.most // self.config.granules_per_word + VU_LATENCY

    def m(self, e: Emitter) -> Value:
        return 1 if self.step.rows == 1 else e.m

    def scores(self, e: Emitter) -> Scores:
        """Constants, or registers that are set where they are first needed in the tile."""
        keys, units, each = e.dim(self.step.n_keys), self.config.units, self.config.granules_per_word
        if isinstance(keys, int):
            granules = self._most_granules(keys)
            return Scores(keys, granules // units, granules, granules // each)
        return e.score_lengths(keys, self.lowering.arguments.most(self.step.n_keys))

    def limit(self, e: Emitter) -> tuple[Value, int]:
        """(keys that the tile's first row sees, how many more each further row sees)."""
        keys = e.dim(self.step.n_keys)
        if not self.step.causal:
            return keys, 0
        queries = e.dim(self.step.rows)
        before: Value
        if isinstance(keys, int) and isinstance(queries, int):
            before = keys - queries
        else:
            before = e.b.alu(Op.SUB, e.b.reg(), keys, queries)
        return e.sum(before, e.at) + 1, 1


class _Head:
    """One key-value head, with the group of query heads that share it."""

    def __init__(self, attention: _Attention, head: int, mask: Buffer | None) -> None:
        self.a, self.head, self.mask = attention, head, mask
        tile, group, most, new = attention.tile, attention.group, attention.most, Buffer
        rows, words = tile * group, attention.words
        each = attention.config.granules_per_word
        self.scores = new("scores", "AB", rows * most)
        self.key_scales, self.value_scales = new("key scales", "PB", most), new("value scales", "PB", most)
        self.through_vb = mask is not None or bool(attention.step.cap)
        self.weights = new("probabilities", "VB", rows * most) if self.through_vb else new("value scales", "VB", most)
        self.top, self.total = new("maxima", "RS", rows), new("sums", "RS", rows)
        self.planes = new("planes", "OB", 2 * rows * most)
        self.sums = new("weighted values", "AB", 2 * rows * words * each)
        self.half = new("low planes", "VB", rows * words * each)

    def run(self) -> None:
        self._score()
        for cache, buffer in ((self.a.keys, self.key_scales), (self.a.values, self.value_scales)):
            self._load_scales(cache, buffer)
        if self.through_vb:
            self._stored_softmax()
        else:
            self._softmax()
        self._weigh()
        self._combine()

    # --- matrix unit -------------------------------------------------------------------------------------

    def _score(self) -> None:
        a, blocks, cache = self.a, self.a.keys.size // 16, self.a.keys
        at = cache.base + self.head * cache.beats(a.config)

        def read(e: Emitter) -> None:
            beats = e.times(a.scores(e).slots, blocks * weights.BLOCK_BEATS)
            e.b.read(at, beats, fmt=StreamFormat.RAW, source=memory_region(f"h{cache.base}"))

        def multiply(e: Emitter) -> None:
            score = a.scores(e)
            e.b.matmul(
                e.region(a.query.buffer),
                e.region(self.scores),
                rows=e.times(a.m(e), a.group),
                kb=blocks,
                ob=score.slots,
                act_stride=blocks,
                out_stride=score.granules,
                act_offset=e.times(a.m(e), self.head * a.group * blocks),
            )

        a.issue(Unit.RD, [Memory(f"h{cache.base}")], [], read, a.most * blocks)
        cycles = a.tile * a.group * a.most // a.config.units * blocks * a.config.passes
        a.issue(Unit.MX, [a.query.buffer], [self.scores], multiply, cycles)

    def _weigh(self) -> None:
        a, blocks, cache = self.a, self.a.values.size // 16, self.a.values
        at = cache.base + self.head * cache.beats(a.config)
        stride = weights.v_strides(cache.context, a.config.units)["gran"]

        def read(e: Emitter) -> None:
            beats = e.times(a.scores(e).slots, weights.BLOCK_BEATS)
            source = memory_region(f"h{cache.base}")
            e.b.read(at, beats, rows=blocks, stride=stride, fmt=StreamFormat.RAW, source=source)

        def multiply(e: Emitter) -> None:
            score = a.scores(e)
            e.b.matmul(
                e.region(self.planes),
                e.region(self.sums),
                rows=e.times(a.m(e), 2 * a.group),
                kb=score.slots,
                ob=blocks,
                act_stride=score.granules,
                out_stride=blocks,
                mode=MxMode.SPLIT_K,
            )

        a.issue(Unit.RD, [Memory(f"h{cache.base}")], [], read, a.most * blocks)
        cycles = 2 * a.tile * a.group * a.most // a.config.units * blocks * a.config.passes
        a.issue(Unit.MX, [self.planes], [self.sums], multiply, cycles)

    def _load_scales(self, cache: Cache, buffer: Buffer) -> None:
        a = self.a
        at = cache.scales + self.head * cache.granules(a.config)

        def load(e: Emitter) -> None:
            source = memory_region(f"s{cache.scales}")
            e.b.load(at, e.region(buffer), a.scores(e).granules, source=source, kind=LdKind.KV_SCALES)

        a.issue(Unit.LD, [Memory(f"s{cache.scales}")], [buffer], load, a.most + a.config.read_latency)

    # --- vector unit -------------------------------------------------------------------------------------

    def _shape(self, e: Emitter) -> tuple[Value, int, Value]:
        return self.a.m(e), self.a.group, self.a.scores(e).words

    def _score_fields(self, e: Emitter) -> dict[str, Any]:
        """The pass that turns sums into scores in units of log2."""
        a, score = self.a, self.a.scores(e)
        entries = Rows(e.region(a.entry.buffer), a.entry.row, 1, self.head * a.group)
        return {
            "a": At(e.region(self.scores), score.words, e.product(a.m(e), score.words)),
            "p": At(e.region(self.key_scales)),
            "r0": entries,
            "src": Src.A,
            "mul1": Mul1.P,
            "adj1": KEY_ADJUST,
            "mul2": Mul2.R0,
            "row0": Row.SCALE,
            "adj2": QUERY_ADJUST,
        }

    def _rows(self, e: Emitter, buffer: Buffer) -> Rows:
        return Rows(e.region(buffer), self.a.group, 1)

    def _plane(self, e: Emitter, plane: int) -> At:
        row, group = self.a.scores(e).granules, self.a.group
        token = e.times(row, 2 * group)
        return At(e.region(self.planes), token, e.times(row, 2), row if plane else 0)

    def _softmax(self) -> None:
        """As the hand-written kernels: scores are computed anew in every pass, which costs no storage."""
        a = self.a

        def reference(e: Emitter) -> None:
            score = a.scores(e)
            source, to = At(e.region(self.value_scales)), At(e.region(self.weights))
            word = VALUE_REFERENCE
            e.b.vu_pass(
                (1, 1, score.words), score.keys, p=source, d=to, imm0=word, src=Src.P, mul1=Mul1.IMM, adj1=VALUE_ADJUST
            )

        def top(e: Emitter) -> None:
            first, more = a.limit(e)
            to = self._rows(e, self.top)
            e.b.vu_pass(self._shape(e), first, step=more, w=to, reduce=Reduce.MAX, **self._score_fields(e))

        reads = [self.scores, self.key_scales, a.entry.buffer]
        a.issue(Unit.VU, [self.value_scales], [self.weights], reference, a.most + VU_LATENCY)
        a.issue(Unit.VU, reads, [self.top], top, a.passes(a.group))
        for plane in (0, 1):
            self._power_plane(plane, reads)

    def _power_plane(self, plane: int, reads: list[Buffer]) -> None:
        a = self.a

        def write(e: Emitter) -> None:
            first, more = a.limit(e)
            sums: dict[str, Any] = {}
            if plane == 0:
                sums = {"w": self._rows(e, self.total), "tap": Tap.FUNC, "reduce": Reduce.SUM, "fin": Fin.RECIP}
            e.b.vu_pass(
                self._shape(e),
                first,
                step=more,
                v=At(e.region(self.weights)),
                r1=self._rows(e, self.top),
                row1=Row.RAW,
                add=Add.SUB_R1,
                func=Func.EXP2,
                mul3=Mul3.V,
                sh3=VALUE_SHIFT,
                dst=Dst.OBL if plane else Dst.OBH,
                d=self._plane(e, plane),
                **sums,
                **self._score_fields(e),
            )

        writes = [self.planes] if plane else [self.planes, self.total]
        a.issue(Unit.VU, [*reads, self.weights, self.top], writes, write, a.passes(a.group))

    def _stored_softmax(self) -> None:
        """With a mask's row added, or a soft cap, port V or the function is taken: scores pass through VB."""
        a, mask = self.a, self.mask

        def own(e: Emitter) -> At:
            words = a.scores(e).words
            return At(e.region(self.weights), e.times(words, a.group), words)

        def scores(e: Emitter) -> None:
            first, more = a.limit(e)
            assert mask is not None
            added, to = a.mask_rows(e, mask), self._rows(e, self.top)
            masked: dict[str, Any] = {"v": added, "add": Add.V, "w": to, "reduce": Reduce.MAX}
            e.b.vu_pass(self._shape(e), first, step=more, d=own(e), **masked, **self._score_fields(e))

        def sigmoids(e: Emitter) -> None:
            first, more = a.limit(e)
            e.b.vu_pass(self._shape(e), first, step=more, d=own(e), func=Func.SIGMOID, **self._score_fields(e))

        def capped(e: Emitter) -> None:
            first, more = a.limit(e)
            added: dict[str, Any] = {}
            if mask is not None:
                added = {"p": a.mask_rows(e, mask), "add": Add.P}
            to = self._rows(e, self.top)
            fields: dict[str, Any] = {"src": Src.V, "mul1": Mul1.IMM, "imm0": a.step.cap, "reduce": Reduce.MAX}
            e.b.vu_pass(self._shape(e), first, step=more, v=own(e), d=own(e), w=to, **fields, **added)

        def power(e: Emitter) -> None:
            first, more = a.limit(e)
            place, top, total = own(e), self._rows(e, self.top), self._rows(e, self.total)
            e.b.vu_pass(
                self._shape(e),
                first,
                step=more,
                v=place,
                d=place,
                r1=top,
                w=total,
                src=Src.V,
                add=Add.SUB_R1,
                row1=Row.RAW,
                func=Func.EXP2,
                reduce=Reduce.SUM,
                fin=Fin.RECIP,
            )

        masks = [] if mask is None else [mask]
        reads = [self.scores, self.key_scales, a.entry.buffer]
        if a.step.cap:
            a.issue(Unit.VU, reads, [self.weights], sigmoids, a.passes(a.group))
            a.issue(Unit.VU, [self.weights, *masks], [self.weights, self.top], capped, a.passes(a.group))
        else:
            a.issue(Unit.VU, [*reads, *masks], [self.weights, self.top], scores, a.passes(a.group))
        a.issue(Unit.VU, [self.weights, self.top], [self.weights, self.total], power, a.passes(a.group))
        for plane in (0, 1):
            self._stored_plane(plane, own)

    def _stored_plane(self, plane: int, own) -> None:
        a = self.a

        def write(e: Emitter) -> None:
            first, more = a.limit(e)
            place = own(e)
            row, group = a.scores(e).granules, a.group
            target = At(
                e.region(self.planes),
                e.times(row, 2 * group),
                e.times(row, 2),
                row if plane else 0,
            )
            e.b.vu_pass(
                self._shape(e),
                first,
                step=more,
                p=At(e.region(self.value_scales)),
                v=place,
                d=target,
                imm0=VALUE_REFERENCE,
                src=Src.P,
                mul1=Mul1.IMM,
                adj1=VALUE_ADJUST,
                mul3=Mul3.V,
                sh3=VALUE_SHIFT,
                dst=Dst.OBL if plane else Dst.OBH,
            )

        a.issue(Unit.VU, [self.value_scales, self.weights], [self.planes], write, a.passes(a.group))

    def _combine(self) -> None:
        """(low planes / 16 + high planes * 16) / sum."""
        a, group, step = self.a, self.a.group, self.a.words
        size = a.step.layout.size

        def low(e: Emitter) -> None:
            source = At(e.region(self.sums), 2 * group * step, 2 * step, step)
            to = At(e.region(self.half), group * step, step)
            shape = (a.m(e), group, step)
            e.b.vu_pass(shape, size, a=source, d=to, imm0=LOW_PLANE, src=Src.A, mul1=Mul1.IMM)

        def high(e: Emitter) -> None:
            e.b.vu_pass(
                (a.m(e), group, step),
                size,
                a=At(e.region(self.sums), 2 * group * step, 2 * step),
                v=At(e.region(self.half), group * step, step),
                r1=self._rows(e, self.total),
                d=At(e.region(a.out.buffer), a.out.row, step, self.head * group * step),
                imm0=HIGH_PLANE,
                src=Src.A,
                mul1=Mul1.IMM,
                add=Add.V,
                mul3=Mul3.R1,
                row1=Row.FIN,
                adj2=OUT_ADJUST,
            )

        cycles = a.tile * group * step + VU_LATENCY
        a.issue(Unit.VU, [self.sums], [self.half], low, cycles)
        a.issue(Unit.VU, [self.sums, self.half, self.total], [a.out.buffer], high, cycles)
