"""Attention (operators 5 to 8 of docs/machine.md): projections, cache writes, scores, softmax, values.

One key-value head at a time: its query heads' rows are [head][token] in QQ, probability planes are
[token][head][plane] in PLANES, so that every stride is a register or a constant.
"""

from hw.spec import weights
from hw.spec.isa import (Add, Fin, Func, Mul1, Mul2, Mul3, MxMode, Op, Reduce, Row, Src, StMode, StreamFormat, Tap, Dst)
from hw.spec.numerics import encode_scale

from .. import ir
from .builder import At, Reg, Rows, Value
from .context import Context
from .linear import ABSMAX, absmax, matmul, project, quantise
from .regions import memory_region

KEY_ADJUST, QUERY_ADJUST = 14, 16
VALUE_REFERENCE = encode_scale(2.0**-21)
CACHE, SCALES = memory_region("cache"), memory_region("scales")


def keys_and_values(ctx: Context, op: ir.Attention, position: Value, context: int) -> None:
    """k and v of the tile's rows (int8 in XQ) into the caches at `position`."""
    matmul(ctx, op.k, "XQ", ctx["ACC_K"])
    matmul(ctx, op.v, "XQ", ctx["ACC_V"])
    for linear, acc, rope in ((op.k, "ACC_K", op.rope), (op.v, "ACC_V", False)):
        which = "k" if linear is op.k else "v"
        rows = ctx.rows("W" + which, linear.n_out)
        _heads(ctx, op, linear, acc, rows, op.kv_heads, rope)
        _store_cache(ctx, op, rows, which, position, context)


def _heads(ctx: Context, op: ir.Attention, linear: ir.Linear, acc: str, rows: At, heads: int, rope: bool) -> None:
    """Wide heads in `rows`, rotated if asked, maxima of each (token, head) in EH."""
    step = ctx.geo.words(op.head_dim)
    entries = Rows(ctx["EH"], heads, 1)
    tail = {} if rope else dict(w=entries, **ABSMAX)
    project(ctx, linear, ctx[acc], rows, heads=heads, **tail)
    if rope:
        operand = At(rows.region, rows.out, step)
        ctx.b.vu_pass((ctx.m, heads, step), op.head_dim, v=operand, p=At(ctx["ROPE"], step), d=operand, w=entries,
                      src=Src.V, mul1=Mul1.ROPE, **ABSMAX)


def _store_cache(ctx: Context, op: ir.Attention, rows: At, which: str, position: Value, context: int) -> None:
    geo, b, n, hd = ctx.geo, ctx.b, op.kv_heads, op.head_dim
    step, width = geo.words(hd), geo.words(op.k.n_out)
    entries, cache, scales = Rows(ctx["EH"], n, 1), ctx["SB_" + which], ctx["SB_scale_" + which]
    b.vu_pass((ctx.m, n, step), hd, v=At(rows.region, rows.out, step), d=At(cache, width, step), r0=entries,
              src=Src.V, mul2=Mul2.R0, row0=Row.FIN, clip8=1)
    strides = weights.k_strides(hd) if which == "k" else weights.v_strides(context, geo.config.units)
    b.store(StMode.K if which == "k" else StMode.V, cache, CACHE,
            addr=ctx.pointers["cache"] + ctx.records["cache"][which], src_tok=width * geo.gpw, src_head=step * geo.gpw,
            pos=position, n_tok=ctx.m, n_head=n, n_gran=hd // 16,
            stride_head=weights.cache_beats(hd, context, geo.config.units), stride_slot=strides["slot"],
            stride_gran=strides["gran"])
    b.vu_pass((ctx.m, n, 1), 1, d=At(scales, n, 1), r0=entries, src=Src.R0,
              row0=Row.SCALE if which == "k" else Row.RAW)
    b.store(StMode.SC, scales, SCALES, addr=ctx.pointers["scales"] + ctx.records["scales"][which],
            src_tok=n * geo.gpw, src_head=geo.gpw, pos=position, n_tok=ctx.m, n_head=n,
            stride_head=geo.cache_granules(context))


