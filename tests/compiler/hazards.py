"""Hazards of a run, from what instructions touch: an oracle that knows nothing of regions or of how tokens are placed.

The functional simulator runs a program; `Recorder` keeps what the sequencer issues, in order. What each instruction
reads and writes follows from its descriptor alone. An instruction comes before another if both are the same unit's, if
tokens or fences say so, or through others; readers are done when matrix instructions have taken all their beats. Two
that touch the same element, one of them writing, have to be ordered. One exception: LD may read a word of a beat while
ST writes it (the newest scale among older ones), if nobody uses what came of it.
"""

from dataclasses import dataclass

import numpy as np

from hw.spec.config import BEAT_BYTES, Config
from hw.spec.isa import Dst, Error, MxMode, Op, StMode, Unit
from hw.spec.run import Invocation, Result
from sim.functional import Executor, Machine
from sim.functional_checks import spread
from sim.functional_sequencer import Issued, Sequencer
from sim.functional_state import State, cache_writes
from sim.functional_vector import Pass
from sim.memory_image import MemoryImage

Array = np.ndarray
Touched = list[tuple[str, Array]]
"""(buffer, numbers of its elements): granules, blocks, entries; of memories words of 4 bytes (aux) or beats."""
WORDS = BEAT_BYTES // 4


@dataclass
class Fence:
    """The sequencer waited for these units; `word`: and read that word of auxiliary memory."""

    pc: int
    units: int
    word: int | None = None


class Recorder(Sequencer):
    """Keeps ISSUEs, FENCEs and LDSs."""

    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.log: list[Issued | Fence] = []

    def issue(self, a: int, wait: int, signal: int) -> Issued:
        self.log.append(entry := super().issue(a, wait, signal))
        return entry

    def load(self, memory: MemoryImage, port: int, a: int, b: int, imm: int) -> None:
        self.log.append(Fence(self.pc, 1 << Unit.LD, self.registers[b] + imm & 0xFFFFFFFF))
        super().load(memory, port, a, b, imm)

    def retire(self) -> None:
        op, *_, imm = self.current()
        if op == Op.FENCE:
            self.log.append(Fence(self.pc, imm))
        super().retire()


class Feeds(Executor):
    """Keeps which RDs' beats each MX took."""

    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.of: dict[int, list[dict]] = {}
        """id of an MX's queue entry -> descriptors of RDs."""

    def _multiply(self) -> bool:
        job = self._job
        done = super()._multiply()
        if done and job is not None:
            self.of[id(job.entry)] = [piece.run.fields for piece in job.pieces]
        return done


class HazardBackend:
    """Runs as the functional simulator does; `found`: a line for every hazard of all runs."""

    name = "functional"

    def __init__(self) -> None:
        self.found: list[str] = []
        self.checked = 0

    def run(self, config: Config, memory: MemoryImage, invocation: Invocation) -> Result:
        machine = Machine(config, memory, invocation)
        machine.sequencer = recorder = Recorder(config, memory, invocation)
        machine.executor = feeds = Feeds(config, memory)
        machine.run()
        oracle = _Oracle(feeds, recorder.log)
        for event in recorder.log:
            oracle.take(event)
        self.found += oracle.found
        self.checked += len(recorder.log)
        return Result(Error.NONE, 0, recorder.pc, None, machine.executor.state.counters)


