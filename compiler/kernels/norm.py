"""RMSNorm and LayerNorm (operators 3 and 4 of docs/machine.md)."""

import math

from hw.spec.isa import Add, Fin, Mul1, Mul2, Reduce, Row, Src
from hw.spec.numerics import FRAC, encode_scale

from .. import ir
from .builder import At, Rows
from .context import Context
from .linear import ABSMAX, quantise


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
    constants = constants_of(op)
    b, shape = ctx.b, (ctx.m, 1, ctx.geo.words(op.width))
    b.operator = op.name
    maxima, sums = ctx.maxima(), Rows(ctx["S"], 1)
    if op.kind == "layer":
        b.vu_pass(
            shape, op.width, v=source, w=sums, imm1=constants["mean_word"], src=Src.V, reduce=Reduce.SUM, fin=Fin.MEAN
        )
        maxima = Rows(ctx["C"], 1)
        b.vu_pass(
            shape, op.width, v=source, r1=sums, d=target, w=maxima, src=Src.V, row1=Row.RAW, add=Add.SUB_R1, **ABSMAX
        )
        source = target
    b.vu_pass(
        shape,
        op.width,
        v=source,
        r0=maxima,
        w=sums,
        imm1=constants["epsilon"],
        src=Src.V,
        row0=Row.RAW,
        reduce=Reduce.SUMSQ,
        fin=Fin.RSQRT,
    )
    last = dict(w=entries, **ABSMAX)
    b.vu_pass(
        shape,
        op.width,
        v=source,
        p=ctx.parameter(f"{op.name}.words"),
        r0=sums,
        d=target,
        src=Src.V,
        mul1=Mul1.P,
        mul2=Mul2.R0,
        row0=Row.FIN,
        adj2=constants["adjust"],
        **(last if op.kind == "rms" else {}),
    )
    if op.kind == "layer":
        b.vu_pass(shape, op.width, v=target, p=ctx.parameter(f"{op.name}.bias"), d=target, src=Src.V, add=Add.P, **last)


def norm(ctx: Context, op: ir.Norm) -> None:
    """Residual rows, normalised and quantised into XQ with entries E."""
    target = ctx.rows("Y", op.width)
    normalise(ctx, op, ctx.residual(), target, Rows(ctx["E"], 1))
    quantise(ctx, target, op.width, "XQ", Rows(ctx["E"], 1))
