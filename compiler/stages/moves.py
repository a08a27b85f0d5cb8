"""Moves: values that are put together in the auxiliary memory, of values that lie there as a whole.

Everything on its way goes LD -> PB -> VU -> SB -> ST, in chunks that fit the buffers. A store walks two strides at its
source and at its target, so a pooling grid or a shuffle of pixels is a few stores:

    target row (i, j), piece (a, b)  <-  source row (2 i + a, 2 j + b)        one store for every (a, b)
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from hw.spec.config import GRANULE_LANES
from hw.spec.isa import Add, LdKind, Op, Src, StKind, StMode, Unit
from hw.spec.timing import VU_LATENCY

from ..graph.ir import Dim
from ..integer import steps as s
from ..integer.steps import Array, Step
from ..kernels.builder import At, Value
from ..kernels.regions import memory_region
from .body import Body, Buffer, Issue
from .emit import Emitter
from .memory import MemoryMap, Rows
from .select import move_row, select

Places = Mapping[str, Rows]
Steps = Mapping[str, Step]


@dataclass(frozen=True)
class Walk:
    """Pieces at from_ + o * from_outer + i * from_inner to to + ..., for o below n_outer and i below n_inner."""

    from_: int
    to: int
    n_outer: int = 1
    from_outer: int = 0
    to_outer: int = 0
    n_inner: int = 1
    from_inner: int = 0
    to_inner: int = 0


def walks(pairs: Array) -> Iterator[Walk]:
    """int64[n, 2] (from, to), by `to`: the same pairs in few walks of two strides."""
    runs = list(_runs(pairs))
    at = 0
    while at < len(runs):
        first, n = runs[at], 1
        alike = [
            r
            for r in runs[at + 1 :]
            if (r.n_inner, r.from_inner, r.to_inner) == (first.n_inner, first.from_inner, first.to_inner)
        ]
        follow = runs[at + 1 : at + 2]
        if not follow or follow[0] not in alike:
            yield first
            at += 1
            continue
        step = follow[0].from_ - first.from_, follow[0].to - first.to
        while at + n < len(runs) and runs[at + n] in alike and _apart(runs[at + n - 1], runs[at + n]) == step:
            n += 1
        yield Walk(first.from_, first.to, n, *step, first.n_inner, first.from_inner, first.to_inner)
        at += n


def _apart(a: Walk, b: Walk) -> tuple[int, int]:
    return b.from_ - a.from_, b.to - a.to


def _runs(pairs: Array) -> Iterator[Walk]:
    """Stretches of pairs with one stride."""
    at = 0
    while at < len(pairs):
        n = 1
        if at + 1 < len(pairs):
            step = pairs[at + 1] - pairs[at]
            while at + n < len(pairs) and (pairs[at + n] - pairs[at + n - 1] == step).all():
                n += 1
        source, target = (int(v) for v in pairs[at])
        inner = (0, 0) if n == 1 else (int(step[0]), int(step[1]))
        yield Walk(source, target, n_inner=n, from_inner=inner[0], to_inner=inner[1])
        at += n


# --- rearranged rows ------------------------------------------------------------------------------------


def rearrange(e: Emitter, memory: MemoryMap, places: Places, steps: Steps, name: str) -> None:
    """Pieces in another order; see `steps.Rearranged`. Pieces that are zeros were zeros before the program started."""
    step = steps[name]
    assert isinstance(step, s.Rearranged)
    source, target = places[step.x], places[name]
    pairs, granules = _piece_pairs(step, source, memory)
    chunk = min(memory.config.pb_granules, memory.config.sb_granules) // 2 // source.beats * source.beats
    body = Body(1)
    for first in range(0, source.beats * int(steps[step.x].rows), chunk):
        inside = pairs[(pairs[:, 0] >= first) & (pairs[:, 0] < first + chunk)]
        if len(inside):
            last = int(inside[:, 0].max()) + granules - first
            beats = -(-last // memory.config.granules_per_word) * memory.config.granules_per_word
            _chunk(
                body,
                memory,
                (step.operator, step.x, name),
                source.base + first,
                beats,
                inside - [first, 0],
                target.base,
                granules,
            )
    e.straight(body)


def _piece_pairs(step: s.Rearranged, source: Rows, memory: MemoryMap) -> tuple[Array, int]:
    """(int64[n, 2] granules of pieces in source and target, by target; granules of a piece)."""
    each, size = memory.config.granules_per_word, step.layout.size
    per_group = source.layout.size // size
    a_row = source.layout.groups * per_group
    index = step.index.reshape(-1)
    row, piece = np.divmod(index, a_row)
    group, part = np.divmod(piece, per_group)
    granules = -(-size // 16)
    starts = row * source.beats + group * memory.words(source.layout.size) * each + part * (size // 16)
    targets = np.arange(len(index)) * memory.words(size) * each
    return np.stack([starts, targets], axis=1)[index >= 0], granules


def _chunk(
    body: Body,
    memory: MemoryMap,
    names: tuple[str, str, str],
    base: int,
    beats: int,
    pairs: Array,
    target: int,
    granules: int,
) -> None:
    """One stretch of the source to PB, to SB, and its pieces from there to their targets."""
    operator, source_name, target_name = names
    config = memory.config
    loaded, stored = Buffer(source_name, "PB", beats), Buffer(target_name, "SB", beats)
    words = beats // config.granules_per_word

    def load(e: Emitter) -> None:
        e.b.load(base, e.region(loaded), beats, source=memory_region(source_name), kind=LdKind.ACTIVATIONS)

    def copy(e: Emitter) -> None:
        shape = (1, 1, words)
        e.b.vu_pass(shape, words * config.lanes, p=At(e.region(loaded)), d=At(e.region(stored)), src=Src.P)

    body.issues.append(Issue(Unit.LD, operator, (), (loaded,), load, beats + config.read_latency))
    body.issues.append(Issue(Unit.VU, operator, (loaded,), (stored,), copy, words + VU_LATENCY))
    for walk in walks(pairs):
        body.issues.append(
            Issue(Unit.ST, operator, (stored,), (), _put(walk, stored, target, granules, target_name), len(pairs))
        )


def _put(walk: Walk, stored, target: int, granules: int, name: str) -> Callable[[Emitter], None]:
    def emit(e: Emitter) -> None:
        e.b.store(
            StMode.LIN,
            e.region(stored),
            memory_region(name),
            addr=target + walk.to,
            src=walk.from_,
            src_tok=walk.from_outer,
            n_tok=walk.n_outer,
            stride_tok=walk.to_outer,
            src_head=walk.from_inner,
            n_head=walk.n_inner,
            stride_head=walk.to_inner,
            n_gran=granules,
            kind=StKind.ACTIVATIONS,
        )

    return emit


# --- joined rows, and parts of them ----------------------------------------------------------------------


@dataclass(frozen=True)
class Copy:
    """`rows` rows of a value, from row `first` on, to another one's rows from row `offset` and granule `column` on.
    granules: of each row. names: the operator, and both values."""

    names: tuple[str, str, str]
    source: Rows
    target: Rows
    rows: Dim
    granules: int
    first: Value = 0
    offset: Value = 0
    column: int = 0


def join(e: Emitter, memory: MemoryMap, places: Places, steps: Steps, name: str) -> None:
    """The rows of every part, tile by tile, behind or beside those of the parts before."""
    target, step = places[name], steps[name]
    assert isinstance(step, s.Joined)
    offset: Value = 0
    column = 0
    for part in step.parts:
        rows, source = steps[part].rows, places[part]
        granules = -(-source.layout.size // GRANULE_LANES) if step.beside else source.beats
        names = step.operator, part, name
        copy(e, memory, Copy(names, source, target, rows, granules, offset=offset, column=column))
        if step.beside:
            column += granules
        else:
            offset = e.sum(offset, e.dim(rows))


def part(e: Emitter, memory: MemoryMap, places: Places, steps: Steps, name: str) -> None:
    """Some of the rows of another value."""
    step = steps[name]
    assert isinstance(step, s.Part)
    source, names = places[step.x], (step.operator, step.x, name)
    copy(e, memory, Copy(names, source, places[name], step.rows, source.beats, first=e.dim(step.start)))


def copy(e: Emitter, memory: MemoryMap, what: Copy) -> None:
    """Rows from one value to another, tile by tile."""
    (operator, source_name, target_name), source, target = what.names, what.source, what.target
    config, beats = memory.config, source.beats
    tile = max(1, min(e.arguments.most(what.rows), min(config.pb_granules, config.sb_granules) // 2 // beats))
    body, words = Body(tile), beats // config.granules_per_word
    loaded, stored = (Buffer(source_name, where, tile * beats) for where in ("PB", "SB"))

    def load(em: Emitter) -> None:
        address = em.times(em.sum(what.first, em.at), beats) + source.base
        em.b.load(address, em.region(loaded), beats, em.m, beats, 0, beats, memory_region(source_name))

    def through(em: Emitter) -> None:
        homes = At(em.region(loaded), words), At(em.region(stored), words)
        em.b.vu_pass((em.m, 1, words), words * config.lanes, p=homes[0], d=homes[1], src=Src.P)

    def put(em: Emitter) -> None:
        em.b.store(
            StMode.LIN,
            em.region(stored),
            memory_region(target_name),
            addr=em.times(em.sum(what.offset, em.at), target.beats) + target.base + what.column,
            src_tok=beats,
            n_tok=em.m,
            n_gran=what.granules,
            stride_tok=target.beats,
        )

    cycles = tile * beats
    body.issues.append(Issue(Unit.LD, operator, (), (loaded,), load, cycles + config.read_latency))
    body.issues.append(Issue(Unit.VU, operator, (loaded,), (stored,), through, cycles + VU_LATENCY))
    body.issues.append(Issue(Unit.ST, operator, (stored,), (), put, cycles + config.write_latency))
    e.phase(what.rows, body)


# --- rows by a list --------------------------------------------------------------------------------------


def gather(e: Emitter, memory: MemoryMap, places: Places, steps: Steps, name: str) -> None:
    """Row by row: the sequencer reads a number of the list and moves that row."""
    step = steps[name]
    assert isinstance(step, s.GatherRows)
    source, numbers, target = places[step.x], places[step.y], places[name]
    body = Body(1)
    loaded, stored = (Buffer("row", where, source.beats) for where in ("PB", "SB"))

    def walk(em: Emitter) -> None:
        b = em.b
        left = b.set(b.reg(), em.dim(step.rows))
        at, to = b.set(b.reg(), numbers.base * GRANULE_LANES), b.set(b.reg(), target.base)
        start = b.label()
        row = b.scaled(b.load_word(b.reg(), at), source.beats)
        move_row(em, loaded, stored, b.set(b.reg(), row + source.base), to)
        for register, more in ((at, numbers.beats * GRANULE_LANES), (to, target.beats), (left, -1)):
            b.set(register, register + more)
        b.branch(Op.BNE, left, 0, start)

    body.issues.append(Issue(Unit.LD, step.operator, (), (loaded, stored), walk))
    e.straight(body)


# --- the sum of rows ------------------------------------------------------------------------------------


def sum_rows(e: Emitter, memory: MemoryMap, places: Places, steps: Steps, name: str) -> None:
    """One row after the other is added to a row in VB, which stays there over all tiles."""
    step = steps[name]
    assert isinstance(step, s.SumRows)
    source, target, config = places[step.x], places[name], memory.config
    rows, words = steps[step.x].rows, source.beats // config.granules_per_word
    tile = max(1, min(e.arguments.most(rows), config.pb_granules // 2 // source.beats))
    body = Body(tile)
    loaded = Buffer(step.x, "PB", tile * source.beats)
    total, stored = Buffer(name, "VB", source.beats), Buffer(f"{name} stored", "SB", source.beats)
    lanes = words * config.lanes

    def clear(em: Emitter) -> None:
        """Zero times what lies there."""
        place = At(em.region(total))
        em.b.vu_pass((1, 1, words), 0, v=place, d=place, src=Src.V)

    def load(em: Emitter) -> None:
        address = em.row_address(source.base, source.beats)
        em.b.load(address, em.region(loaded), source.beats, em.m, source.beats, 0, source.beats, memory_region(step.x))

    def add(em: Emitter) -> None:
        em.each_row(loaded, words, lambda row: _add_row(em, row, loaded, total, words, lanes))

    def copy(em: Emitter) -> None:
        em.b.vu_pass((1, 1, words), lanes, v=At(em.region(total)), d=At(em.region(stored)), src=Src.V)

    def put(em: Emitter) -> None:
        em.b.store(StMode.LIN, em.region(stored), memory_region(name), addr=target.base, n_gran=source.beats)

    op = step.operator
    body.before.append(Issue(Unit.VU, op, (), (total,), clear, words + VU_LATENCY))
    body.issues.append(Issue(Unit.LD, op, (), (loaded,), load, tile * source.beats + config.read_latency))
    body.issues.append(Issue(Unit.VU, op, (loaded, total), (total,), add, tile * (words + VU_LATENCY)))
    body.behind.append(Issue(Unit.VU, op, (total,), (stored,), copy, words + VU_LATENCY))
    body.behind.append(Issue(Unit.ST, op, (stored,), (), put, source.beats + config.write_latency))
    e.phase(rows, body)


def _add_row(e: Emitter, row: Value, loaded, total, words: int, lanes: int) -> None:
    place = At(e.region(total))
    e.b.vu_pass((1, 1, words), lanes, v=place, p=At(e.region(loaded), offset=row), d=place, src=Src.V, add=Add.P)


MOVES: dict[type, Callable[[Emitter, MemoryMap, Places, Steps, str], None]] = {
    s.Rearranged: rearrange,
    s.Joined: join,
    s.Part: part,
    s.SumRows: sum_rows,
    s.SelectRows: select,
    s.GatherRows: gather,
}
