"""Gated and plain feed-forward layers (operator 9); their down projection is a `Residual`."""

from dataclasses import dataclass, replace
from functools import partial

from hw.spec.config import BLOCK
from hw.spec.isa import Func

from .. import ir
from .builder import At, Rows
from .context import Context
from .expr import Expr, run, vec
from .linear import matmul, multiply, project, quantise
from .regions import Region

GATED_SHIFT = 14
FUNCS = {"silu": Func.SILU, "gelu": Func.GELU, "quick_gelu": Func.QGELU}


@dataclass(frozen=True)
class Slice:
    """Outputs of up that one pass takes: `width` from output `first` on. region: where their sums are."""

    first: int
    width: int
    region: Region
    row: int
    """Granules of an accumulator row of it."""
    at: int = 0
    """Granule of the row at which the outputs start."""


def gated(ctx: Context, op: ir.GatedMlp) -> None:
    """silu(gate) * up of the rows in XQ, quantised into HQ with entries E.

    up comes in slices, so that the vector unit is done with all but the last when the matrix units are.
    """
    b, geo, width = ctx.b, ctx.geo, op.up.n_out
    hidden = ctx.rows("H", width)
    matmul(ctx, op.gate, "XQ", ctx["GATE"])
    slices = _up_slices(ctx, op)
    further = [part for part in slices if not part.region.overlaps(ctx["GATE"])]  # than those in gate's last step
    grouped, joint = ctx.grouped(op.up.name), len(geo.streams([op])) == 1
    if not grouped:
        ctx.stream(op.up.name)
    for section, part in enumerate(further, int(joint)):
        if grouped:
            ctx.stream(op.up.name, section)
        b.operator = op.up.name
        multiply(ctx, op.up, ctx["XQ"], part.region, part.row // geo.config.units, part.row)
    project(ctx, op.gate, ctx["GATE"], hidden, then=partial(Expr.apply, func=Func.SILU))
    maxima = Rows(ctx["F_SLICES"], 1)
    for number, part in enumerate(slices):
        narrow, rows = replace(op.up, n_out=part.width), replace(hidden, offset=geo.words(part.first))
        # The pass that reads entry E writes others: a row's reduction must not replace what its later words read.
        project(
            ctx,
            narrow,
            part.region.part(part.at, part.region.size - part.at),
            rows,
            acc_row=part.row // geo.gpw,
            first_word=geo.words(part.first),
            then=partial(Expr.times, other=rows, shift=GATED_SHIFT),
            entries=replace(maxima, offset=number * _tile(ctx)),
        )
    parts = replace(maxima, mid=_tile(ctx))
    run(b, (ctx.m, len(slices), 1), 1, vec(parts.raw).absmax(Rows(ctx["F"], 1), level=1))
    _finish(ctx, width)


def _tile(ctx: Context) -> int:
    """Most rows of a tile."""
    return ctx["F"].size


def _up_slices(ctx: Context, op: ir.GatedMlp) -> list[Slice]:
    """up's outputs in gate's last step, if they share a stream; then slices of the further steps."""
    geo, units, n, tile = ctx.geo, ctx.geo.config.units, op.up.n_out, _tile(ctx)
    joint = len(geo.streams([op])) == 1
    before, per_step = geo.steps(op.gate.n_out), units * BLOCK
    found, done = list[Slice](), 0
    if joint and (done := min(n, before * per_step - op.gate.n_out)):
        found.append(Slice(0, done, ctx["GATE"], before * units, op.gate.n_out // BLOCK))
    base = 0
    for steps in ir.up_slices(geo.steps(n - done) if n > done else 0, ctx.grouped(op.up.name)):
        width = min(n - done, steps * per_step)
        found.append(Slice(done, width, ctx["UP"].part(tile * base * units, tile * steps * units), steps * units))
        done, base = done + width, base + steps
    return found


def plain(ctx: Context, op: ir.PlainMlp) -> None:
    """func(fc) of the rows in XQ, quantised into HQ with entries E."""
    matmul(ctx, op.fc, "XQ", ctx["UP"])
    activate(ctx, op.fc, ctx["UP"], ctx.rows("H", op.fc.n_out), op.func, Rows(ctx["F"], 1))
    _finish(ctx, op.fc.n_out)


def activate(ctx: Context, op: ir.Linear, acc: Region, hidden: At, func: str, entries: Rows) -> None:
    """func of a linear layer's outputs, with their maxima."""
    project(ctx, op, acc, hidden, then=partial(Expr.apply, func=FUNCS[func]), entries=entries)


def _finish(ctx: Context, width: int) -> None:
    quantise(ctx, ctx.rows("H", width), width, "HQ", Rows(ctx["F"], 1))
    ctx.operand = "HQ"
    ctx.regions["E"], ctx.regions["F"] = ctx["F"], ctx["E"]