def queries(ctx: Context, op: ir.Attention, length: Value, slots: Reg, score_row: Reg, first_limit: Value,
            context: int) -> None:
    """Attention of the tile's queries over the cache; leaves o quantised in XQ with entries E.

    length: keys; score_row: granules of a score row (slots * units); first_limit: keys the first token sees.
    """
    geo, b = ctx.geo, ctx.b
    matmul(ctx, op.q, "XQ", ctx["ACC_Q"])
    rows = ctx.rows("WQ", op.q.n_out)
    _heads(ctx, op, op.q, "ACC_Q", rows, op.heads, op.rope)
    step, blocks = geo.words(op.head_dim), geo.granules(op.head_dim)
    head_blocks = b.scaled("_g", ctx.m, blocks) if isinstance(ctx.m, Reg) else ctx.m * blocks
    b.vu_pass((ctx.m, op.heads, step), op.head_dim, v=At(rows.region, rows.out, step),
              d=At(ctx["QQ"], blocks, head_blocks), r0=Rows(ctx["EH"], op.heads, 1),
              src=Src.V, mul2=Mul2.R0, row0=Row.FIN)
    _Heads(ctx, op, length, slots, score_row, first_limit, context).emit()
    out = ctx.rows("O", op.q.n_out)
    absmax(ctx, out, op.q.n_out, Rows(ctx["E"], 1))
    quantise(ctx, out, op.q.n_out, "XQ", Rows(ctx["E"], 1))
    ctx.operand = "XQ"


