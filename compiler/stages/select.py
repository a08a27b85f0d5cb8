"""The rows with the largest scores: the vector unit finds the threshold, the sequencer moves the rows.

The k-th largest score T is found step by step: T starts at the least number, and a step is added for as long as at
least k scores are no smaller. A score counts by 2**(score - T), steep enough to be 0 below T. Then the sequencer walks
over the rows: it takes those above T, and of those equal to T the first ones, until it has k.

    scores  [rows, 1]  ->  one row of scores  ->  33 steps of T  ->  flags "> T", ">= T" in memory  ->  the walk
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from hw.spec import numerics as nm
from hw.spec.config import GRANULE_LANES
from hw.spec.isa import Add, Fin, Func, LdKind, Mul1, Mul2, Op, Reduce, Row, Src, StKind, StMode, Unit
from hw.spec.timing import VU_LATENCY

from ..integer import steps as s
from ..integer.steps import Layout, Param, Step
from ..kernels.builder import At, Reg, Rows, Value
from ..kernels.regions import memory_region
from .body import Body, Buffer, Issue
from .emit import Emitter
from .memory import MemoryMap
from .memory import Rows as MemoryRows

STEPS = (1 << 30, 1 << 30, *(1 << b for b in range(30, -1, -1)))
"""What T may grow by, from -2**31 on: any number is reached."""
STEEP = nm.encode_scale(2.0**15)
ONE = nm.encode_scale(1 / nm.PROB_MAX)


def select(
    e: Emitter, memory: MemoryMap, places: Mapping[str, MemoryRows], steps: Mapping[str, Step], name: str
) -> None:
    """See `steps.SelectRows`."""
    step = steps[name]
    assert isinstance(step, s.SelectRows)
    _Selection(e, memory, places, steps, step).run()


class _Selection:
    def __init__(self, e: Emitter, memory: MemoryMap, places, steps, step: s.SelectRows) -> None:
        self.e, self.memory, self.step, self.config = e, memory, step, memory.config
        self.source, self.target, self.scores = places[step.x], places[step.name], places[step.y]
        self.n_rows, self.k = steps[step.x].rows, int(step.rows)
        most = e.arguments.most(self.n_rows)
        self.most_words = -(-most // self.config.lanes)
        each = self.config.granules_per_word
        beats = self.most_words * each
        self.row, self.above, self.equal = (memory.aux(beats) for _ in range(3))
        self.ties = memory.aux(each)
        self.steps_at = self._table("steps", STEPS)
        self.constants_at = self._table("constants", (-self.k * nm.PROB_MAX, nm.INT32_MIN, 1))

    def _table(self, name: str, values: tuple[int, ...]) -> int:
        """A word of the vector unit for every value, in its first lane; returns the first beat."""
        table = np.array(values, np.int64).reshape(-1, 1)
        return self.memory.param(Param(f"{self.step.name}.{name}", table), Layout(len(values), 1))

    def run(self) -> None:
        self._gather()
        self._search()
        self._walk()

    # --- one row of scores -------------------------------------------------------------------------------

    def _gather(self) -> None:
        """The scores, which lie in a row each, side by side in one row."""
        each, source = self.config.granules_per_word, self.scores
        tile = max(1, min(self.e.arguments.most(self.n_rows), self.config.sb_granules // 2 // each))
        body = Body(tile)
        loaded, stored = (Buffer("scores", where, tile * each) for where in ("PB", "SB"))

        def load(e: Emitter) -> None:
            address = e.row_address(source.base, each)
            e.b.load(address, e.region(loaded), each, e.m, each, 0, each, memory_region(self.step.y))

        def copy(e: Emitter) -> None:
            e.b.vu_pass((e.m, 1, 1), 1, p=At(e.region(loaded), 1), d=At(e.region(stored), 1), src=Src.P)

        def put(e: Emitter) -> None:
            region = memory_region("score row")
            fields: dict[str, Any] = {"addr": self.row, "src_tok": each, "pos": e.at, "n_tok": e.m}
            e.b.store(StMode.SC, e.region(stored), region, **fields, kind=StKind.ACTIVATIONS)

        op = self.step.operator
        body.issues.append(Issue(Unit.LD, op, (), (loaded,), load, tile * each + self.config.read_latency))
        body.issues.append(Issue(Unit.VU, op, (loaded,), (stored,), copy, tile + VU_LATENCY))
        body.issues.append(Issue(Unit.ST, op, (stored,), (), put, tile + self.config.write_latency))
        self.e.phase(self.n_rows, body)

    # --- the threshold -----------------------------------------------------------------------------------

    def _search(self) -> None:
        each, words = self.config.granules_per_word, self.most_words
        body = Body(1)
        new = Buffer
        self.row_in, self.steps_in = new("row", "PB", words * each), new("steps", "PB", len(STEPS) * each)
        self.constants_in = new("constants", "PB", 3 * each)
        self.work, self.limit, self.flag = (
            new(name, "VB", size * each) for name, size in (("work", words), ("T", 1), ("flag", 1))
        )
        self.entries = new("entries", "RS", 3)
        self.out = new("flags", "SB", words * each)
        buffers = (
            self.row_in,
            self.steps_in,
            self.constants_in,
            self.work,
            self.limit,
            self.flag,
            self.entries,
            self.out,
        )
        body.issues.append(Issue(Unit.VU, self.step.operator, (), buffers, self._emit_search))
        self.e.straight(body)

    def _emit_search(self, e: Emitter) -> None:
        b, each = e.b, self.config.granules_per_word
        n = e.dim(self.n_rows)
        words: Value = self.most_words
        if isinstance(n, Reg):
            words = b.reg()
            b.shift(b.set(words, n + (self.config.lanes - 1)), words, 1 - self.config.lanes.bit_length())
            b.declare(words, self.most_words)
        for address, buffer, beats in (
            (self.row, self.row_in, e.times(words, each)),
            (self.steps_at, self.steps_in, len(STEPS) * each),
            (self.constants_at, self.constants_in, 3 * each),
        ):
            b.load(address, e.region(buffer), beats, kind=LdKind.ACTIVATIONS)
        self._one(e, p=self._constant(e, 1), d=self._lane(e, self.limit), src=Src.P)
        at = b.set(b.reg(), 0)
        b.fence_if_needed()
        with b.repeat(b.set(b.reg(), len(STEPS))):
            b.walks(at, len(STEPS) - 1)
            self._one_step(e, n, words, At(e.region(self.steps_in), offset=at))
            b.close()
            b.set(at, at + 1)
        self._flags(e, n, words)

    def _one_step(self, e: Emitter, n: Value, words: Value, step: At) -> None:
        """T grows by the step where at least k scores are no smaller than the sum."""
        candidate, count, grows = (self._entry(e, number) for number in range(3))
        limit, flag = self._lane(e, self.limit), self._lane(e, self.flag)
        self._one(e, v=limit, p=step, w=candidate, src=Src.V, add=Add.P, reduce=Reduce.MAX)
        self._count(e, n, words, candidate, count)
        self._one(e, r0=count, p=self._constant(e, 0), d=flag, src=Src.R0, row0=Row.RAW, add=Add.P)
        self._one(e, v=flag, d=flag, src=Src.V, mul1=Mul1.IMM, imm0=STEEP)
        self._one(e, v=flag, d=flag, src=Src.V, mul1=Mul1.IMM, imm0=STEEP, func=Func.EXP2)
        self._one(e, v=flag, w=grows, src=Src.V, mul1=Mul1.IMM, imm0=ONE, reduce=Reduce.MAX)
        self._one(e, p=step, r0=grows, v=limit, d=limit, src=Src.P, mul2=Mul2.R0, row0=Row.SCALE, add=Add.V)

    def _count(self, e: Emitter, n: Value, words: Value, limit: Rows, count: Rows) -> None:
        """PROB_MAX times the number of scores no smaller than the limit; the flags of all scores stay in `work`."""
        shape, work = (1, 1, words), At(e.region(self.work))
        e.b.vu_pass(shape, n, p=At(e.region(self.row_in)), r1=limit, d=work, src=Src.P, row1=Row.RAW, add=Add.SUB_R1)
        e.b.vu_pass(shape, n, v=work, d=work, src=Src.V, mul1=Mul1.IMM, imm0=STEEP)
        steep: dict[str, Any] = {"src": Src.V, "mul1": Mul1.IMM, "imm0": STEEP, "func": Func.EXP2}
        e.b.vu_pass(shape, n, v=work, d=work, w=count, reduce=Reduce.SUM, fin=Fin.NONE, **steep)

    def _flags(self, e: Emitter, n: Value, words: Value) -> None:
        """Flags of the scores at or above T, and of those above it, to memory; the number of the latter, too."""
        b, each = e.b, self.config.granules_per_word
        candidate, count, _ = (self._entry(e, number) for number in range(3))
        limit = self._lane(e, self.limit)
        for more, address in ((False, self.equal), (True, self.above)):
            added: dict[str, Any] = {"p": self._constant(e, 2), "add": Add.P} if more else {}
            self._one(e, v=limit, w=candidate, src=Src.V, reduce=Reduce.MAX, **added)
            self._count(e, n, words, candidate, count)
            b.vu_pass((1, 1, words), n, v=At(e.region(self.work)), d=At(e.region(self.out)), src=Src.V)
            beats = e.times(words, each)
            b.store(
                StMode.LIN, e.region(self.out), memory_region("flags"), addr=address, n_gran=beats, kind=StKind.LISTS
            )
        self._one(e, r0=count, d=self._lane(e, self.out), src=Src.R0, row0=Row.RAW, mul1=Mul1.IMM, imm0=ONE)
        b.store(StMode.LIN, e.region(self.out), memory_region("ties"), addr=self.ties, n_gran=each, kind=StKind.LISTS)

    def _one(self, e: Emitter, **fields: Any) -> None:
        """A pass over one lane."""
        e.b.vu_pass((1, 1, 1), 1, **fields)

    def _lane(self, e: Emitter, buffer: Buffer) -> At:
        return At(e.region(buffer))

    def _constant(self, e: Emitter, number: int) -> At:
        return At(e.region(self.constants_in), offset=number)

    def _entry(self, e: Emitter, number: int) -> Rows:
        return Rows(e.region(self.entries), offset=number)

    # --- the walk ----------------------------------------------------------------------------------------

    def _walk(self) -> None:
        """Row by row, from the first one."""
        body = Body(1)
        self.loaded, self.stored = (Buffer("row", where, self.source.beats) for where in ("PB", "SB"))
        body.issues.append(Issue(Unit.LD, self.step.operator, (), (self.loaded, self.stored), self._emit_walk))
        self.e.straight(body)

    def _emit_walk(self, e: Emitter) -> None:
        b, words = e.b, GRANULE_LANES
        count = e.dim(self.n_rows)
        left = b.set(b.reg(), count)
        row, to, flag = (b.set(b.reg(), start) for start in (self.source.base, self.target.base, 0))
        ties, above, equal = (b.reg() for _ in range(3))
        b.load_word(ties, b.set(flag, self.ties * words))
        b.alu(Op.SUB, ties, b.set(flag, self.k), ties)
        b.set(above, self.above * words)
        b.set(equal, self.equal * words)
        start = b.label()
        b.load_word(flag, above)
        taken = b.emit(Op.BNE, 0, flag.index, 0)
        skips = [b.emit(Op.BEQ, 0, ties.index, 0)]
        b.load_word(flag, equal)
        skips.append(b.emit(Op.BEQ, 0, flag.index, 0))
        b.set(ties, ties + -1)
        self._patch(b, [taken])
        move_row(e, self.loaded, self.stored, row, to)
        b.set(to, to + self.target.beats)
        self._patch(b, skips)
        for register, step in ((row, self.source.beats), (above, 1), (equal, 1), (left, -1)):
            b.set(register, register + step)
        b.branch(Op.BNE, left, 0, start)

    def _patch(self, b, branches: list[int]) -> None:
        """These branches lead here."""
        here = b.label()
        for at in branches:
            old = b.program[at]
            b.program[at] = type(old)(old.op, 0, old.b, old.c, here)


def move_row(e: Emitter, loaded: Buffer, stored: Buffer, row: Reg, to: Reg) -> None:
    """One row from beat `row` to beat `to` of the auxiliary memory."""
    b, beats, lanes = e.b, loaded.size, e.config.lanes
    words = beats // e.config.granules_per_word
    source, target = e.region(loaded), e.region(stored)
    b.load(row, source, beats)
    b.vu_pass((1, 1, words), words * lanes, p=At(source), d=At(target), src=Src.P)
    b.store(StMode.LIN, target, memory_region("kept"), addr=to, n_gran=beats)
    b.fence()
