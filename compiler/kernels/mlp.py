"""Gated and plain feed-forward layers (operator 9); their down projection is a `Residual`."""

from hw.spec.isa import Func, Mul3

from .. import ir
from .builder import Rows
from .context import Context
from .linear import ABSMAX, matmul, project, quantise

GATED_SHIFT = 14
FUNCS = {"silu": Func.SILU, "gelu": Func.GELU, "quick_gelu": Func.QGELU}


def gated(ctx: Context, op: ir.GatedMlp) -> None:
    """silu(gate) * up of the rows in XQ, quantised into HQ with entries E."""
    hidden, width = ctx.rows("H", op.up.n_out), op.up.n_out
    matmul(ctx, op.gate, "XQ", ctx["GATE"])
    matmul(ctx, op.up, "XQ", ctx["UP"])
    project(ctx, op.gate, ctx["GATE"], hidden, func=Func.SILU)
    # The pass that reads entry E writes F: a row's reduction must not replace what its later words read.
    project(ctx, op.up, ctx["UP"], hidden, v=hidden, mul3=Mul3.V, sh3=GATED_SHIFT, w=Rows(ctx["F"], 1), **ABSMAX)
    _finish(ctx, width)


def plain(ctx: Context, op: ir.PlainMlp) -> None:
    """func(fc) of the rows in XQ, quantised into HQ with entries E."""
    matmul(ctx, op.fc, "XQ", ctx["UP"])
    project(ctx, op.fc, ctx["UP"], ctx.rows("H", op.fc.n_out), func=FUNCS[op.func], w=Rows(ctx["F"], 1), **ABSMAX)
    _finish(ctx, op.fc.n_out)


def _finish(ctx: Context, width: int) -> None:
    quantise(ctx, ctx.rows("H", width), width, "HQ", Rows(ctx["F"], 1))
    ctx.operand = "HQ"
    ctx.regions["E"], ctx.regions["F"] = ctx["F"], ctx["E"]
