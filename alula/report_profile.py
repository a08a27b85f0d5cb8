"""What a trace says about a run: whose each cycle is, how busy units are over time, what they moved."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from hw.spec.config import BEAT_BYTES, BLOCK, Config
from hw.spec.isa import Unit
from hw.spec.memory import MemoryModel
from hw.spec.run import Event

FOREMOST = (Unit.MX, Unit.VU, Unit.LD, Unit.ST, Unit.RD)
"""A cycle belongs to the operator of the first of these that is at work."""
NOBODY = -1


@dataclass(frozen=True)
class Track:
    """One unit's instructions in order: int64 arrays of starts, ends (exclusive), operators and work."""

    start: np.ndarray
    end: np.ndarray
    operator: np.ndarray
    work: np.ndarray

    def at(self, times: np.ndarray) -> np.ndarray:
        """The operator at work in each of the (ascending) cycles, or NOBODY."""
        if not len(self.start):
            return np.full(len(times), NOBODY)
        index = np.searchsorted(self.start, times, side="right") - 1
        inside = (index >= 0) & (times < self.end[index])
        return np.where(inside, self.operator[index], NOBODY)

    def cut(self, first: int, last: int) -> "Track":
        """The part between two cycles; work stays whole."""
        keep = (self.end > first) & (self.start < last)
        return Track(
            np.maximum(self.start[keep], first), np.minimum(self.end[keep], last), self.operator[keep], self.work[keep]
        )


@dataclass(frozen=True)
class OperatorRow:
    """An operator's share of a run."""

    name: str
    cycles: int
    """In which it is the foremost one."""
    macs: int
    """Dense-equivalent: padding and both planes of the probabilities included; pruned weights count."""
    array_macs: int
    """Those that the array multiplied: `macs` without the products of pruned weights."""
    channel_bytes: int
    aux_bytes: int
    moving_cycles: int
    """In which its reads or its matrix instructions run."""
    busy: dict[str, int]
    """Cycles by unit."""


class Profile:
    """Tracks by unit and the operators in order of appearance."""

    def __init__(
        self,
        events: Iterable[Event],
        operators: dict[int, str],
        config: Config,
        cycles: int,
        memory: MemoryModel | None = None,
        shares: Mapping[str, float] | None = None,
    ) -> None:
        """operators: pc -> name, as `Program.operators` has it; memory: what the run was timed with (None: the
        configuration's own); shares: of an operator's products, those that the array multiplies (nothing: all)."""
        self.shares = shares or {}
        self.config, self.cycles = config, cycles
        self.peak_bytes_per_cycle = (memory or MemoryModel.of(config)).peak_bytes_per_cycle(config)
        """Of all channels together."""
        ordered = sorted(events)
        self.names = list(dict.fromkeys(operators.get(e.tag, "program") for e in ordered))
        number = {tag: self.names.index(operators.get(tag, "program")) for tag in {e.tag for e in ordered}}
        self.tracks: dict[Unit, Track] = {}
        for unit in Unit:
            mine = [(e.start, e.end, number[e.tag], e.work) for e in ordered if e.unit == unit]
            self.tracks[unit] = Track(*np.array(mine, np.int64).reshape(-1, 4).T)

    # --- operators -------------------------------------------------------------------------------------

    def rows(self) -> list[OperatorRow]:
        """One row an operator."""
        n, times, lengths = len(self.names), *self._segments()
        by_unit = {unit: track.at(times) for unit, track in self.tracks.items()}
        foremost = np.full(len(times), NOBODY)
        for unit in reversed(FOREMOST):
            foremost = np.where(by_unit[unit] == NOBODY, foremost, by_unit[unit])
        cycles = _sums(foremost, lengths, n)
        # Segments in which both units work for the same operator count once.
        reading = np.where(by_unit[Unit.RD] == by_unit[Unit.MX], NOBODY, by_unit[Unit.RD])
        moving = _sums(by_unit[Unit.MX], lengths, n) + _sums(reading, lengths, n)
        work = {unit: _sums(track.operator, track.work, n) for unit, track in self.tracks.items()}
        busy = {unit: _sums(track.operator, track.end - track.start, n) for unit, track in self.tracks.items()}
        units = self.config.units
        return [
            OperatorRow(
                name,
                int(cycles[i]),
                macs := int(work[Unit.MX][i]) * units * BLOCK * BLOCK,
                round(macs * self.shares.get(name, 1)),
                int(work[Unit.RD][i]) * units * BEAT_BYTES,
                int(work[Unit.LD][i]) * BEAT_BYTES,
                int(moving[i]),
                {unit.name: int(busy[unit][i]) for unit in Unit},
            )
            for i, name in enumerate(self.names)
        ]

    def _segments(self) -> tuple[np.ndarray, np.ndarray]:
        """First cycles and lengths of the stretches in which no unit starts or ends anything."""
        edges = [np.array([0, self.cycles])]
        edges += [values for track in self.tracks.values() for values in (track.start, track.end)]
        times = np.unique(np.concatenate(edges))
        times = times[times <= self.cycles]
        return times[:-1], np.diff(times)

    # --- over time -------------------------------------------------------------------------------------

    def busy_shares(self, unit: Unit, edges: np.ndarray) -> np.ndarray:
        """Share of each interval between edges (cycles) in which the unit works."""
        track = self.tracks[unit]
        return _spread(track.start, track.end, track.end - track.start, edges) / np.diff(edges)

    def channel_bytes_per_cycle(self, edges: np.ndarray) -> np.ndarray:
        """Bytes a cycle read from the channels in each interval.

        A read's beats are spread evenly from the arrival of its first one to that of its last one, never more than a
        beat a cycle and channel: totals are exact, the course within one instruction is an estimate.
        """
        track, latency = self.tracks[Unit.RD], self.config.read_latency
        first, last, before = np.empty(len(track.start)), np.empty(len(track.start)), 0
        for i, (start, end, beats) in enumerate(zip(track.start, track.end, track.work, strict=True)):
            first[i] = max(start + latency, before)
            last[i] = before = max(end + latency, first[i] + beats)
        moved = _spread(first, last, track.work, edges)
        return moved * self.config.units * BEAT_BYTES / np.diff(edges)


def _sums(index: np.ndarray, values: np.ndarray, n: int) -> np.ndarray:
    """int64[n]: sums of values by index, NOBODY's left out."""
    out, known = np.zeros(n, np.int64), index != NOBODY
    np.add.at(out, index[known], values[known])
    return out


def _spread(start: np.ndarray, end: np.ndarray, amount: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Amounts, each spread evenly over its interval (disjoint, ascending), by interval between edges."""
    if not len(start):
        return np.zeros(len(edges) - 1)
    total = np.concatenate([[0], np.cumsum(amount)])
    times = np.stack([start, end], axis=1).ravel()
    sums = np.stack([total[:-1], total[1:]], axis=1).ravel()
    return np.diff(np.interp(edges, times, sums))
