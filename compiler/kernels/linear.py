"""Quantise, linear layers and their vector passes (operators 1 and 2 of docs/machine.md)."""

from collections.abc import Callable
from dataclasses import replace

from .. import ir
from .builder import At, Rows, Value
from .context import Context
from .expr import Expr, Reduction, run, vec
from .regions import Region


def quantise(ctx: Context, source: At, width: int, target: str, entries: Rows) -> None:
    """int8 rows into OB region `target`; entries hold 127/absmax."""
    ctx.run(width, vec(source).scaled(entries.fin), to=ctx.rows(target, width))


def absmax(ctx: Context, source: At, width: int, entries: Rows) -> None:
    """Largest magnitude of VB or PB rows into their entries, with the quantisation scale."""
    ctx.run(width, vec(source).absmax(entries))


def matmul(ctx: Context, op: ir.Linear, act: str, acc: Region) -> None:
    """Stream the weights of `op` against the tile's int8 rows."""
    ctx.stream(op.name)
    ctx.b.operator = op.name
    multiply(ctx, op, ctx[act], acc, ctx.geo.steps(op.n_out), ctx.geo.acc_granules(op.n_out))


def multiply(ctx: Context, op: ir.Linear, act: Region, acc: Region, steps: int, out_stride: int) -> None:
    """So many steps of the stream of `op` against the tile's int8 rows, whose sums are out_stride granules apart."""
    geo, turns = ctx.geo, ctx.turns(op.name, steps)
    act_stride = geo.granules(op.n_in)
    together = turns.rows if isinstance(turns.rows, int) else 0  # several turns have a constant number of rows
    several = turns.n != 1
    ctx.b.matmul(
        act,
        acc,
        rows=turns.rows,
        kb=geo.kb(op.n_in),
        ob=steps,
        act_stride=act_stride,
        out_stride=out_stride,
        times=turns.n,
        act_out=together * act_stride if several else 0,
        out_out=together * out_stride if several else 0,
        last_rows=turns.last,
        group=ctx.group(op.name, steps),
        total=ctx.m if several else None,
    )


def project(
    ctx: Context,
    op: ir.Linear,
    acc: Region,
    target: At,
    *,
    heads: int = 1,
    residual: bool = False,
    scratch: At | None = None,
    length: Value | None = None,
    by_word: bool = False,
    first_word: int = 0,
    acc_row: int | None = None,
    then: Callable[[Expr], Expr] = lambda x: x,
    entries: Rows | None = None,
    reduce: Callable[[Expr, Rows], Reduction] = Expr.absmax,
) -> None:
    """Wide rows from accumulators: scale, bias, and what `then` adds; one pass, or two with a bias.

    target: rows (with heads > 1: of heads). scratch: where rows lie between two passes, if not there. A residual is
    added before the bias, which differs from after it only beyond int32. length: of the row, if not all of it counts.
    by_word: a single row, each word of it a row of the pass (no bias then). first_word: where these outputs start in
    the operator's parameters. acc_row: words of an accumulator row, if it holds more. entries: what `reduce` writes.
    """
    geo, b = ctx.geo, ctx.b
    b.operator = op.name
    width, words = op.n_out // heads, geo.words(op.n_out // heads)
    shape, count = (ctx.m, heads, words), width if length is None else length
    step = words if heads > 1 else 0
    if by_word:
        assert ctx.m == 1 and heads == 1 and not op.bias
        shape, count, step = (1, words, 1), geo.config.lanes if length is None else length, 1
    target = replace(target, mid=step) if step else target
    sums = At(acc, geo.acc_words(op.n_out) if acc_row is None else acc_row, step)
    scales = replace(ctx.parameter(f"{op.name}.words"), mid=step, offset=first_word)
    x = vec(sums).scaled(scales).scaled(Rows(ctx["E"], 1).scale, ctx.adjust(op.name))
    if residual:
        x = x + target
    if op.bias:
        between = scratch or target
        run(b, shape, count, x, to=between)
        x = vec(between) + replace(ctx.parameter(f"{op.name}.bias"), mid=step, offset=first_word)
    x = then(x)
    run(b, shape, count, x, to=target, reduce=reduce(x, entries) if entries else None)


def project_heads(ctx: Context, op: ir.Linear, acc: Region, rows: At, count: int, rope: bool, first: int = 0) -> None:
    """`count` wide heads in `rows`, rotated if asked, maxima of each (token, head) in EH. first: which the first is."""
    head_dim = op.n_out // count
    step, entries = ctx.geo.words(head_dim), Rows(ctx["EH"], count, 1, first)
    project(ctx, op, acc, rows, heads=count, first_word=first * step, entries=None if rope else entries)
    if rope:
        place = replace(rows, mid=step)
        x = vec(place).rotated(At(ctx["ROPE"], step))
        ctx.run(head_dim, x, heads=count, to=place, reduce=x.absmax(entries))


def residual(ctx: Context, op: ir.Residual) -> None:
    """The rows in OB region `ctx.operand` through the linear layer, added to the residual with its maxima."""
    matmul(ctx, op.linear, ctx.operand, ctx["ACC"])
    project(ctx, op.linear, ctx["ACC"], ctx.residual(), residual=True, entries=ctx.maxima())


__all__ = ["absmax", "matmul", "multiply", "project", "project_heads", "quantise", "residual"]
