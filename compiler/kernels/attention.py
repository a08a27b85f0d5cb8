"""Attention (operators 5 to 8 of docs/machine.md): projections, cache writes, scores, softmax, values.

Here: projections and cache writes; `attention_heads` has what happens between queries and cache.
"""

from collections.abc import Callable
from dataclasses import replace

from hw.spec import weights
from hw.spec.isa import Op, StKind, StMode

from .. import ir
from .attention_heads import CACHE, SCALES, Heads
from .attention_mask import MaskedHeads
from .attention_pipeline import PipelinedHeads, pipelined_granules
from .builder import At, Reg, Rows, Value
from .context import Context
from .expr import run, vec
from .linear import absmax, matmul, project_heads, quantise

WRITES_AT_ONCE = 4096
"""Memory slots of writes to one channel behind each other while it also reads weights again and again: about as long
as its FIFO lasts. A key's write has a row of its own and takes two; four of a value's share one."""


def keys_and_values(ctx: Context, op: ir.Attention, position: Value, context: int) -> None:
    """k and v of the tile's rows (int8 in XQ) into the caches at `position`."""
    matmul(ctx, op.k, "XQ", ctx["ACC_K"])
    matmul(ctx, op.v, "XQ", ctx["ACC_V"])
    cache_heads(ctx, op, position, context)


def cache_heads(ctx: Context, op: ir.Attention, position: Value, context: int) -> None:
    """k and v from accumulators into the caches, their scales first: they are read first."""
    entries = Rows(ctx["EH"], op.kv_heads, 1)
    for linear, which, rope in ((op.k, "k", op.rope), (op.v, "v", False)):
        rows = ctx.rows("W" + which, linear.n_out)
        project_heads(ctx, linear, ctx["ACC_" + which.upper()], rows, op.kv_heads, rope)
        store_scales(ctx, op, which, entries, position, context)
        store_heads(ctx, op, rows, which, entries, position, context)


def quantise_heads(
    ctx: Context, rows: At, heads: int, head_dim: int, entries: Rows, to: At, clip: bool = False
) -> None:
    """int8 heads of wide rows by the maxima in their entries; clip: what does not go to OB."""
    x = vec(replace(rows, mid=ctx.geo.words(head_dim))).scaled(entries.fin)
    ctx.run(head_dim, x.int8() if clip else x, heads=heads, to=to)


def store_scales(ctx: Context, op: ir.Attention, which: str, entries: Rows, position: Value, context: int) -> None:
    """Scales of a tile's keys or values, which have these entries."""
    geo, n, scales = ctx.geo, op.kv_heads, ctx["SB_scale_" + which]
    ctx.b.operator = "cache"
    run(ctx.b, (ctx.m, n, 1), 1, vec(entries.scale if which == "k" else entries.raw), to=At(scales, n, 1))
    ctx.b.store(
        StMode.SC,
        scales,
        SCALES,
        addr=ctx.pointers["scales"] + ctx.records["scales"][which],
        src_tok=n * geo.gpw,
        src_head=geo.gpw,
        pos=position,
        n_tok=ctx.m,
        n_head=n,
        stride_head=geo.cache_granules(context),
        kind=StKind.KV_SCALES,
    )


