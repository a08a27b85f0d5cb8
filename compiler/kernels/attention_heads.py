"""Scores, softmax and values (operators 6 to 8 of docs/machine.md) in two shapes.

A tile of several tokens takes one key-value head at a time: rows of its queries are [head][token] in QQ, probability
planes [token][head][plane]. A single token takes all heads together, [kv head][head of the group]: the vector unit's
latency is then paid once, not once a head.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from hw.spec import weights
from hw.spec.isa import LdKind, MxMode, Op, StreamFormat

from .. import ir
from . import attention_math
from .attention_math import Scores
from .builder import At, Reg, Rows, Value
from .context import Context
from .regions import Region, memory_region

ZERO = Reg(0)
CACHE = {"k": memory_region("keys"), "v": memory_region("values")}
SCALES = memory_region("scales")


@dataclass
class Strides:
    """Vector-pass strides over (outer, head of the group): outer is a token, or a key-value head."""

    outer: Value
    step: int
    """Keys that the next outer row sees more."""
    score: Value
    score_head: Value
    scale: Value
    """Words from one outer row's key scales to the next's; 0 when the rows share them."""
    entry: int
    out: int
    entry_at: Reg = ZERO
    """First head of the group."""
    sums: Rows | None = None
    """Entries of the sums, if not those of a single head's rows."""
    scale_at: Value = 0
    """Word of the first key-value head's scales."""
    scores: Region | None = None
    planes: Region | None = None
    score_at: Value = 0
    plane_at: Value = 0
    """Places of scores (words) and planes (blocks), if not the whole regions."""


