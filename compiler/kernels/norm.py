"""RMSNorm and LayerNorm (operators 3 and 4 of docs/machine.md)."""

import math

from hw.spec.numerics import FRAC, encode_scale

from .. import ir
from .builder import At, Rows
from .context import Context
from .expr import vec
from .linear import quantise


def constants_of(op: ir.Norm) -> dict[str, int]:
    """adjust, epsilon and mean_word as `ref_model.quantise` defines them."""
    half = math.floor(math.log2(math.sqrt(op.width)))
    return {
        "adjust": -(FRAC + half),
        "epsilon": min(2**32 - 1, round(op.epsilon * op.width * 2 ** (2 * FRAC))),
        "mean_word": encode_scale(1 / op.width),
    }


def normalise(ctx: Context, op: ir.Norm, source: At, target: At, entries: Rows) -> None:
    """Wide normalised rows in `target` with their absolute maxima in `entries`."""
    constants, maxima, sums, x = constants_of(op), ctx.maxima(), Rows(ctx["S"], 1), vec(source)
    ctx.b.operator = op.name
    if op.kind == "layer":
        ctx.run(op.width, x.mean(sums, constants["mean_word"]))
        maxima, centred = Rows(ctx["C"], 1), x - sums.raw
        ctx.run(op.width, centred, to=target, reduce=centred.absmax(maxima))
        x = vec(target)
    ctx.run(op.width, x.inverse_norm(sums, maxima, constants["epsilon"]))
    x = x.scaled(ctx.parameter(f"{op.name}.words")).scaled(sums.fin, constants["adjust"])
    if op.kind == "layer":
        ctx.run(op.width, x, to=target)
        x = vec(target) + ctx.parameter(f"{op.name}.bias")
    ctx.run(op.width, x, to=target, reduce=x.absmax(entries))


def norm(ctx: Context, op: ir.Norm) -> None:
    """Residual rows, normalised and quantised into XQ with entries E."""
    target = ctx.rows("Y", op.width)
    normalise(ctx, op, ctx.residual(), target, Rows(ctx["E"], 1))
    quantise(ctx, target, op.width, "XQ", Rows(ctx["E"], 1))
