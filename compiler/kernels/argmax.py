"""The greedy choice on the machine (operator 13 of docs/machine.md): number of the largest logit, ties to the first.

Each slice of the vocabulary gives its largest logit and the place of it; then slices are compared the same way. With m
the maximum, (x - m) * HUGE, saturating, is 0 where x is the maximum and below any place elsewhere; places count down to
1, so the largest place among the maxima is the first of them.
"""

from typing import Any

from hw.spec.isa import Add, Func, LdKind, Mul1, Mul3, Reduce, Row, Src, StKind, StMode
from hw.spec.numerics import PROB_MAX, pack_scale

from .. import ir
from ..layout import Layout
from . import linear
from .builder import At, Reg, Rows, Value
from .context import Context
from .regions import memory_region

HUGE = pack_scale((1 << 30) // PROB_MAX, 0)
"""Scale word that turns PROB_MAX into nearly 2**30: more than any place."""
TOKEN = memory_region("token")


class Choice:
    """One entry BEST and one entry PLACE a slice; `slice_at` is the register with the slice's number."""

    def __init__(self, ctx: Context, layout: Layout) -> None:
        self.ctx, self.b, self.slices, self.lanes = ctx, ctx.b, layout.head, ctx.geo.config.lanes
        self.words, self.token = layout.head.granules // ctx.geo.gpw, layout.aux["token"].base
        self.places = layout.aux["head.places"].base

    def prepare(self) -> None:
        """A word of HUGE values."""
        ctx, b = self.ctx, self.b
        b.vu_pass(
            (1, 1, 1),
            1,
            r0=Rows(ctx["BEST"]),
            w=Rows(ctx["TOP"]),
            imm0=0,
            src=Src.R0,
            mul1=Mul1.IMM,
            func=Func.EXP2,
            reduce=Reduce.MAX,
        )
        b.vu_pass((1, 1, 1), self.lanes, r0=Rows(ctx["TOP"]), d=At(ctx["HUGE"]), imm0=HUGE, src=Src.R0, mul1=Mul1.IMM)

    def best(self, number: Reg) -> dict[str, Any]:
        """What the pass that makes the logits does besides."""
        return {"w": Rows(self.ctx["BEST"], 0, 0, number), "reduce": Reduce.MAX}

    def distance(self, head: ir.Linear, number: Reg) -> None:
        """The slice's logits once more, as distances from their maximum."""
        linear.project(
            self.ctx,
            head,
            self.ctx["ACC_HEAD"],
            At(self.ctx["DISTANCE"]),
            by_word=True,
            r1=Rows(self.ctx["BEST"], 0, 0, number),
            row1=Row.RAW,
            add=Add.SUB_R1,
            v=At(self.ctx["HUGE"]),
            mul3=Mul3.V,
        )

    def place(self, number: Reg, places: Reg, length: Value) -> None:
        """First place of the slice's maximum; its scale words are not needed any more."""
        ctx, b, table = self.ctx, self.b, self.ctx["P:head.words"]
        b.load(places, table, self.slices.granules, kind=LdKind.TABLES)
        b.vu_pass(
            (1, 1, self.words),
            length,
            v=At(ctx["DISTANCE"]),
            p=At(table),
            w=Rows(ctx["PLACE"], 0, 0, number),
            src=Src.V,
            add=Add.P,
            reduce=Reduce.MAX,
        )

    def store(self) -> None:
        """The first slice with the largest maximum, and what its place says."""
        ctx, b, n, table = self.ctx, self.b, self.slices.count, self.ctx["P:head.words"]
        b.vu_pass((1, n, 1), 1, r0=Rows(ctx["BEST"], 0, 1), w=Rows(ctx["TOP"]), src=Src.R0, reduce=Reduce.MAX, level=1)
        b.vu_pass(
            (n, 1, 1),
            1,
            r0=Rows(ctx["BEST"], 1),
            r1=Rows(ctx["TOP"]),
            v=At(ctx["HUGE"]),
            d=At(ctx["DISTANCE"], 1),
            src=Src.R0,
            row1=Row.RAW,
            add=Add.SUB_R1,
            mul3=Mul3.V,
        )
        b.vu_pass(
            (1, n, 1),
            1,
            r0=Rows(ctx["PLACE"], 0, 1),
            v=At(ctx["DISTANCE"], 0, 1),
            w=Rows(ctx["TOP"]),
            src=Src.R0,
            add=Add.V,
            reduce=Reduce.MAX,
            level=1,
        )
        b.load(self.places, table, 1, kind=LdKind.TABLES)
        b.vu_pass(
            (1, 1, 1), 1, p=At(table), r1=Rows(ctx["TOP"]), d=At(ctx["LOGITS"]), src=Src.P, row1=Row.RAW, add=Add.SUB_R1
        )
        b.store(StMode.LIN, ctx["LOGITS"], TOKEN, addr=self.token, kind=StKind.RESULTS)


__all__ = ["Choice"]