def store_heads(
    ctx: Context, op: ir.Attention, rows: At, which: str, entries: Rows, position: Value, context: int
) -> None:
    """A tile's wide keys or values, quantised by their entries, into the cache."""
    geo, n, hd, cache = ctx.geo, op.kv_heads, op.head_dim, ctx["SB_" + which]
    step, width = geo.words(hd), geo.words(op.k.n_out)
    ctx.b.operator = "cache"
    quantise_heads(ctx, rows, n, hd, entries, At(cache, width, step), clip=True)
    strides = weights.k_strides(hd) if which == "k" else weights.v_strides(context, geo.config.units)
    slots = hd // 16 * (2 if which == "k" else 4)  # of a token and head
    # Tokens of a block lie in one channel, whose weights must not wait until all their heads are written.
    together = n if not ctx.grouped(op.q.name) or ctx.m == 1 else max(1, WRITES_AT_ONCE // (16 * slots))
    head_beats = weights.cache_beats(hd, context, geo.config.units)
    for first in range(0, n, together):
        ctx.b.store(
            StMode.K if which == "k" else StMode.V,
            cache.part(first * step * geo.gpw, cache.size - first * step * geo.gpw),
            CACHE[which],
            addr=ctx.pointers["cache"] + (ctx.records["cache"][which] + first * head_beats),
            src_tok=width * geo.gpw,
            src_head=step * geo.gpw,
            pos=position,
            n_tok=ctx.m,
            n_head=min(together, n - first),
            n_gran=hd // 16,
            stride_head=head_beats,
            stride_slot=strides["slot"],
            stride_gran=strides["gran"],
        )


def _by_shape(
    ctx: Context,
    heads: MaskedHeads,
    pipeline: PipelinedHeads,
    mask: Reg,
    position: Reg,
    single: Callable[[Heads], None] | None,
) -> None:
    """Several tokens (neighbouring heads at once if there is room), a single one, or present slots only."""
    b = ctx.b
    with b.alternatives() as leave:
        with b.unless(Op.BNE, mask, 0):
            with b.unless(Op.BEQ, ctx.m, 1):
                if heads.op.kv_heads > 1:
                    with b.unless(Op.BLTU, pipelined_granules(ctx), heads.score_row):
                        slots = pipelined_granules(ctx) // ctx.geo.config.units
                        b.declare(heads.slots, slots)
                        b.declare(heads.score_row, slots * ctx.geo.config.units)
                        pipeline.pipelined()
                        leave()
                heads.one_by_one()
                leave()
            heads.together(single)
            leave()
        heads.masked(mask, position)


def queries(
    ctx: Context,
    op: ir.Attention,
    length: Value,
    slots: Reg,
    score_row: Reg,
    first_limit: Value,
    context: int,
    mask: Reg | None = None,
    each_head: Callable[[Heads, Reg], None] | None = None,
    single: Callable[[Heads], None] | None = None,
) -> None:
    """Attention of the tile's queries over the cache; leaves o quantised in XQ with entries E.

    length: keys; score_row: granules of a score row (slots * units); first_limit: keys the first token sees; mask:
    address of the table of present slots, or zero (causal attention has it, and then first_limit is position + 1).
    each_head: see `Heads.one_by_one`; without a mask only. single: see `Heads.together`.
    """
    geo, b = ctx.geo, ctx.b
    matmul(ctx, op.q, "XQ", ctx["ACC_Q"])
    rows = ctx.rows("WQ", op.q.n_out)
    project_heads(ctx, op.q, ctx["ACC_Q"], rows, op.heads, op.rope)
    blocks = geo.granules(op.head_dim)
    head_blocks = b.scaled(ctx.m, blocks) if isinstance(ctx.m, Reg) else ctx.m * blocks
    queries_at = At(ctx["QQ"], blocks, head_blocks)
    quantise_heads(ctx, rows, op.heads, op.head_dim, Rows(ctx["EH"], op.heads, 1), queries_at)
    shape = (ctx, op, length, slots, score_row, first_limit, context)
    heads = MaskedHeads(*shape)
    if mask is None or not isinstance(first_limit, Reg):
        heads.one_by_one(each_head)
    else:
        _by_shape(ctx, heads, PipelinedHeads(*shape), mask, first_limit + -1, single)
    out = ctx.rows("O", op.q.n_out)
    absmax(ctx, out, op.q.n_out, Rows(ctx["E"], 1))
    quantise(ctx, out, op.q.n_out, "XQ", Rows(ctx["E"], 1))
    ctx.operand = "XQ"
