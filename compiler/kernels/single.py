"""Decoder layers for a single token: the matrix units take one weight stream after the other, all else hides behind.

A layer is one basic block. Its reads are issued far ahead of their use: keys behind the layer's q weights, values, all
other weights, and the next layer's k, v and q. Only the keys (values) wait for this token's to be stored. Queries come
in two parts of heads: while the matrix units multiply one part, the vector unit works on the other. What the vector
unit and the matrix units exchange has places of its own for both parts.
"""

from dataclasses import dataclass
from functools import cached_property

from hw.spec import weights
from hw.spec.config import BLOCK
from hw.spec.isa import LdKind, MxMode, Op, StreamFormat

from .. import ir
from ..layout import Layout
from . import attention_math, linear, mlp, norm
from .attention import cache_heads, quantise_heads
from .attention_heads import CACHE, SCALES
from .attention_math import Scores
from .builder import At, Reg, Rows, Value
from .context import Context, advance_layer
from .regions import Region, memory_region

HELD_SCALES = memory_region("held scales")
"""Scales of keys that are in the cache already: reading them waits for no store."""


@dataclass(frozen=True)
class Part:
    """Some of the key-value heads and their queries."""

    first: int
    count: int


class SingleToken:
    """Emits the loop over layers."""

    def __init__(self, ctx: Context, layout: Layout, position: Reg, slots: Reg, score_row: Reg) -> None:
        self.ctx, self.layout, self.position, self.slots, self.score_row = ctx, layout, position, slots, score_row
        self.b, self.geo, self.ops = ctx.b, ctx.geo, layout.model.text.layer
        self.op = next(op for op in self.ops if isinstance(op, ir.Attention))
        self.group, self.hb = self.op.heads // self.op.kv_heads, self.op.head_dim // BLOCK
        self.step = self.geo.words(self.op.head_dim)
        self.row = self.geo.cache_granules(layout.context)
        self.names = [stream[0].name for stream in self.geo.streams(self.ops)]
        self.ahead = [stream[0].name for stream in self.geo.streams([self.op])]
        """Streams that the layer before reads."""
        self.beats = {name: self.b.reg() for name in self.names}
        """Lengths of streams."""

    # --- layers ----------------------------------------------------------------------------------------

    def layers(self, count: Reg) -> None:
        """`count` layers from the context's pointers on."""
        ctx, b = self.ctx, self.b
        self.words = b.shift(b.reg(), self.score_row, -self.geo.gpw_log2)
        left = b.set(b.reg(), count)
        self._lengths(self.ahead)
        with b.for_next_layer():
            self._read_weights(self.ahead)
        ctx.reads_ahead = True
        with b.layer_loop(count):
            b.set(left, left + -1)
            self._layer(left)
            advance_layer(ctx)
        ctx.reads_ahead = False

    def _layer(self, left: Reg) -> None:
        ctx = self.ctx
        for op, following in zip(self.ops, [*self.ops[1:], None], strict=True):
            if op is self.ops[0]:
                ctx.load_parameters(op)
            elif following is not None:
                ctx.load_parameters(following)
            match op:
                case ir.Norm():
                    norm.norm(ctx, op)
                case ir.Attention():
                    self._attention(left)
                case ir.Residual():
                    linear.residual(ctx, op)
                case ir.GatedMlp():
                    mlp.gated(ctx, op)
                case ir.PlainMlp():
                    mlp.plain(ctx, op)

    # --- reads -----------------------------------------------------------------------------------------

    def _lengths(self, names: list[str], record: int = 0) -> None:
        """Stream lengths into registers; of the layer `record` layers further on."""
        ctx, b = self.ctx, self.b
        address = ctx.table_address(record * BLOCK * ctx.records["params"].beats)
        for name in names:
            b.load_word(self.beats[name], address + ctx.table.length(self.names.index(name)))

    def _read_weights(self, names: list[str]) -> None:
        ctx, b = self.ctx, self.b
        for name in names:
            b.operator = name
            b.read(ctx.pointers["weights"], self.beats[name])
            b.alu(Op.ADD, ctx.pointers["weights"], ctx.pointers["weights"], self.beats[name])

    def _read_ahead(self, left: Reg) -> None:
        """Keys, values, the layer's further weights, and the next layer's first ones."""
        ctx, b, op, blocks = self.ctx, self.b, self.op, weights.BLOCK_BEATS
        b.operator = "scores"
        b.read(
            ctx.pointers["cache"] + ctx.records["cache"]["k"],
            b.scaled(self.slots, self.hb * blocks),
            rows=op.kv_heads,
            stride=weights.cache_beats(op.head_dim, self.layout.context, self.geo.config.units),
            fmt=StreamFormat.RAW,
            source=CACHE["k"],
        )
        b.operator = "values"
        b.read(
            ctx.pointers["cache"] + ctx.records["cache"]["v"],
            b.scaled(self.slots, blocks),
            rows=op.kv_heads * self.hb,
            stride=weights.v_strides(self.layout.context, self.geo.config.units)["gran"],
            fmt=StreamFormat.RAW,
            source=CACHE["v"],
        )
        self._read_weights(self.names[len(self.ahead) :])
        with b.running_ahead(), b.skipping(Op.BEQ, left, 0), b.for_next_layer():
            self._read_weights(self.ahead)

    # --- attention -------------------------------------------------------------------------------------

    @cached_property
    def parts(self) -> list[Part]:
        """Two where there are two heads; the first ends with a step of the matrix units if one of them can."""
        heads, width = self.op.kv_heads, self.group * self.op.head_dim
        half = (heads + 1) // 2
        first = next((n for n in range(half, heads) if self._whole_steps(n * width)), half)
        return [Part(0, first), Part(first, heads - first)] if first < heads else [Part(0, heads)]

    def _whole_steps(self, width: int) -> bool:
        return width % (self.geo.config.units * BLOCK) == 0

    def _attention(self, left: Reg) -> None:
        ctx, op = self.ctx, self.op
        linear.matmul(ctx, op.k, "XQ", ctx["ACC_K"])
        linear.matmul(ctx, op.v, "XQ", ctx["ACC_V"])
        self._query_matrix()
        # The sequencer waits for memory while all that runs.
        ctx.load_shifts()
        self._lengths(self.names[len(self.ahead) :])
        self._lengths(self.ahead, record=1)
        ctx.load_parameters(op)
        self._load_scales()
        self._keys_and_values()
        self._read_ahead(left)
        for part in self.parts:
            self._queries(part)
            self._scores(part)
            self._value_scales(part)
        for part in self.parts:
            self._softmax(part)
            self._values(part)
        for part in self.parts:
            self._low(part)
        self._combine()

    def _query_matrix(self) -> None:
        """q, a part at a time if parts are whole steps: they are still one stream."""
        ctx, op, per_step = self.ctx, self.op, self.geo.config.units
        width = self.group * op.head_dim
        # One instruction multiplies whole groups of steps.
        whole = all(self._whole_steps(part.first * width) for part in self.parts) and not ctx.grouped(op.q.name)
        for part in self.parts if whole else [Part(0, op.kv_heads)]:
            granules, n = part.first * width // BLOCK, part.count * width
            if whole and part is self.parts[-1]:
                n = op.q.n_out - part.first * width
            out = ctx["ACC_Q"].part(granules, self.geo.steps(n) * per_step)
            ctx.b.operator = op.q.name
            ctx.b.matmul(
                ctx["XQ"],
                out,
                rows=1,
                kb=self.geo.kb(op.q.n_in),
                ob=self.geo.steps(n),
                act_stride=self.geo.granules(op.q.n_in),
                out_stride=self.geo.acc_granules(op.q.n_out),
                group=ctx.group(op.q.name, self.geo.steps(n)),
            )

    def _load_scales(self) -> None:
        """Scales of all keys but the newest, part by part in the order of their use."""
        position = self.b.shift(self.b.reg(), self.position, -4)
        for part in self.parts:
            for which in "kv":
                self._load_scale(which, part, 0, position + 1, HELD_SCALES)

    def _load_scale(self, which: str, part: Part, granule: Value, beats: Value, source: Region) -> None:
        ctx = self.ctx
        address = ctx.pointers["scales"] + (ctx.records["scales"][which] + part.first * self.row)
        if isinstance(granule, Reg):
            address = self.b.alu(Op.ADD, self.b.reg(), address, granule)
        self.b.operator = "softmax"
        self.b.load(
            address,
            self._slice(f"P:{which}_scale", part, self.row),
            beats,
            rows=part.count,
            stride=self.row,
            offset=granule,
            row_stride=self.row,
            source=source,
            kind=LdKind.KV_SCALES,
        )

    def _keys_and_values(self) -> None:
        """Into the caches; then the newest scales."""
        cache_heads(self.ctx, self.op, self.position, self.layout.context)
        granule = self.b.shift(self.b.reg(), self.position, -4)
        for which in "kv":
            for part in self.parts:
                self._load_scale(which, part, granule, 1, SCALES)

    def _slice(self, region: str, part: Part, size: int) -> Region:
        """A part of a region that has `size` elements a key-value head."""
        return self.ctx[region].part(part.first * size, part.count * size)

    def _entries(self, region: str, part: Part) -> Rows:
        """Entries by key-value head and head of the group."""
        return Rows(self.ctx[region], self.group, 1, part.first * self.group)

    def _queries(self, part: Part) -> None:
        ctx, op, heads = self.ctx, self.op, part.count * self.group
        blocks = self.geo.granules(op.head_dim)
        narrow = ir.Linear(op.q.name, op.q.n_in, heads * op.head_dim, op.q.bias)
        first = part.first * self.group
        rows = At(self._slice("WQ", part, self.group * blocks))
        linear.project_heads(ctx, narrow, self._slice("ACC_Q", part, self.group * blocks), rows, heads, op.rope, first)
        to = At(self._slice("QQ", part, self.group * blocks), 0, blocks)
        quantise_heads(ctx, rows, heads, op.head_dim, Rows(ctx["EH"], 0, 1, first), to)

    def _scores(self, part: Part) -> None:
        group, blocks = self.group, self.geo.granules(self.op.head_dim)
        self.b.operator = "scores"
        self.b.matmul(
            self._slice("QQ", part, group * blocks),
            self._slice("SCORES", part, group * self.row),
            rows=group,
            kb=self.hb,
            ob=self.slots,
            act_stride=blocks,
            out_stride=self.row,
            times=part.count,
            act_out=group * blocks,
            out_out=group * self.row,
        )

    def _value_scales(self, part: Part) -> None:
        """The scales of v, ready to multiply probabilities."""
        self.b.operator = "softmax"
        shape, length = (part.count, 1, self.words), self.position + 1
        attention_math.value_scales(self.b, shape, length, self._scales("P:v_scale", part), self._scales("V_ROW", part))

    def _scales(self, region: str, part: Part) -> At:
        """A row of scales a key-value head."""
        return At(self._slice(region, part, self.row), self.row // self.geo.gpw)

    def _softmax(self, part: Part) -> None:
        group, row = self.group, self.row // self.geo.gpw
        rows = Scores(
            sums=At(self._slice("SCORES", part, group * self.row), group * row, row),
            k_scale=self._scales("P:k_scale", part),
            query=self._entries("EH", part),
            top=self._entries("MAX", part),
            total=self._entries("SUM", part),
        )
        region = self._slice("PLANES", part, 2 * group * self.row)
        planes = [At(region, 2 * group * self.row, 2 * self.row, plane * self.row) for plane in (0, 1)]
        self.b.operator = "softmax"
        shape, length = (part.count, group, self.words), self.position + 1
        attention_math.softmax(self.b, shape, length, rows, self._scales("V_ROW", part), planes)

    def _values(self, part: Part) -> None:
        rows, blocks = 2 * self.group, self.geo.granules(self.op.head_dim)
        self.b.operator = "values"
        self.b.matmul(
            self._slice("PLANES", part, rows * self.row),
            self._slice("PV", part, rows * blocks),
            rows=rows,
            kb=self.slots,
            ob=self.hb,
            act_stride=self.row,
            out_stride=blocks,
            mode=MxMode.SPLIT_K,
            times=part.count,
            act_out=rows * self.row,
            out_out=rows * blocks,
        )

    def _low(self, part: Part) -> None:
        """Sums of the low planes."""
        heads, blocks = part.count * self.group, self.geo.granules(self.op.head_dim)
        low = At(self._slice("PV", part, 2 * self.group * blocks), 0, 2 * self.step, self.step)
        to = At(self._slice("T", part, self.group * blocks), 0, self.step)
        self.b.operator = "values"
        attention_math.low_sums(self.b, (1, heads, self.step), self.op.head_dim, low, to)

    def _combine(self) -> None:
        """Values of both planes of all heads, combined and quantised."""
        ctx, op, step = self.ctx, self.op, self.step
        out, entry = ctx.rows("O", op.q.n_out), Rows(ctx["E"])
        high, low, to = At(ctx["PV"], 0, 2 * step), At(ctx["T"], 0, step), At(out.region, 0, step)
        total = Rows(ctx["SUM"], 0, 1)
        attention_math.combine(self.b, (1, op.heads, step), op.head_dim, high, low, total, to, entry)
        linear.quantise(ctx, out, op.q.n_out, "XQ", entry)
        ctx.operand = "XQ"


__all__ = ["SingleToken"]