class _Heads:
    """The loop over key-value heads."""

    TEMPORARIES = ("kv_at", "scale_at", "q_at", "q_step", "q_entry", "o_at", "query_rows", "plane_rows", "score_group",
                   "plane_row", "plane_token", "score_words")

    def __init__(self, ctx, op, length, slots, score_row, first_limit, context) -> None:
        self.ctx, self.op, self.length, self.slots, self.score_row = ctx, op, length, slots, score_row
        self.first_limit, self.context = first_limit, context
        self.group = op.heads // op.kv_heads
        self.step = ctx.geo.words(op.head_dim)

    def _scaled(self, name: str, source: Reg, factor: int) -> Reg:
        return source if factor == 1 else self.ctx.b.scaled(name, source, factor)

    def _strides(self) -> None:
        """Registers that depend on the tile's tokens and on the number of keys."""
        b, geo, group = self.ctx.b, self.ctx.geo, self.group
        self.rows = self._scaled("query_rows", self.ctx.m, group)
        self.plane_rows = self._scaled("plane_rows", self.rows, 2)
        words = self.score_row
        if geo.gpw > 1:
            words = b.shift(b.reg("score_words"), self.score_row, -geo.gpw_log2)
        self.words = words
        self.plane_row = self._scaled("plane_row", self.score_row, 2)
        self.plane_token = self._scaled("plane_token", self.plane_row, group)
        self.score_group: Value = 0
        if group > 1:
            self.score_group = b.alu(Op.MUL, b.reg("score_group"), self.ctx.m, words)

    def emit(self) -> None:
        ctx, b, op = self.ctx, self.ctx.b, self.op
        self._strides()
        self.kv_at = b.set(b.reg("kv_at"), ctx.pointers["cache"])
        self.scale_at = b.set(b.reg("scale_at"), ctx.pointers["scales"])
        self.q_at, self.q_entry, self.o_at = (b.set(b.reg(n), 0) for n in ("q_at", "q_entry", "o_at"))
        self.q_step = self._scaled("q_step", self.rows, ctx.geo.granules(op.head_dim))
        count = b.set(b.reg("_left"), op.kv_heads)
        with b.loop(count):
            self._head()
            b.fence()
            cache = weights.cache_beats(op.head_dim, self.context, ctx.geo.config.units)
            b.set(self.kv_at, self.kv_at + cache)
            b.set(self.scale_at, self.scale_at + ctx.geo.cache_granules(self.context))
            b.alu(Op.ADD, self.q_at, self.q_at, self.q_step)
            b.set(self.q_entry, self.q_entry + self.group)
            b.set(self.o_at, self.o_at + self.group * self.step)
        b.free(*self.TEMPORARIES)

    def _head(self) -> None:
        ctx, b, op = self.ctx, self.ctx.b, self.op
        records, hb = ctx.records, op.head_dim // 16
        strides = weights.v_strides(self.context, ctx.geo.config.units)
        beats = b.scaled("_g", self.slots, hb * weights.BLOCK_BEATS)
        b.read(self.kv_at + records["cache"]["k"], beats, fmt=StreamFormat.RAW, source=CACHE)
        b.matmul(ctx["QQ"], ctx["SCORES"], rows=self.rows, kb=hb, ob=self.slots,
                 act_stride=ctx.geo.granules(op.head_dim), out_stride=self.score_row, act_offset=self.q_at)
        b.load(self.scale_at + records["scales"]["k"], ctx["P:k_scale"], self.score_row, source=SCALES)
        b.load(self.scale_at + records["scales"]["v"], ctx["P:v_scale"], self.score_row, source=SCALES)
        beats = b.scaled("_g", self.slots, weights.BLOCK_BEATS)
        b.read(self.kv_at + records["cache"]["v"], beats, rows=hb, stride=strides["gran"], fmt=StreamFormat.RAW,
               source=CACHE)
        self._softmax()
        b.matmul(ctx["PLANES"], ctx["PV"], rows=self.plane_rows, kb=self.slots, ob=hb, act_stride=self.score_row,
                 out_stride=ctx.geo.granules(op.head_dim), mode=MxMode.SPLIT_K)
        self._combine()

    def _score(self) -> dict:
        """Operands and control of the pass that turns accumulators into log2 scores."""
        ctx = self.ctx
        return dict(step=1 if self.op.causal else 0, a=At(ctx["SCORES"], self.words, self.score_group),
                    p=At(ctx["P:k_scale"]), r0=Rows(ctx["EH"], self.op.heads, 1, self.q_entry), src=Src.A,
                    mul1=Mul1.P, adj1=KEY_ADJUST, mul2=Mul2.R0, row0=Row.SCALE, adj2=QUERY_ADJUST)

    def _softmax(self) -> None:
        ctx, b = self.ctx, self.ctx.b
        shape = (ctx.m, self.group, self.words)
        top, total = Rows(ctx["MAX"], self.group, 1), Rows(ctx["SUM"], self.group, 1)
        b.vu_pass((1, 1, self.words), self.length, p=At(ctx["P:v_scale"]), d=At(ctx["V_ROW"]), imm0=VALUE_REFERENCE,
                  src=Src.P, mul1=Mul1.IMM, adj1=-15)
        b.vu_pass(shape, self.first_limit, w=top, reduce=Reduce.MAX, **self._score())
        for plane, dst in enumerate((Dst.OBH, Dst.OBL)):
            sums = dict(w=total, tap=Tap.FUNC, reduce=Reduce.SUM, fin=Fin.RECIP) if plane == 0 else {}
            offset = self.score_row if plane else 0
            b.vu_pass(shape, self.first_limit, v=At(ctx["V_ROW"]), r1=top, row1=Row.RAW, add=Add.SUB_R1,
                      func=Func.EXP2, mul3=Mul3.V, sh3=15, dst=dst,
                      d=At(ctx["PLANES"], self.plane_token, self.plane_row, offset), **sums, **self._score())

    def _combine(self) -> None:
        ctx, b, hd, step, group = self.ctx, self.ctx.b, self.op.head_dim, self.step, self.group
        shape = (ctx.m, group, step)
        low = At(ctx["PV"], 2 * group * step, 2 * step, step)
        high = At(ctx["PV"], 2 * group * step, 2 * step)
        half = At(ctx["T"], group * step, step)
        b.vu_pass(shape, hd, a=low, d=half, imm0=encode_scale(1 / 16), src=Src.A, mul1=Mul1.IMM)
        b.vu_pass(shape, hd, a=high, v=half, r1=Rows(ctx["SUM"], group, 1), imm0=encode_scale(16.0), src=Src.A,
                  mul1=Mul1.IMM, add=Add.V, mul3=Mul3.R1, row1=Row.FIN, adj2=-22,
                  d=At(ctx["O"], ctx.geo.words(self.op.q.n_out), step, self.o_at))
