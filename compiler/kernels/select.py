"""Selection (operator 12 of docs/machine.md): the largest of a row of values, found and applied on the machine.

`Saliency` collects the class token's attention during the last vision layer; `Survivors` finds the k largest values,
moves their residual rows to the front and lists their numbers in auxiliary memory.

A threshold t is compared with all values x at once: d = (x - t) * 2**15, then exp2_prob(d * 2**15) is PROB_MAX where
x >= t and 0 elsewhere, and its sum counts. The k-th largest value T is found bit by bit (16 high ones, then 15), one
count a bit, whatever the values. Values above T survive, and of those equal to T the first ones. Which values are
above or equal goes to the sequencer as words of 16 bits, which walks over them in ascending order.
"""

from contextlib import contextmanager
from dataclasses import dataclass

from hw.spec.config import GRANULE_LANES
from hw.spec.isa import CTL0, Dst, LdKind, Op, Src, StKind, StMode, Unit, pack_bits
from hw.spec.numerics import PROB_MAX, encode_scale, mul_scale

from ..layout import Layout
from .attention_heads import Heads
from .attention_math import add_shares
from .builder import At, Reg, Rows, Value
from .context import Context
from .expr import Expr, run, vec, zero
from .regions import memory_region

HIGH_BITS, LOW_BITS = 16, 15
UP = encode_scale(2.0**LOW_BITS)
NEGATIVE = 1 << 24
"""Sign of a scale word."""
TOP_BIT = 1 << 31
SELECTION, FEATURE_LIST = memory_region("selection"), memory_region("kept")


def fraction_of_prob_max(value: int) -> int:
    """Scale word that turns PROB_MAX into `value` exactly."""
    word = encode_scale(value / PROB_MAX)
    assert mul_scale(PROB_MAX, word) == value, f"{value} cannot be made of {PROB_MAX}"
    return word


class Saliency:
    """The class token's attention, mean over the heads (times their number), from the scores of the last layer."""

    def __init__(self, ctx: Context, layout: Layout, tokens: int) -> None:
        self.ctx, self.tokens = ctx, tokens
        self.address = layout.aux["selection"].base + layout.selection["saliency"]
        self.words, self.granules = ctx.geo.words(tokens), ctx.geo.granules(tokens)

    def clear(self) -> None:
        """Sum of no heads."""
        ctx = self.ctx
        run(ctx.b, (1, 1, self.words), self.tokens, zero(Rows(ctx["E"])), to=At(ctx["SB_SALIENCY"]))
        self._store()

    def add(self, heads: Heads, entry: Reg) -> None:
        """One head: its scores are in the accumulators, row 0 is the class token's, its query entry is `entry`."""
        ctx, b, before = self.ctx, self.ctx.b, self.ctx["P:v_scale"]
        b.operator = "selection"
        b.load(self.address, before, self.granules, source=SELECTION)
        row, share, to = heads.row_of(entry), At(ctx["V_ROW"]), At(ctx["SB_SALIENCY"])
        add_shares(b, (1, 1, self.words), self.tokens, row, share, At(before), to)
        self._store()

    def _store(self) -> None:
        self.ctx.b.store(
            StMode.LIN, self.ctx["SB_SALIENCY"], SELECTION, addr=self.address, n_gran=self.granules, kind=StKind.LISTS
        )


@dataclass(frozen=True)
class Walk:
    """Registers of a walk over all values: the present one's bits are the highest of the two words, `top` has that bit
    alone, `masks` is the address of the next two words."""

    at_least: Reg
    above: Reg
    top: Reg
    masks: Reg


