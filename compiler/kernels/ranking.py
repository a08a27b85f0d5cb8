"""Ranking of a segment's tokens by the attention that the last one gives them (operator 11 of docs/machine.md), and the
lists of those that go on.

`AttentionScores` adds the shares of the last token, a chunk of its own, over the heads of a layer. `Ranking` adds
2**30 to the scores of tokens that are not visual, finds the threshold as `select.Survivors` does, and walks over the
survivors: the address of a survivor's residual row (table `rows`) and of its RoPE row (table `rope`) go to the next
segment's lists; table `rope` is compacted with them, for a ranking that follows.
"""

from hw.spec.config import GRANULE_LANES
from hw.spec.isa import LdKind, Op, StKind, StMode

from ..layout import Layout
from .attention_heads import Heads
from .attention_math import add_shares
from .builder import At, Reg, Rows
from .context import Context
from .expr import run, vec, zero
from .regions import memory_region
from .select import Survivors

RANKING = memory_region("ranking")
LISTS = memory_region("lists")


class AttentionScores:
    """Scores of a single token's attention, in row `scores` of the ranking record."""

    def __init__(self, ctx: Context, layout: Layout) -> None:
        self.ctx = ctx
        self.address = layout.aux["ranking"].base + layout.ranking["scores"]

    def add_up(self, heads: Heads) -> None:
        """Behind the softmax of `Heads.together`."""
        ctx, b = self.ctx, self.ctx.b
        run(b, (1, 1, heads.words), heads.length, zero(Rows(ctx["E"])), to=At(ctx["SB_SCORES"]))
        self._store(heads)
        scores, entry, scales = (b.set(b.reg(), 0) for _ in range(3))
        with b.loop(b.set(b.reg(), heads.op.kv_heads)):
            with b.loop(b.set(b.reg(), heads.group)):
                self._add(heads, scores, entry, scales)
                b.alu(Op.ADD, scores, scores, heads.words)
                b.set(entry, entry + 1)
            b.alu(Op.ADD, scales, scales, heads.words)

    def _add(self, heads: Heads, scores: Reg, entry: Reg, scales: Reg) -> None:
        """One head's shares."""
        ctx, b, before = self.ctx, self.ctx.b, self.ctx["P:v_scale"]
        b.operator = "selection"
        b.load(self.address, before, heads.score_row, source=RANKING)
        row, to = heads.row_of(entry, entry, scores, scales), At(ctx["SB_SCORES"])
        add_shares(b, (1, 1, heads.words), heads.length, row, At(ctx["V_ROW"]), At(before), to)
        self._store(heads)

    def _store(self, heads: Heads) -> None:
        self.ctx.b.store(
            StMode.LIN, self.ctx["SB_SCORES"], RANKING, addr=self.address, n_gran=heads.score_row, kind=StKind.LISTS
        )


class Ranking(Survivors):
    """Top-k over the scores of a segment's tokens."""

    def __init__(self, ctx: Context, layout: Layout) -> None:
        self.ctx, self.b, self.geo = ctx, ctx.b, ctx.geo
        self.record, self.base = layout.ranking, layout.aux["ranking"].base
        self.granules = ctx.geo.cache_granules(layout.context)
        self.words, self.tokens = self.granules // ctx.geo.gpw, layout.context

    def rank(self, tokens: Reg, keep: Reg, bias: Reg, lists: tuple[Reg, Reg]) -> None:
        """`keep` of `tokens` tokens into lists (4-byte addresses of rows and RoPE rows, whole beats)."""
        b, (rows, rope) = self.b, lists
        self._constants()
        self._values(tokens, bias)
        b.shift(rows, rows, -4)
        b.shift(rope, rope, -4)
        b.alu(Op.SUB, rope, rope, rows)
        with self._threshold(keep, tokens) as allowed:
            self._walk_all(allowed, tokens, rows, rope)

    def _values(self, tokens: Reg, bias: Reg) -> None:
        ctx, b, shape = self.ctx, self.b, (1, 1, self.words)
        b.load(self.address("bits"), ctx["BITS"], self.geo.gpw**2, kind=LdKind.TABLES)
        b.load(bias, ctx["BIAS"], self.granules, kind=LdKind.TABLES)
        b.load(self.address("scores"), ctx["SALIENCY"], self.granules, source=RANKING)
        values = At(ctx["VALUES"])
        run(b, shape, tokens, vec(At(ctx["BIAS"])), to=values)
        run(b, shape, tokens, vec(At(ctx["SALIENCY"])) + values, to=values)

    def _walk_all(self, allowed: Reg, tokens: Reg, rows: Reg, rope: Reg) -> None:
        b = self.b
        walk = self._walk()
        table, moved = b.set(b.reg(), self.address("rows")), b.set(b.reg(), 0)
        granules = b.shift(b.reg(), b.set(b.reg(), tokens + (GRANULE_LANES - 1)), -4)
        with self._each_value(walk, granules):
            with self._surviving(walk, allowed):
                self._append(table, moved, rows, rope)
                b.set(moved, moved + 1)
            b.set(table, table + 1)

    def _append(self, table: Reg, moved: Reg, rows: Reg, rope: Reg) -> None:
        """A survivor's two addresses behind the others; `table` is at its entry of table `rows`."""
        ctx, b, gpw = self.ctx, self.b, self.geo.gpw
        between = self.record["rope"] - self.record["rows"]
        b.load(table, ctx["TABLE"], 1, rows=2, stride=between, row_stride=gpw, kind=LdKind.TABLES, source=RANKING)
        run(b, (2, 1, 1), 1, vec(At(ctx["TABLE"], 1)), to=At(ctx["SB_WORDS"], 1))
        b.store(
            StMode.SC,
            ctx["SB_WORDS"],
            LISTS,
            addr=rows,
            src_head=gpw,
            n_head=2,
            pos=moved,
            stride_head=rope,
            kind=StKind.LISTS,
        )
        b.store(StMode.LIN, ctx["SB_WORDS"], RANKING, addr=moved + self.address("rope"), src=gpw, kind=StKind.LISTS)
        b.fence()