class _Oracle:
    """Vector clocks: how many instructions of each unit are known to be done when another starts."""

    def __init__(self, feeds: Feeds, log: list[Issued | Fence]) -> None:
        self.state, self.feeds, self.found = feeds.state, feeds, list[str]()
        readers = (event for event in log if isinstance(event, Issued) and event.unit == Unit.RD)
        self.readers_by_fields = {id(event.fields): number for number, event in enumerate(readers)}
        """id of an RD's descriptor -> its number."""
        self.loads: list[tuple[Array, Array]] = []
        """Of each LD: first words of the beats it read, and the PB granules these went to."""
        self.doubtful: set[tuple[int, int]] = set()
        """(LD, granule) that hold a word of which nobody knows which value it is."""
        self.used: set[tuple[int, int]] = set()
        """(LD, granule) that a pass has read."""
        self.issued: list[list[Array]] = [[] for _ in Unit]
        """Clocks at the start of each unit's instructions."""
        self.pcs: list[list[int]] = [[] for _ in Unit]
        self.signals: dict[tuple[int, int], list[int]] = {}
        self.taken: dict[tuple[int, int], int] = {}
        self.fenced = np.zeros(len(Unit), np.int64)
        """What the sequencer knows to be done."""
        self.writers: dict[str, Array] = {}
        """[element] -> unit * 2**32 + number of the instruction that wrote it last, -1 for none."""
        self.readers: dict[tuple[str, int], Array] = {}
        """[element] -> number of the unit's instruction that read it last, -1 for none."""

    def take(self, event: Issued | Fence) -> None:
        if isinstance(event, Fence):
            self._fence(event)
            return
        unit, number = event.unit, len(self.issued[event.unit])
        clock = self._clock(event, number)
        self.issued[unit].append(clock)
        self.pcs[unit].append(event.pc)
        for consumer in Unit:
            if event.signal >> consumer & 1:
                self.signals.setdefault((unit, consumer), []).append(number)
        reads, writes = touched(self.state, event)
        if unit == Unit.LD:
            self.loads.append(_beats_and_granules(event.fields))
        for buffer, elements in reads:
            self._after_writers(event.pc, unit, clock, buffer, elements)
        for buffer, elements in writes:
            self._after_writers(event.pc, unit, clock, buffer, elements)
            self._after_readers(event.pc, unit, clock, buffer, elements)
        for buffer, elements in reads:
            self._grown(self.readers, (buffer, unit), elements)[elements] = number
        for buffer, elements in writes:
            self._grown(self.writers, buffer, elements)[elements] = (unit << 32) + number

    def _clock(self, event: Issued, number: int) -> Array:
        clock = self.fenced.copy()
        if number:
            clock = np.maximum(clock, self.issued[event.unit][-1])
        clock[event.unit] = number
        for fields in self.feeds.of.get(id(event), ()):
            clock[Unit.RD] = max(clock[Unit.RD], self.readers_by_fields[id(fields)] + 1)
        for producer in Unit:
            if event.wait >> producer & 1:
                pair = (producer, event.unit)
                signal = self.signals[pair][self.taken.get(pair, 0)]
                self.taken[pair] = self.taken.get(pair, 0) + 1
                clock = np.maximum(clock, self.issued[producer][signal])
                clock[producer] = max(clock[producer], signal + 1)
        return clock

    def _fence(self, fence: Fence) -> None:
        for unit in Unit:
            if fence.units >> unit & 1 and self.issued[unit]:
                self.fenced = np.maximum(self.fenced, self.issued[unit][-1])
                self.fenced[unit] = len(self.issued[unit])
        if fence.word is not None:
            self._after_writers(fence.pc, -1, self.fenced, "aux", np.array([fence.word]))

    def _grown(self, table: dict, key, elements: Array) -> Array:
        size = int(elements.max(initial=-1)) + 1
        if key not in table or len(table[key]) < size:
            new = np.full(max(size, 2 * len(table.get(key, ()))), -1, np.int64)
            new[: len(table.get(key, ()))] = table.get(key, ())
            table[key] = new
        return table[key]

    def _after_writers(self, pc: int, unit: int, clock: Array, buffer: str, elements: Array) -> None:
        for writer in np.unique(self._grown(self.writers, buffer, elements)[elements]).tolist():
            other, number = writer >> 32, writer & 0xFFFFFFFF
            if writer >= 0 and other != unit and clock[other] <= number:
                self._report(pc, buffer, "written", other, number)
        if buffer == "PB" and unit == Unit.VU:
            self._use(pc, elements)

    def _use(self, pc: int, granules: Array) -> None:
        """A pass reads granules of PB: what is in doubt has to be loaded again before."""
        for granule, writer in zip(granules.tolist(), self.writers["PB"][granules].tolist(), strict=True):
            if writer >= 0:
                self.used.add((writer & 0xFFFFFFFF, granule))
                if (writer & 0xFFFFFFFF, granule) in self.doubtful:
                    self._report(pc, "PB", "loaded in doubt", Unit.LD, writer & 0xFFFFFFFF)

    def _doubt(self, pc: int, words: Array, number: int) -> None:
        """Words are written that an LD may be reading: nobody may have used them."""
        starts, granules = self.loads[number]
        for granule in granules[np.isin(starts, words // WORDS * WORDS)].tolist():
            self.doubtful.add((number, granule))
            if (number, granule) in self.used:
                self._report(pc, "aux", "read and used", Unit.LD, number)

    def _after_readers(self, pc: int, unit: int, clock: Array, buffer: str, elements: Array) -> None:
        for other in Unit:
            if other != unit and (buffer, other) in self.readers:
                number = int(self._grown(self.readers, (buffer, other), elements)[elements].max(initial=-1))
                if clock[other] <= number and buffer == "aux" and other == Unit.LD:
                    for late in range(int(clock[other]), number + 1):
                        self._doubt(pc, elements, late)
                elif clock[other] <= number:
                    self._report(pc, buffer, "read", other, number)

    def _report(self, pc: int, buffer: str, how: str, other: int, number: int) -> None:
        self.found.append(
            f"pc {pc} touches {buffer} that pc {self.pcs[other][number]} ({Unit(other).name}) has {how}, "
            "and is not ordered behind it"
        )


# --- what an instruction touches -------------------------------------------------------------------------


def touched(state: State, entry: Issued) -> tuple[Touched, Touched]:
    """(reads, writes) of one resolved instruction."""
    return {Unit.LD: _load, Unit.ST: _store, Unit.RD: _read, Unit.MX: _multiply, Unit.VU: _pass}[Unit(entry.unit)](
        state, entry
    )


def _flat(base: int, *dimensions: tuple[int, int]) -> Array:
    return np.unique(spread(base, *dimensions))


def _words(beats: Array) -> Array:
    return np.unique(beats[..., None] * WORDS + np.arange(WORDS))


def _load(state: State, entry: Issued) -> tuple[Touched, Touched]:
    f = entry.fields
    beats = spread(f["addr"], (f["n_outer"], f["stride"]), (f["n_inner"], 1))
    return [("aux", _words(beats))], [("PB", _flat(f["dst"], (f["n_outer"], f["dst_stride"]), (f["n_inner"], 1)))]


def _beats_and_granules(f: dict[str, int]) -> tuple[Array, Array]:
    """First words of the beats that an LD reads, and the granules they go to."""
    beats = spread(f["addr"], (f["n_outer"], f["stride"]), (f["n_inner"], 1))
    return beats.reshape(-1) * WORDS, spread(f["dst"], (f["n_outer"], f["dst_stride"]), (f["n_inner"], 1)).reshape(-1)


def _store(state: State, entry: Issued) -> tuple[Touched, Touched]:
    f = entry.fields
    items = (f["n_tok"], f["src_tok"]), (f["n_head"], f["src_head"]), (f["n_gran"], 1)
    reads: Touched = [("SB", _flat(f["src"], *items))]
    if f["mode"] == StMode.LIN:
        beats = spread(f["addr"], (f["n_tok"], f["stride_tok"]), (f["n_head"], f["stride_head"]), (f["n_gran"], 1))
        return reads, [("aux", _words(beats))]
    if f["mode"] == StMode.SC:
        heads = spread(f["addr"] * WORDS, (f["n_head"], f["stride_head"] * WORDS))
        return reads, [("aux", np.unique(heads[:, None] + f["pos"] + np.arange(f["n_tok"])))]
    units, beats, _ = cache_writes(state.config, f)
    return reads, [(f"channel {unit}", np.unique(beats[units == unit])) for unit in np.unique(units).tolist()]


def _read(state: State, entry: Issued) -> tuple[Touched, Touched]:
    f = entry.fields
    beats = _flat(f["addr"], (f["n_outer"], f["stride"]), (f["n_inner"], 1))
    return [(f"channel {unit}", beats) for unit in range(state.config.units)], []


def _multiply(state: State, entry: Issued) -> tuple[Touched, Touched]:
    f, units = entry.fields, state.config.units
    split_k = f["mode"] == MxMode.SPLIT_K
    acts = _flat(
        f["act"], (f["n_outer"], f["act_out"]), (f["n_rows"], f["act_stride"]), (f["kb"] * (units if split_k else 1), 1)
    )
    sums = _flat(
        f["dst"], (f["n_outer"], f["dst_out"]), (f["n_rows"], f["dst_stride"]), (f["ob"] * (1 if split_k else units), 1)
    )
    return [("OB", acts)], [("AB", sums)]


def _pass(state: State, entry: Issued) -> tuple[Touched, Touched]:
    f, made, gpw = entry.fields, Pass(state, entry), state.config.granules_per_word

    def granules(name: str) -> Array:
        words = made.rows[name][..., None] + np.arange(f["n_words"])
        return np.unique(words[..., None] * gpw + np.arange(gpw))

    reads: Touched = [
        (buffer, granules(name)) for name, buffer in (("a", "AB"), ("p", "PB"), ("v", "VB")) if name in made.used
    ]
    reads += [("RS", np.unique(made.rows[name])) for name in ("r0", "r1") if name in made.used]
    writes: Touched = []
    if made.ctl["dst"] in (Dst.VB, Dst.SB):
        writes.append((Dst(made.ctl["dst"]).name, granules("d")))
    elif made.ctl["dst"] != Dst.NONE:
        writes.append(("OB", np.unique(made.rows["d"][..., None] + np.arange(f["n_words"] * gpw))))
    if "w" in made.used:
        writes.append(("RS", np.unique(made.rows["w"])))
    return reads, writes


__all__ = ["HazardBackend", "touched"]
