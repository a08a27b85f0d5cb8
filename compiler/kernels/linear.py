"""Quantise, linear layers and their vector passes (operators 1 and 2 of docs/machine.md)."""

from dataclasses import replace
from typing import Any

from hw.spec.isa import Add, Dst, Fin, Mul1, Mul2, Reduce, Row, Src

from .. import ir
from .builder import At, Rows, Value
from .context import Context
from .regions import Region

ABSMAX: dict[str, Any] = {"reduce": Reduce.ABSMAX, "fin": Fin.QRECIP}


def _source(rows: At) -> tuple[Src, dict[str, Any]]:
    """How a pass reads VB or PB rows as its source."""
    return (Src.V, {"v": rows}) if rows.region.buffer == "VB" else (Src.P, {"p": rows})


def quantise(ctx: Context, source: At, width: int, target: str, entries: Rows) -> None:
    """int8 rows into OB region `target`; entries hold 127/absmax."""
    src, operand = _source(source)
    ctx.b.vu_pass(
        (ctx.m, 1, ctx.geo.words(width)),
        width,
        d=ctx.rows(target, width),
        r0=entries,
        src=src,
        mul2=Mul2.R0,
        row0=Row.FIN,
        **operand,
    )


def absmax(ctx: Context, source: At, width: int, entries: Rows) -> None:
    """Largest magnitude of VB or PB rows into their entries, with the quantisation scale."""
    src, operand = _source(source)
    ctx.b.vu_pass((ctx.m, 1, ctx.geo.words(width)), width, w=entries, src=src, **ABSMAX, **operand)


def matmul(ctx: Context, op: ir.Linear, act: str, acc: Region) -> None:
    """Stream the weights of `op` against the tile's int8 rows."""
    geo = ctx.geo
    ctx.stream(op.name)
    ctx.b.operator = op.name
    ctx.b.matmul(
        ctx[act],
        acc,
        rows=ctx.m,
        kb=geo.kb(op.n_in),
        ob=geo.steps(op.n_out),
        act_stride=geo.granules(op.n_in),
        out_stride=geo.acc_granules(op.n_out),
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
    sh3: int = 0,
    length: Value | None = None,
    by_word: bool = False,
    first_word: int = 0,
    acc_row: int | None = None,
    **tail,
) -> None:
    """Wide rows from accumulators: scale, bias, and what `tail` adds to the last pass.

    target: rows (with heads > 1: of heads). Without a bias one pass; with one, the bias pass carries the tail. A
    residual is added before the bias, which differs from after it only beyond int32. length: of the row, if not all
    of it counts. by_word: a single row, each word of it a row of the pass (no bias then). first_word: where these
    outputs start in the operator's parameters. acc_row: words of an accumulator row, if it holds more.
    """
    geo, b = ctx.geo, ctx.b
    b.operator = op.name
    width: Value = op.n_out // heads
    words = geo.words(op.n_out // heads)
    step = words if heads > 1 else 0
    shape = (ctx.m, heads, words)
    first: dict[str, Any] = {
        "a": At(acc, geo.acc_words(op.n_out) if acc_row is None else acc_row, step),
        "p": replace(ctx.parameter(f"{op.name}.words"), mid=step, offset=first_word),
        "r0": Rows(ctx["E"], 1),
        "mul1": Mul1.P,
        "mul2": Mul2.R0,
        "row0": Row.SCALE,
        "src": Src.A,
        "ctl1": ctx.control(op.name, sh3),
    }
    target = replace(target, mid=step) if heads > 1 else target
    if by_word:
        assert ctx.m == 1 and heads == 1 and not op.bias
        shape, width = (1, words, 1), geo.config.lanes
        first |= {"a": replace(first["a"], mid=1), "p": replace(first["p"], mid=1)}
        target = replace(target, mid=1)
    width = width if length is None else length
    if residual:
        first |= {"v": target, "add": Add.V}
    if not op.bias:
        b.vu_pass(shape, width, d=target, **(first | tail))
        return
    between = scratch or target
    b.vu_pass(shape, width, d=between, **first)
    bias = replace(ctx.parameter(f"{op.name}.bias"), mid=step, offset=first_word)
    b.vu_pass(shape, width, v=between, p=bias, d=target, **({"src": Src.V, "add": Add.P} | tail))


def project_heads(ctx: Context, op: ir.Linear, acc: Region, rows: At, count: int, rope: bool, first: int = 0) -> None:
    """`count` wide heads in `rows`, rotated if asked, maxima of each (token, head) in EH. first: which the first is."""
    step, head_dim = ctx.geo.words(op.n_out // count), op.n_out // count
    entries = Rows(ctx["EH"], count, 1, first)
    tail: dict[str, Any] = {} if rope else dict(w=entries, **ABSMAX)
    project(ctx, op, acc, rows, heads=count, first_word=first * step, **tail)
    if rope:
        operand = At(rows.region, rows.out, step)
        ctx.b.vu_pass(
            (ctx.m, count, step),
            head_dim,
            v=operand,
            p=At(ctx["ROPE"], step),
            d=operand,
            w=entries,
            src=Src.V,
            mul1=Mul1.ROPE,
            **ABSMAX,
        )


def residual(ctx: Context, op: ir.Residual) -> None:
    """The rows in OB region `ctx.operand` through the linear layer, added to the residual with its maxima."""
    matmul(ctx, op.linear, ctx.operand, ctx["ACC"])
    project(ctx, op.linear, ctx["ACC"], ctx.residual(), residual=True, w=ctx.maxima(), **ABSMAX)


__all__ = ["ABSMAX", "Dst", "absmax", "matmul", "project", "project_heads", "quantise", "residual"]
