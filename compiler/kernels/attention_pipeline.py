"""Attention of a tile of several tokens with neighbouring heads in flight at once.

While the vector unit makes probabilities of head h, the matrix units multiply those of head h - 1 with the values and
the queries of head h + 1 with the keys. Scores and probability planes have two places each, which heads use in turn.
"""

from dataclasses import replace

from hw.spec.isa import Op

from .attention_heads import Heads
from .builder import Reg, Rows, Value
from .context import Context
from .regions import Region


def pipelined_granules(ctx: Context) -> int:
    """Longest score row, in granules, of which both places of scores and planes hold a whole tile's."""
    rows = ctx["MAX"].size
    return min(ctx["SCORES"].size // (2 * rows), ctx["PLANES"].size // (4 * rows))


class PipelinedHeads(Heads):
    """Needs two key-value heads, and score rows within `pipelined_granules`."""

    def pipelined(self) -> None:
        """All heads. Blocks end where heads change places."""
        ctx, b, op = self.ctx, self.ctx.b, self.op
        self._row_registers()
        self.query_rows = self._scaled(ctx.m, self.group)
        self.turn = b.set(b.reg(), 0)
        self.kv_at, self.q_at = b.set(b.reg(), ctx.pointers["cache"]), b.set(b.reg(), 0)
        strides = self._tile_strides()
        self.strides = replace(
            strides, scale_at=b.set(b.reg(), 0), sums=Rows(ctx["SUMS"], op.heads, 1, strides.entry_at)
        )
        self._load_scales(ctx.pointers["scales"], op.kv_heads)
        self._next_scores(0)
        self._stage(scores=True, softmax=True)
        with b.loop(b.set(b.reg(), op.kv_heads - 2)):
            self._stage(values=True, scores=True, softmax=True)
        self._stage(values=True, softmax=True)
        self._stage(values=True)

    def _stage(self, values: bool = False, scores: bool = False, softmax: bool = False) -> None:
        """Values of the head before, scores of the one behind, probabilities of this one."""
        b, entry = self.ctx.b, self.strides.entry_at
        if values:
            self._read_values(self.kv_at + -2 * self.cache_beats)
            self._values(b.scaled(self.query_rows, 2), self._other("PLANES"), 0, self._half("PLANES", 1))
        if scores:
            self._next_scores(1)
        else:
            b.set(self.kv_at, self.kv_at + self.cache_beats)
        if softmax:
            self._softmax(
                replace(
                    self.strides,
                    scores=self._half("SCORES", 0),
                    planes=self._half("PLANES", 0),
                    score_at=b.scaled(self.turn, self._half("SCORES", 0).size // self.ctx.geo.gpw),
                    plane_at=b.scaled(self.turn, self._half("PLANES", 0).size),
                ),
                1,
            )
        if values:
            assert self.strides.sums is not None
            self._combine(
                replace(
                    self.strides,
                    entry_at=entry + -self.group,
                    sums=replace(self.strides.sums, offset=entry + -self.group),
                )
            )
        b.set(entry, entry + self.group)
        assert isinstance(self.strides.scale_at, Reg)
        b.alu(Op.ADD, self.strides.scale_at, self.strides.scale_at, self.words)
        b.alu(Op.SUB, self.turn, 1, self.turn)
        b.fence()

    def _half(self, name: str, which: int) -> Region:
        """This head's place (0) or the other (1), as if it were turn 0."""
        size = self.ctx[name].size // (2 * self.ctx.geo.config.units) * self.ctx.geo.config.units
        return replace(self.ctx[name].part(which * size, size), reach=(2 - which) * size)

    def _other(self, name: str) -> Value:
        """Offset of the other place from where `_half` has it."""
        b = self.ctx.b
        return b.alu(Op.SUB, b.reg(), 0, b.scaled(self.turn, self._half(name, 0).size))

    def _next_scores(self, which: int) -> None:
        """Scores of the next head, whose keys and queries come after those of the head before, in a `_half`."""
        b = self.ctx.b
        self._read_keys(self.kv_at)
        at = self._other("SCORES") if which else 0
        self._score_matrix(self.q_at, self.query_rows, at, self._half("SCORES", which))
        b.set(self.kv_at, self.kv_at + self.cache_beats)
        b.alu(Op.ADD, self.q_at, self.q_at, b.scaled(self.query_rows, self.ctx.geo.granules(self.op.head_dim)))


__all__ = ["PipelinedHeads", "pipelined_granules"]