class Survivors:
    """Top-k over the saliency of `tokens` tokens, number 0 of which is the class token and never counts."""

    def __init__(self, ctx: Context, layout: Layout, tokens: int, side: int) -> None:
        self.ctx, self.b, self.geo, self.tokens, self.side = ctx, ctx.b, ctx.geo, tokens, side
        self.record, self.base = layout.selection, layout.aux["selection"].base
        self.words, self.granules, self.row_words = (
            ctx.geo.words(tokens),
            ctx.geo.granules(tokens),
            ctx.geo.words(ctx.width),
        )

    def select(self, keep: Reg, by_rows: Reg, moved: Reg) -> None:
        """`keep` strongest tokens, or rows of the patch grid, into residual rows 1..; `moved` = tokens kept."""
        b = self.b
        lanes, span, row = b.reg(), b.reg(), b.reg()
        self._constants()
        self._tables()
        with b.alternatives() as leave:
            with b.unless(Op.BEQ, by_rows, 0):
                self._row_values()
                for register, value in ((lanes, self.side), (span, self.side), (row, 1)):
                    b.set(register, value)
                leave()
            self._token_values()
            for register, value in ((lanes, self.tokens), (span, 1), (row, 0)):
                b.set(register, value)
        with self._threshold(keep, lanes) as allowed:
            self._move(allowed, span, row, moved)

    def address(self, field: str) -> int:
        """Beat of a field of the selection record."""
        return self.base + self.record[field]

    # --- preparation -----------------------------------------------------------------------------------

    def _constants(self) -> None:
        """Entries: PROB_MAX, 2**15 and 1."""
        self.b.operator = "selection"
        one, unit, big = (Rows(self.ctx[name]) for name in ("ONE", "UNIT", "BIG"))
        run(self.b, (1, 1, 1), 1, zero(one).exp2().max(unit))
        for entry, value in ((big, 1 << LOW_BITS), (one, 1)):
            run(self.b, (1, 1, 1), 1, vec(unit.raw).scaled(fraction_of_prob_max(value)).max(entry))

    def _tables(self) -> None:
        """Numbers of the tokens, a word each, where ST finds them; weights of a word's bits; the saliency."""
        ctx, b, gpw = self.ctx, self.b, self.geo.gpw
        b.load(
            self.address("numbers"), ctx["NUMBERS"], 1, rows=self.tokens, stride=1, row_stride=gpw, kind=LdKind.TABLES
        )
        run(b, (self.tokens, 1, 1), 1, vec(At(ctx["NUMBERS"], 1)), to=At(ctx["SB_NUMBERS"], 1))
        b.load(self.address("bits"), ctx["BITS"], gpw * gpw, kind=LdKind.TABLES)
        b.load(self.address("saliency"), ctx["SALIENCY"], self.granules, source=SELECTION)

    def _token_values(self) -> None:
        """Saliency with a class token that is below everything."""
        ctx, b, shape, values = self.ctx, self.b, (1, 1, self.words), At(self.ctx["VALUES"])
        run(b, shape, 1, vec(Rows(ctx["UNIT"]).raw).scaled(0xFFFF | NEGATIVE), to=values)
        run(b, shape, self.tokens, vec(At(ctx["SALIENCY"])) + values, to=values)

    def _row_values(self) -> None:
        """Saliency summed by row of the grid: differences of sums up to a row's end."""
        ctx, b, side, gpw = self.ctx, self.b, self.side, self.geo.gpw
        saliency, sums = At(ctx["SALIENCY"]), ctx["ROW_SUMS"]
        run(b, (side + 1, 1, self.words), 1, vec(saliency).sum(Rows(sums, 1)), step=side)
        run(b, (side, 1, 1), 1, vec(Rows(sums, 1, 0, 1).raw) - Rows(sums, 1).raw, to=At(ctx["SB_WORDS"], 1))
        b.store(
            StMode.SC, ctx["SB_WORDS"], SELECTION, addr=self.address("rows"), src_tok=gpw, n_tok=side, kind=StKind.LISTS
        )
        b.load(self.address("rows"), ctx["SALIENCY"], self.geo.granules(side), source=SELECTION)
        run(b, (1, 1, self.words), side, vec(saliency), to=At(ctx["VALUES"]))

    # --- the k-th largest ------------------------------------------------------------------------------

    @contextmanager
    def _threshold(self, keep: Reg, lanes: Reg):
        """The walk's words in aux; yields a register: PROB_MAX times the values equal to T that survive."""
        b = self.b
        need = b.alu(Op.MUL, b.reg(), keep, PROB_MAX)
        for values, unit, bits in (("VALUES", "BIG", HIGH_BITS), ("REST", "ONE", LOW_BITS)):
            found = self._search(values, unit, bits, lanes, need)
            run(b, (1, 1, self.words), lanes, self._difference(values, unit, found), to=At(self.ctx["REST"]))
        for which in (0, 1):
            self._bits(which, lanes)
        b.alu(Op.SUB, need, need, self._count())
        self._store_bits()
        yield need

    def _search(self, values: str, unit: str, bits: int, lanes: Reg, need: Reg) -> Reg:
        """Largest multiple of `unit` that enough values reach; in multiples."""
        b = self.b
        found, bit = b.set(b.reg(), 0), b.set(b.reg(), 1 << bits - 1)
        with b.loop(b.set(b.reg(), bits)):
            trial = b.alu(Op.ADD, b.reg(), found, bit)
            self._compare(values, unit, trial, lanes)
            with b.unless(Op.BLTU, self._count(), need):
                b.set(found, trial)
            b.shift(bit, bit, -1)
        return found

    def _difference(self, values: str, unit: str, times: Value) -> Expr:
        """values - times * unit."""
        return vec(Rows(self.ctx[unit]).raw).scaled(times + NEGATIVE) + At(self.ctx[values])

    def _compare(self, values: str, unit: str, times: Value, lanes: Reg) -> None:
        """Which values are at least times * unit: PROB_MAX in DIFFERENCE, 0 elsewhere; the sum goes to entry COUNT.

        Differences, saturating, times 2**15 are at least 0 or at most -2**15.
        """
        b, shape, place = self.b, (1, 1, self.words), At(self.ctx["DIFFERENCE"])
        run(b, shape, lanes, self._difference(values, unit, times).scaled(Rows(self.ctx["BIG"]).scale), to=place)
        reached = vec(place).scaled(UP).exp2()
        run(b, shape, lanes, reached, to=place, reduce=reached.sum(Rows(self.ctx["COUNT"])))

    def _count(self) -> Reg:
        """Entry COUNT in a register: there is no way but through memory."""
        ctx, b = self.ctx, self.b
        run(b, (1, 1, 1), 1, vec(Rows(ctx["COUNT"]).raw), to=At(ctx["SB_WORDS"]))
        b.store(StMode.LIN, ctx["SB_WORDS"], SELECTION, addr=self.address("count"), kind=StKind.LISTS)
        b.fence()
        return b.load_word(b.reg(), Reg(0, self.address("count") * 16))

    def _bits(self, which: int, lanes: Reg) -> None:
        """Entries of 16 values each: which ones are at least T (0) or above it (1); REST holds x - T."""
        ctx, gpw = self.ctx, self.geo.gpw
        self._compare("REST", "ONE", which, lanes)
        bits = vec(At(ctx["DIFFERENCE"], 1)).scaled(At(ctx["BITS"], 0, 1))
        run(self.b, (self.words, gpw, 1), self.geo.config.lanes, bits.sum(Rows(ctx["MASKS"], 2 * gpw, 2, which)))

    def _store_bits(self) -> None:
        """Pairs of words: at least T, above T."""
        ctx, n = self.ctx, 2 * self.granules
        run(self.b, (n, 1, 1), 1, vec(Rows(ctx["MASKS"], 1).raw), to=At(ctx["SB_WORDS"], 1))
        self.b.store(
            StMode.SC,
            ctx["SB_WORDS"],
            SELECTION,
            addr=self.address("masks"),
            src_tok=self.geo.gpw,
            n_tok=n,
            kind=StKind.LISTS,
        )
        self.b.fence()

    # --- the walk --------------------------------------------------------------------------------------

    def _move(self, allowed: Reg, span: Reg, row: Reg, moved: Reg) -> None:
        """Survivors in ascending order: `span` tokens a value, the first value's at `row`."""
        b = self.b
        source = b.alu(Op.MUL, b.reg(), row, self.row_words)
        target = b.set(b.reg(), self.row_words)
        step = b.alu(Op.MUL, b.reg(), span, self.row_words)
        number = b.alu(Op.MUL, b.reg(), row, self.geo.gpw)
        number_step = b.alu(Op.MUL, b.reg(), span, self.geo.gpw)
        walk = self._walk()
        b.set(moved, 0)
        self._prepare(span)
        with self._each_value(walk, b.set(b.reg(), self.granules)):
            with self._surviving(walk, allowed):
                self._survivor(source, target, number, moved)
                b.alu(Op.ADD, target, target, step)
                b.alu(Op.ADD, moved, moved, span)
                b.close()  # rows move within X, numbers lie ready: nothing to wait for
            b.alu(Op.ADD, source, source, step)
            b.alu(Op.ADD, number, number, number_step)
        b.fence()

    def _walk(self) -> Walk:
        """At the first pair of words."""
        b = self.b
        return Walk(b.reg(), b.reg(), b.set(b.reg(), TOP_BIT), b.set(b.reg(), self.address("masks") * 16))

    @contextmanager
    def _each_value(self, walk: Walk, granules: Reg):
        """The body for every value of so many pairs of words; its bits are the highest of the two."""
        b = self.b
        with b.repeat(granules):
            b.load_word(walk.at_least, walk.masks)
            b.load_word(walk.above, walk.masks + 1)
            b.set(walk.masks, walk.masks + 2)
            for word in (walk.above, walk.at_least):
                b.shift(word, word, 16)
            with b.repeat(b.set(b.reg(), GRANULE_LANES)):
                yield

    @contextmanager
    def _surviving(self, walk: Walk, allowed: Reg):
        """The body where the value survives, then on to the next value's bits."""
        b = self.b
        hit, top = b.set(b.reg(), walk.above), walk.top
        with b.unless(Op.BGEU, hit, top), b.unless(Op.BEQ, allowed, 0), b.unless(Op.BLTU, walk.at_least, top):
            b.set(allowed, allowed + -PROB_MAX)
            b.set(hit, top)
        with b.unless(Op.BLTU, hit, top):
            yield
        for word in (walk.above, walk.at_least):
            b.shift(word, word, 1)

    def _prepare(self, span: Reg) -> None:
        """Descriptor fields that every survivor shares."""
        b, words, gpw = self.b, self.row_words, self.geo.gpw
        b.prepare(
            Unit.VU,
            {
                "ctl0": pack_bits(CTL0, {"src": Src.V, "dst": Dst.VB}),
                "ctl1": 0,
                "n_outer": span,
                "n_mid": 1,
                "n_words": words,
                "len0": self.ctx.width,
                "len_step": 0,
                "v_out": words,
                "v_mid": 0,
                "d_out": words,
                "d_mid": 0,
            },
        )
        b.prepare(
            Unit.ST,
            {
                "mode": StMode.SC,
                "addr": self.address("kept"),
                "src_tok": gpw,
                "src_head": 0,
                "n_tok": span,
                "n_head": 1,
                "n_gran": 1,
                "kind": StKind.LISTS,
            },
        )

    def _survivor(self, source: Reg, target: Reg, number: Reg, moved: Reg) -> None:
        ctx, b = self.ctx, self.b
        x, numbers = ctx["X"], ctx["SB_NUMBERS"]
        b.issue(Unit.VU, {"v": source + x.word, "d": target + x.word}, (x,), (x,))
        b.issue(Unit.ST, {"src": number + numbers.base, "pos": moved}, (numbers,), (FEATURE_LIST,))


def bit_weights(gpw: int) -> list[list[int]]:
    """Rows of parameter words: row g turns PROB_MAX in the lanes of granule g of a word into bits, bit 15 first."""
    words = [fraction_of_prob_max(1 << (GRANULE_LANES - 1 - i)) for i in range(GRANULE_LANES)]
    return [[0] * (GRANULE_LANES * g) + words + [0] * (GRANULE_LANES * (gpw - 1 - g)) for g in range(gpw)]


__all__ = ["Saliency", "Survivors", "bit_weights"]