class Heads:
    """Attention of one tile, queries in QQ and their maxima in EH; results in O."""

    def __init__(
        self,
        ctx: Context,
        op: ir.Attention,
        length: Value,
        slots: Reg,
        score_row: Reg,
        first_limit: Value,
        context: int,
    ) -> None:
        self.ctx, self.op, self.length, self.slots, self.score_row = ctx, op, length, slots, score_row
        self.first_limit, self.context = first_limit, context
        self.group, self.step, self.hb = op.heads // op.kv_heads, ctx.geo.words(op.head_dim), op.head_dim // 16
        self.cache_beats = weights.cache_beats(op.head_dim, context, ctx.geo.config.units)

    # --- a head at a time ------------------------------------------------------------------------------

    def one_by_one(self, each_head: Callable[["Heads", Reg], None] | None = None) -> None:
        """Several tokens: loop over key-value heads. each_head: code behind a head's, its scores still in place; gets
        the entry of the head's first query."""
        ctx, b, op, group = self.ctx, self.ctx.b, self.op, self.group
        self._row_registers()
        self.query_rows = self._scaled(ctx.m, group)
        strides = self._tile_strides()
        kv_at = b.set(b.reg(), ctx.pointers["cache"])
        scale_at = b.set(b.reg(), ctx.pointers["scales"])
        q_at = b.set(b.reg(), 0)
        with b.loop(b.set(b.reg(), op.kv_heads)):
            self._walk_queries(q_at, strides.entry_at)
            self._scores(kv_at, q_at, self.query_rows)
            self._load_scales(scale_at, 1)
            self._read_values(kv_at)
            self._softmax(strides, 1)
            self._values(b.scaled(self.query_rows, 2))
            self._combine(strides)
            b.set(kv_at, kv_at + self.cache_beats)
            b.set(scale_at, scale_at + ctx.geo.cache_granules(self.context))
            self._next_queries(strides, q_at, self.query_rows)
            b.fence()
            if each_head is not None:
                each_head(self, strides.entry_at + -group)

    def _tile_strides(self) -> "Strides":
        """Strides of a tile's rows [token][head of the group]; entries from register q_entry on."""
        ctx, b, op = self.ctx, self.ctx.b, self.op
        score_group = b.alu(Op.MUL, b.reg(), ctx.m, self.words) if self.group > 1 else 0
        entry = b.set(b.reg(), 0)
        return Strides(ctx.m, int(op.causal), self.words, score_group, 0, op.heads, ctx.geo.words(op.q.n_out), entry)

    def _walk_queries(self, q_at: Reg, entry_at: Reg) -> None:
        """How far `_next_queries` goes within a loop over the key-value heads."""
        tile, before = self.ctx["E"].size, (self.op.kv_heads - 1) * self.group
        self.ctx.b.walks(q_at, before * tile * self.ctx.geo.granules(self.op.head_dim))
        self.ctx.b.walks(entry_at, before)

    def _next_queries(self, strides: "Strides", q_at: Reg, rows: Reg) -> None:
        """Advance to the queries of the next key-value head; the sequencer has time for it while the units work."""
        b = self.ctx.b
        b.alu(Op.ADD, q_at, q_at, self._scaled(rows, self.ctx.geo.granules(self.op.head_dim)))
        b.set(strides.entry_at, strides.entry_at + self.group)

    # --- all heads together ----------------------------------------------------------------------------

    def together(self, single: Callable[["Heads"], None] | None = None) -> None:
        """One token: all scores, one softmax, all values. single: code behind the softmax, while scores are there."""
        ctx, b, op, group, heads = self.ctx, self.ctx.b, self.op, self.group, self.op.kv_heads
        self._row_registers()
        score_step = self._scaled(self.score_row, group)
        score_out = self._scaled(self.words, group) if ctx.geo.gpw > 1 else score_step
        strides = Strides(heads, 0, score_out, self.words, self.words, group, group * self.step)
        q_at, score_at = b.set(b.reg(), 0), b.set(b.reg(), 0)
        kv_at = b.set(b.reg(), ctx.pointers["cache"])
        b.fence_if_needed()
        self._load_scales(ctx.pointers["scales"], heads)
        with b.loop(b.set(b.reg(), heads), free_running=True):
            self._scores(kv_at, q_at, group, score_at)
            b.set(kv_at, kv_at + self.cache_beats)
            b.set(q_at, q_at + group * ctx.geo.granules(op.head_dim))
            b.alu(Op.ADD, score_at, score_at, score_step)
        self._softmax(strides, heads)
        plane_at, pv_at = b.set(b.reg(), 0), b.set(b.reg(), 0)
        if single is not None:
            single(self)
        b.set(kv_at, ctx.pointers["cache"])
        with b.loop(b.set(b.reg(), heads), free_running=True):
            self._read_values(kv_at)
            self._values(2 * group, plane_at, pv_at)
            b.set(kv_at, kv_at + self.cache_beats)
            b.alu(Op.ADD, plane_at, plane_at, self.plane_token)
            b.set(pv_at, pv_at + 2 * group * ctx.geo.granules(op.head_dim))
        self._combine(strides)

    # --- parts -----------------------------------------------------------------------------------------

    def _scaled(self, source: Reg, factor: int) -> Reg:
        return source if factor == 1 else self.ctx.b.scaled(source, factor)

    def _row_registers(self) -> None:
        """Strides of a row of scores and of its probability planes."""
        b, geo = self.ctx.b, self.ctx.geo
        self.words = self.score_row
        if geo.gpw > 1:
            self.words = b.shift(b.reg(), self.score_row, -geo.gpw_log2)
        self.plane_row = self._scaled(self.score_row, 2)
        self.plane_token = self._scaled(self.plane_row, self.group)

    def _scores(self, kv_at: Reg, q_at: Value, rows: Value, score_at: Value = 0) -> None:
        self._read_keys(kv_at)
        self._score_matrix(q_at, rows, score_at)

    def _read_keys(self, kv_at: Reg) -> None:
        b = self.ctx.b
        beats = b.scaled(self.slots, self.hb * weights.BLOCK_BEATS)
        b.operator = "scores"
        b.read(kv_at + self.ctx.records["cache"]["k"], beats, fmt=StreamFormat.RAW, source=CACHE["k"])

    def _score_matrix(self, q_at: Value, rows: Value, score_at: Value = 0, scores: Region | None = None) -> None:
        ctx, b = self.ctx, self.ctx.b
        b.operator = "scores"
        b.matmul(
            ctx["QQ"],
            scores or ctx["SCORES"],
            rows=rows,
            kb=self.hb,
            ob=self.slots,
            act_stride=ctx.geo.granules(self.op.head_dim),
            out_stride=self.score_row,
            act_offset=q_at,
            out_offset=score_at,
        )

    def _load_scales(self, scale_at: Reg, heads: int) -> None:
        stride = self.ctx.geo.cache_granules(self.context)
        self.ctx.b.operator = "softmax"
        for which in "kv":
            self.ctx.b.load(
                scale_at + self.ctx.records["scales"][which],
                self.ctx[f"P:{which}_scale"],
                self.score_row,
                rows=heads,
                stride=stride,
                row_stride=self.score_row,
                source=SCALES,
                kind=LdKind.KV_SCALES,
            )

    def _read_values(self, kv_at: Reg) -> None:
        ctx, b = self.ctx, self.ctx.b
        b.operator = "values"
        beats = b.scaled(self.slots, weights.BLOCK_BEATS)
        stride = weights.v_strides(self.context, ctx.geo.config.units)["gran"]
        b.read(
            kv_at + ctx.records["cache"]["v"],
            beats,
            rows=self.hb,
            stride=stride,
            fmt=StreamFormat.RAW,
            source=CACHE["v"],
        )

    def _values(self, rows: Value, plane_at: Value = 0, pv_at: Value = 0, planes: Region | None = None) -> None:
        ctx = self.ctx
        ctx.b.operator = "values"
        ctx.b.matmul(
            planes or ctx["PLANES"],
            ctx["PV"],
            rows=rows,
            kb=self.slots,
            ob=self.hb,
            act_stride=self.score_row,
            out_stride=ctx.geo.granules(self.op.head_dim),
            mode=MxMode.SPLIT_K,
            act_offset=plane_at,
            out_offset=pv_at,
        )

    def row_of(self, query: Reg, row: Value = 0, score_at: Value = 0, scale_at: Value = 0) -> Scores:
        """The scores of one row, whose query has that entry."""
        ctx = self.ctx
        return Scores(
            sums=At(ctx["SCORES"], 0, 0, score_at),
            k_scale=At(ctx["P:k_scale"], 0, 0, scale_at),
            query=Rows(ctx["EH"], 0, 1, query),
            top=Rows(ctx["MAX"], 0, 0, row),
            total=Rows(ctx["SUM"], 0, 0, row),
        )

    def _rows(self, s: Strides) -> Scores:
        """The rows of scores that a softmax works on."""
        ctx = self.ctx
        return Scores(
            sums=At(s.scores or ctx["SCORES"], s.score, s.score_head, s.score_at),
            k_scale=At(ctx["P:k_scale"], s.scale, 0, s.scale_at),
            query=Rows(ctx["EH"], s.entry, 1, s.entry_at),
            top=Rows(ctx["MAX"], self.group, 1),
            total=s.sums or Rows(ctx["SUM"], self.group, 1),
        )

    def _planes(self, s: Strides) -> Iterator[At]:
        """Places of the high and of the low planes."""
        b, planes, offset = self.ctx.b, s.planes or self.ctx["PLANES"], s.plane_at
        yield At(planes, self.plane_token, self.plane_row, offset)
        offset = self.score_row if offset == 0 else b.alu(Op.ADD, b.reg(), offset, self.score_row)
        yield At(planes, self.plane_token, self.plane_row, offset)

    def _softmax(self, s: Strides, heads: int) -> None:
        ctx, b = self.ctx, self.ctx.b
        b.operator = "softmax"
        scales, v_scale = At(ctx["P:v_scale"], s.scale, 0, s.scale_at), At(ctx["V_ROW"], s.scale)
        attention_math.value_scales(b, (heads, 1, self.words), self.length, scales, v_scale)
        shape = (s.outer, self.group, self.words)
        attention_math.softmax(b, shape, self.first_limit, self._rows(s), v_scale, self._planes(s), s.step)

    def _combine(self, s: Strides) -> None:
        """Values of both planes, combined into O."""
        ctx, b, hd, step, group = self.ctx, self.ctx.b, self.op.head_dim, self.step, self.group
        shape = (s.outer, group, step)
        b.operator = "values"
        out_at = s.entry_at if s.entry_at == ZERO else self._scaled(s.entry_at, step)
        high, low = (At(ctx["PV"], 2 * group * step, 2 * step, plane * step) for plane in (0, 1))
        half, total = At(ctx["T"], group * step, step), s.sums or Rows(ctx["SUM"], group, 1)
        attention_math.low_sums(b, shape, hd, low, half)
        attention_math.combine(b, shape, hd, high, half, total, At(ctx["O"], s.out, step, out_at))
