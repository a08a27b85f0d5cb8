"""docs/machine.md's formulas for RD and MX, read aloud: every cycle from the cycles at which the outside acted."""

from dataclasses import dataclass

from hw.spec.config import BLOCK_BEATS, Config
from hw.spec.isa import MxMode, StreamFormat
from hw.spec.timing import MX_ACC_LATENCY, MX_DRAIN_LATENCY, burst_length


@dataclass
class Rd:
    """An RD instruction (beat addresses)."""

    addr: int
    n_outer: int
    n_inner: int
    stride: int
    fmt: StreamFormat

    def bursts(self):
        """(beat address, beats) of each burst."""
        for outer in range(self.n_outer):
            at, left = self.addr + outer * self.stride, self.n_inner
            while left:
                length = burst_length(at, left)
                yield at, length
                at, left = at + length, left - length

    @property
    def headers(self) -> list[bool]:
        total = self.n_outer * self.n_inner
        return [self.fmt == StreamFormat.STREAM and i == 0 for i in range(total)]


@dataclass
class Mx:
    """An MX instruction."""

    act: int
    act_stride: int
    n_rows: int
    kb: int
    ob: int
    dst: int
    dst_stride: int
    mode: MxMode


@dataclass
class MxTimes:
    start: int
    takes: list[int]
    drains: list[tuple[int, int]]
    done: int


class FrontModel:
    """One unit's pops, from the cycles its beats arrive and its blocks are taken."""

    def __init__(self, arrivals: list[int], headers: list[bool]):
        self.beats = list(zip(arrivals, headers, strict=False))
        self.pops: list[int] = []
        self.free = 0  # cycle from which the next block's first beat may be popped

    def full(self) -> int | None:
        """The cycle from which the next block is full, or None if its beats never come."""
        n = 0
        while n < BLOCK_BEATS:
            if len(self.pops) == len(self.beats):
                return None
            arrival, header = self.beats[len(self.pops)]
            after = self.pops[-1] + 1 if self.pops else 0
            self.pops.append(max(arrival + 1, after, self.free))
            n += not header
        return self.pops[-1] + 1

    def take(self, cycle: int):
        self.free = cycle


def mx_times(config: Config, starts: list[int], program: list[Mx], fronts: list[FrontModel]) -> list[MxTimes]:
    """Takes, drains and ends of MX instructions started in ``starts``."""
    times = []
    for s, mx in zip(starts, program, strict=False):
        cost = mx.n_rows * config.passes
        d = config.drain_cycles_a_row if mx.mode == MxMode.SPLIT_N else 1
        takes, drains = [], []
        for i in range(mx.ob * mx.kb):
            step, k = divmod(i, mx.kb)
            take = max([front.full() for front in fronts] + [s + 1])
            if i:
                take = max(take, takes[-1] + cost)
            if k == 0 and step >= 2:
                take = max(take, drains[step - 2][1] + 1)
            for front in fronts:
                front.take(take)
            takes.append(take)
            if k == mx.kb - 1:
                dstart = take + cost + MX_ACC_LATENCY
                if drains:
                    dstart = max(dstart, drains[-1][1] + 1)
                drains.append((dstart, dstart + mx.n_rows * d - 1))
        times.append(MxTimes(s, takes, drains, drains[-1][1] + MX_DRAIN_LATENCY))
    return times


def address_times(config: Config, starts: list[int], program: list[Rd], pops: list[int],
                  ready) -> list[tuple[int, int, int]]:
    """(handshake cycle, beat address, beats) of each burst of a unit; ``ready(cycle)`` is arready."""
    out, reserved_before = [], 0
    for s, rd in zip(starts, program, strict=False):
        cycle = s + 1
        for at, length in rd.bursts():
            while True:
                popped = sum(p < cycle for p in pops)
                if reserved_before - popped + length <= config.fifo_beats and ready(cycle):
                    break
                cycle += 1
            out.append((cycle, at, length))
            reserved_before += length
            cycle += 1
    return out
