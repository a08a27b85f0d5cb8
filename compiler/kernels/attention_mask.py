"""Block-sparse attention: a tile's queries over the key slots that a table in auxiliary memory lists for them.

Keys of absent slots are neither read nor computed: scores, probabilities and planes lie on the axis of the present
keys. The listed slots ascend and end with the slot of the tile's own rows, so causality is a length on that axis too.

A row of the table, one a slot of queries, in words: slots present, runs, then a word a run: first slot, and the number
of slots in the upper half. `host.Session` writes it before each masked prefill; argument `mask` is its word address, 0
for none.
"""

from collections.abc import Callable

from hw.spec import weights
from hw.spec.isa import LdKind, Op, StreamFormat

from ..geometry import Geometry
from ..layout import mask_row_words
from .attention_heads import CACHE, SCALES, Heads
from .builder import Builder, Reg

HEADER_WORDS = 2
HALF = 16


def shorten_tile(
    b: Builder, geo: Geometry, mask: Reg, position: Reg, m: Reg, slots: Reg, score_row: Reg, context: int
) -> None:
    """End the tile of `m` tokens with the slot its first one lies in; slots and score row become the present ones."""
    log2 = geo.keys_per_slot_log2
    here = b.shift(b.reg(), position, -log2)
    end = b.shift(b.reg(), here + 1, log2)
    b.alu(Op.SUB, end, end, position)
    b.alu(Op.MIN, m, m, end)
    row = _row(b, geo, mask, here, context)
    b.declare(b.load_word(slots, row), geo.slots(context))
    b.shift(score_row, slots, geo.units_log2)


def _row(b: Builder, geo: Geometry, mask: Reg, here: Reg, context: int) -> Reg:
    """The address of the row in the table for a slot of queries."""
    return b.alu(Op.ADD, b.reg(), b.scaled(here, mask_row_words(geo, context)), mask)


class MaskedHeads(Heads):
    """Attention of one tile over present slots; `length` is in a register and becomes the one of the present keys.

    Registers are scarce: the layer's cache and scale pointers walk over the heads themselves and come back.
    """

    def masked(self, mask: Reg, position: Reg) -> None:
        """Loop over key-value heads."""
        ctx, b, op = self.ctx, self.ctx.b, self.op
        cache, scales = ctx.pointers["cache"], ctx.pointers["scales"]
        head_granules = ctx.geo.cache_granules(self.context)
        self._row_registers()
        self._list(mask, position)
        strides, q_at = self._tile_strides(), b.set(b.reg(), 0)
        with b.loop(b.set(b.reg(), op.kv_heads)):
            self._walk_queries(q_at, strides.entry_at)
            self._head(strides, q_at, cache, scales)
            b.set(scales, scales + head_granules)
            self._next_queries(strides, q_at, ctx.m if self.group == 1 else b.scaled(ctx.m, self.group))
            b.fence()
        b.set(cache, cache + -op.kv_heads * self.cache_beats)
        b.set(scales, scales + -op.kv_heads * head_granules)

    def _list(self, mask: Reg, position: Reg) -> None:
        """The list of the tile's slots, and the keys it leaves: absent slots shorten the axis."""
        b, geo, keys = self.ctx.b, self.ctx.geo, self.length
        assert isinstance(keys, Reg)
        here = b.shift(b.reg(), position, -geo.keys_per_slot_log2)
        b.alu(Op.SUB, keys, keys, self._absent_keys(here))
        here = b.shift(here, position, -geo.keys_per_slot_log2)
        row = _row(b, geo, mask, here, self.context)
        self.runs = b.load_word(b.reg(), row + 1)
        self.run_at = b.set(b.reg(), row + HEADER_WORDS)

    def _absent_keys(self, here: Reg) -> Reg:
        """Keys of the slots up to `here` that the list leaves out."""
        b = self.ctx.b
        absent = b.alu(Op.SUB, b.reg(), here, self.slots)
        return b.shift(absent, b.set(absent, absent + 1), self.ctx.geo.keys_per_slot_log2)

    def _head(self, strides, q_at: Reg, cache: Reg, scales: Reg) -> None:
        """Matrix instructions come before the reads of their runs: reads of many runs need somebody who takes them."""
        ctx, b = self.ctx, self.ctx.b
        self._score_matrix(q_at, ctx.m if self.group == 1 else b.scaled(ctx.m, self.group))
        with b.running_ahead():
            granule = b.set(b.reg(), 0)
            self._each_run(lambda run: self._keys_of_run(run, granule, cache, scales))
        self.first_limit = b.alu(Op.SUB, b.reg(), self.length, ctx.m) + 1
        self._softmax(strides, 1)
        self._values(b.scaled(ctx.m, 2 * self.group))
        with b.running_ahead(), b.repeat(b.set(b.reg(), self.hb)):
            # The walk over the blocks of dimensions ends at the next head's cache.
            self._each_run(lambda run: self._values_of_run(run, cache))
            b.set(cache, cache + weights.v_strides(self.context, ctx.geo.config.units)["gran"])
        self._combine(strides)

    def _each_run(self, body: Callable[[Reg], None]) -> None:
        b = self.ctx.b
        with b.repeat(self.runs):
            body(b.load_word(b.reg(), self.run_at))
            b.set(self.run_at, self.run_at + 1)
        b.alu(Op.SUB, self.run_at, self.run_at, self.runs)

    def _first(self, run: Reg, factor: int, base: Reg) -> Reg:
        """base + first slot * factor."""
        b = self.ctx.b
        first = b.shift(b.reg(), run, HALF)
        b.shift(first, first, -HALF)
        return b.alu(Op.ADD, b.reg(), b.scaled(first, factor), base)

    def _count(self, run: Reg, factor: int) -> Reg:
        """Slots * factor."""
        b = self.ctx.b
        return b.scaled(b.shift(b.reg(), run, -HALF), factor)

    def _keys_of_run(self, run: Reg, granule: Reg, cache: Reg, scales: Reg) -> None:
        """Keys into the FIFOs, scales behind those of earlier runs."""
        ctx, b, units = self.ctx, self.ctx.b, self.ctx.geo.config.units
        beats = self.hb * weights.BLOCK_BEATS
        address, count = self._first(run, beats, cache), self._count(run, beats)
        b.operator = "scores"
        b.read(address + ctx.records["cache"]["k"], count, fmt=StreamFormat.RAW, source=CACHE["k"])
        address, count = self._first(run, units, scales), self._count(run, units)
        b.operator = "softmax"
        for which in "kv":
            b.load(
                address + ctx.records["scales"][which],
                ctx[f"P:{which}_scale"],
                count,
                offset=granule,
                source=SCALES,
                kind=LdKind.KV_SCALES,
            )
        b.alu(Op.ADD, granule, granule, count)

    def _values_of_run(self, run: Reg, cache: Reg) -> None:
        """Values of one block of dimensions."""
        address = self._first(run, weights.BLOCK_BEATS, cache)
        self.ctx.b.operator = "values"
        self.ctx.b.read(
            address + self.ctx.records["cache"]["v"],
            self._count(run, weights.BLOCK_BEATS),
            fmt=StreamFormat.RAW,
            source=CACHE["v"],
        )


__all__ = ["MaskedHeads", "shorten_tile"]
