"""The greedy choice on the machine (operator 13 of docs/machine.md): number of the largest logit, ties to the first.

Each slice of the vocabulary gives its largest logit and the place of it; then slices are compared the same way. With m
the maximum, (x - m) * HUGE, saturating, is 0 where x is the maximum and below any place elsewhere; places count down to
1, so the largest place among the maxima is the first of them.
"""

from hw.spec.isa import LdKind, StKind, StMode
from hw.spec.numerics import PROB_MAX, pack_scale

from .. import ir
from ..layout import Layout
from . import linear
from .builder import At, Reg, Rows, Value
from .context import Context
from .expr import Expr, run, vec, zero
from .regions import memory_region

HUGE = pack_scale((1 << 30) // PROB_MAX, 0)
"""Scale word that turns PROB_MAX into nearly 2**30: more than any place."""
TOKEN = memory_region("token")


class Choice:
    """One entry BEST and one entry PLACE a slice; `number` is the register with the slice's number."""

    def __init__(self, ctx: Context, layout: Layout) -> None:
        self.ctx, self.b, self.slices, self.lanes = ctx, ctx.b, layout.head, ctx.geo.config.lanes
        self.words, self.token = layout.head.granules // ctx.geo.gpw, layout.aux["token"].base
        self.places = layout.aux["head.places"].base

    def prepare(self) -> None:
        """A word of HUGE values."""
        top = Rows(self.ctx["TOP"])
        run(self.b, (1, 1, 1), 1, zero(Rows(self.ctx["BEST"])).exp2().max(top))
        run(self.b, (1, 1, 1), self.lanes, vec(top.raw).scaled(HUGE), to=At(self.ctx["HUGE"]))

    def best(self, number: Reg) -> Rows:
        """Entry of the slice's largest logit."""
        return Rows(self.ctx["BEST"], 0, 0, number)

    def distance(self, head: ir.Linear, number: Reg) -> None:
        """The slice's logits once more, as distances from their maximum."""
        sums, to, top = self.ctx["ACC_HEAD"], At(self.ctx["DISTANCE"]), self.best(number).raw
        linear.project(self.ctx, head, sums, to, by_word=True, then=lambda x: self._far(x - top))

    def _far(self, distances: Expr) -> Expr:
        """Distances other than 0 beyond any place."""
        return distances.times(At(self.ctx["HUGE"]))

    def place(self, number: Reg, places: Reg, length: Value) -> None:
        """First place of the slice's maximum; its scale words are not needed any more."""
        ctx, table = self.ctx, self.ctx["P:head.words"]
        self.b.load(places, table, self.slices.granules, kind=LdKind.TABLES)
        found = vec(At(ctx["DISTANCE"])) + At(table)
        run(self.b, (1, 1, self.words), length, found.max(Rows(ctx["PLACE"], 0, 0, number)))

    def store(self) -> None:
        """The first slice with the largest maximum, and what its place says."""
        ctx, b, n, table = self.ctx, self.b, self.slices.count, self.ctx["P:head.words"]
        top, distance = Rows(ctx["TOP"]), ctx["DISTANCE"]
        run(b, (1, n, 1), 1, vec(Rows(ctx["BEST"], 0, 1).raw).max(top, level=1))
        run(b, (n, 1, 1), 1, self._far(vec(Rows(ctx["BEST"], 1).raw) - top.raw), to=At(distance, 1))
        run(b, (1, n, 1), 1, (vec(Rows(ctx["PLACE"], 0, 1).raw) + At(distance, 0, 1)).max(top, level=1))
        b.load(self.places, table, 1, kind=LdKind.TABLES)
        run(b, (1, 1, 1), 1, vec(At(table)) - top.raw, to=At(ctx["LOGITS"]))
        b.store(StMode.LIN, ctx["LOGITS"], TOKEN, addr=self.token, kind=StKind.RESULTS)


__all__ = ["Choice"]
