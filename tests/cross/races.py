"""Which instructions of a run race: they overlap in time, and one writes what the other reads or writes.

Executors need not agree on what such instructions leave (`hw.spec.legal`).
"""

from hw.spec.isa import MxMode, StMode, Unit
from hw.spec.legal import control, followed, illegal, operands
from hw.spec.memory import MemoryModel
from hw.spec.weights import WINDOW
from sim.cycle import CycleBackend, CycleMachine
from sim.functional_sequencer import Issued
from sim.functional_state import cache_writes
from tests.cross.random_steps import TINY, Place, channel_beats, pass_places, reads_its_own_results, walk

RUN_AHEAD = TINY.fifo_beats + 80
"""Cycles behind an RD's end in which its beats may come, of memories of these tests: it only sends addresses."""
MOST_PLACES = 1 << 14
"""An instruction that touches more is taken for one that touches everything."""
NEVER = 1 << 62

Span = tuple[int, int, Issued]
"""First and last cycle of an instruction."""


class _Watched(CycleMachine):
    """Keeps what started, and when."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.started: list[tuple[int, Issued]] = []

    def _start(self, unit: int, t: int) -> None:
        super()._start(unit, t)
        running = self.running[unit]
        if running is not None and running[1] == t:
            self.started.append((t, running[0]))


class WatchedCycleBackend(CycleBackend):
    """The cycle simulator with data, and a judgement of its latest run."""

    def __init__(self, model: MemoryModel):
        super().__init__(model, with_data=True)
        self._last: _Watched | None = None

    def machine(self, *arguments, **options) -> CycleMachine:
        made = _Watched(*arguments, **options)
        self._last = self._last if made.replayed else made
        return made

    def run(self, *arguments):
        self._last = None
        return super().run(*arguments)

    def races(self) -> bool:
        assert self._last is not None
        ends = {(event.unit, event.start): event.end for event in self._last.trace}
        spans = []
        for start, entry in self._last.started:
            if not illegal(TINY, entry.unit, entry.fields):
                end = ends.get((Unit(entry.unit), start), NEVER)
                spans.append((start, end + (RUN_AHEAD if entry.unit == Unit.RD else 0), entry))
        return any(map(_races_itself, spans)) or _overlapping(sorted(spans, key=lambda span: span[0]))


def _overlapping(spans: list[Span]) -> bool:
    open_spans: list[tuple[Span, set[Place] | None, set[Place] | None]] = []
    for span in spans:
        reads, writes = places(span[2])
        open_spans = [other for other in open_spans if other[0][1] >= span[0]]
        for other, its_reads, its_writes in open_spans:
            if other[2].unit != span[2].unit and (
                _meet(writes, its_writes) or _meet(writes, its_reads) or _meet(reads, its_writes)
            ):
                return True
        open_spans.append((span, reads, writes))
    return False


def _meet(a: set[Place] | None, b: set[Place] | None) -> bool:
    """None: everything."""
    if a is None or b is None:
        return (a is None and b is None) or bool(a or b)
    return not a.isdisjoint(b)


def _races_itself(span: Span) -> bool:
    """A pass that reads what an earlier word of it wrote."""
    entry = span[2]
    if entry.unit != Unit.VU or not followed(TINY, Unit.VU, entry.fields):
        return False
    f, ctl = entry.fields, control(entry.fields)
    if f["n_outer"] * f["n_mid"] * f["n_words"] > MOST_PLACES:
        return True
    return reads_its_own_results(*pass_places(f, ctl, operands(ctl)), ctl["level"])


def places(entry: Issued) -> tuple[set[Place] | None, set[Place] | None]:
    """(read, written) of an instruction; None for more than can be told."""
    f, unit = entry.fields, Unit(entry.unit)
    total = 1
    for name in f:
        total *= f[name] if name.startswith("n_") or name in ("kb", "ob") else 1
    if total > MOST_PLACES:
        return None, None if unit != Unit.RD else set()
    if unit == Unit.VU:
        ctl = control(f)
        reads, writes = pass_places(f, ctl, operands(ctl))
        return ({p for each in reads.values() for p in each}, {p for each in writes.values() for p in each})
    if unit == Unit.RD:
        return channel_beats(f), set()
    if unit == Unit.LD:
        rows = f["n_outer"], "stride"
        return (
            set(walk("aux", f, "addr", rows, (f["n_inner"], 1))),
            set(walk("pb", f, "dst", (f["n_outer"], "dst_stride"), (f["n_inner"], 1))),
        )
    return _stored(f) if unit == Unit.ST else _multiplied(f)


def _stored(f: dict[str, int]) -> tuple[set[Place], set[Place]]:
    reads = set(walk("sb", f, "src", (f["n_tok"], "src_tok"), (f["n_head"], "src_head"), (f["n_gran"], 1)))
    if f["mode"] == StMode.LIN:
        counts = (f["n_tok"], "stride_tok"), (f["n_head"], "stride_head"), (f["n_gran"], 1)
        return reads, set(walk("aux", f, "addr", *counts))
    if f["mode"] == StMode.SC:
        blocks = {f["pos"] + t >> 4 for t in range(f["n_tok"])}
        heads = walk("aux", f, "addr", (f["n_head"], "stride_head"))
        return reads, {("aux", at + block & 0xFFFFFFFF) for _, at in heads for block in blocks}
    units, beats, _ = cache_writes(TINY, f)
    return reads, {("channel", int(u), int(b)) for u, b in zip(units, beats, strict=True)}


def _multiplied(f: dict[str, int]) -> tuple[set[Place], set[Place]]:
    unit, each = (TINY.units, 1) if f["mode"] == MxMode.SPLIT_K else (1, TINY.units)
    span = -(-f["kb"] // WINDOW) * WINDOW * unit
    acts = walk("ob", f, "act", (f["n_outer"], "act_out"), (f["n_rows"], "act_stride"), (span, 1))
    outer, rows = (f["n_outer"], "dst_out"), (f["n_rows"], "dst_stride")
    return {("ob", at % TINY.ob_blocks) for _, at in acts}, set(walk("ab", f, "dst", outer, rows, (f["ob"] * each, 1)))
