"""docs/machine.md's formulas for RD and MX, read aloud: every cycle from the cycles at which the outside acted."""

from dataclasses import dataclass, field

from hw.spec.config import Config
from hw.spec.isa import MxMode, StreamFormat
from hw.spec.timing import MX_ACC_LATENCY, MX_DRAIN_LATENCY, WEIGHT_BUFFER_ROUNDS, accumulator_places, burst_length


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


@dataclass
class Mx:
    """An MX instruction; ``rounds``: whether each is sparse, and whether it ends its step."""

    act: int
    act_stride: int
    n_rows: int
    kb: int
    ob: int
    dst: int
    dst_stride: int
    mode: MxMode
    n_outer: int = 1
    act_out: int = 0
    dst_out: int = 0
    n_last: int = 0
    group: int = 0
    rounds: list[tuple[bool, bool]] = field(default_factory=list)

    def cost(self, config: Config, sparse: bool) -> int:
        return (2 * -(-self.n_rows // 2) if sparse else self.n_rows) * config.passes


@dataclass
class MxTimes:
    start: int
    takes: list[int]
    drains: list[tuple[int, int]]
    done: int


class FrontModel:
    """One unit's pops, from the cycles its beats arrive and its rounds are taken."""

    def __init__(self, arrivals: list[int], completes: list[bool]):
        """completes: whether a beat is the last of a round."""
        self.beats = list(zip(arrivals, completes, strict=False))
        self.pops: list[int] = []
        self.takes: list[int] = []
        self.round_pops: list[int] = []

    def full(self) -> int | None:
        """The cycle from which the next round is full, or None if its beats never come."""
        while len(self.round_pops) == len(self.takes):
            if not self.pop():
                return None
        return self.round_pops[len(self.takes)] + 1

    def pop(self) -> bool:
        """Pops one more beat; False if there is none, or if room depends on a take to come."""
        if len(self.pops) == len(self.beats):
            return False
        freed = len(self.round_pops) - WEIGHT_BUFFER_ROUNDS
        if freed >= len(self.takes):
            return False
        arrival, completes = self.beats[len(self.pops)]
        self.pops.append(
            max(arrival + 1, self.pops[-1] + 1 if self.pops else 0, self.takes[freed] + 1 if freed >= 0 else 0)
        )
        if completes:
            self.round_pops.append(self.pops[-1])
        return True

    def stalls(self) -> int:
        """Cycles in which a beat is held back for want of room."""
        ready = [max(arrival, before) + 1 for (arrival, _), before in zip(self.beats, [-1, *self.pops], strict=False)]
        return sum(pop - at for pop, at in zip(self.pops, ready, strict=True))


def mx_times(config: Config, starts: list[int], program: list[Mx], fronts: list[FrontModel]) -> list[MxTimes]:
    """Takes, drains and ends of MX instructions started in ``starts``."""
    times = []
    for s, mx in zip(starts, program, strict=False):
        d = config.drain_cycles_a_row if mx.mode == MxMode.SPLIT_N else 1
        takes, drains, free, first = [], [], s + 1, True
        slots = accumulator_places(mx.n_rows, config.acc_rows)
        for sparse, last in mx.rounds:
            take = max([front.full() for front in fronts] + [free])
            if first and len(drains) >= slots:
                take = max(take, drains[-slots][1] + 1)
            for front in fronts:
                front.takes.append(take)
            takes.append(take)
            free, first = take + mx.cost(config, sparse), last
            if last:
                dstart = free + MX_ACC_LATENCY
                if drains:
                    dstart = max(dstart, drains[-1][1] + 1)
                drains.append((dstart, dstart + mx.n_rows * d - 1))
        times.append(MxTimes(s, takes, drains, drains[-1][1] + MX_DRAIN_LATENCY))
    return times


def address_times(
    config: Config, starts: list[int], program: list[Rd], pops: list[int], ready
) -> list[tuple[int, int, int]]:
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
