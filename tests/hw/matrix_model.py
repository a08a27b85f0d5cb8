"""RD and MX cycle by cycle, as the docstrings of hw/matrix_control.py tell it: a slow machine of counters and queues.

    model = MatrixModel(config, starts, program, kinds, arrivals, completes)    # cycles at which the outside acted
    model.run()
    model.takes, model.drained, model.dones, model.reads, model.weight_stall, model.units[0].pops ...

``kinds``: of every round, alike in all units (see `hw.round.ROUND_KIND`); ``arrivals``: the cycles in which each unit's
beats are on its bus; ``completes``: whether each is the last of a round.
"""

from collections import deque
from dataclasses import dataclass

from hw.spec.config import Config
from hw.spec.isa import MxMode, StreamFormat
from hw.spec.timing import (
    LOAD_INTERVAL,
    MX_ACC_LATENCY,
    MX_DRAIN_LATENCY,
    RD_ADDRESS,
    RD_BEAT,
    ROUND_ARRIVAL,
    ROUND_FREE,
    TABLE_LATENCY,
    WEIGHT_BUFFER_ROUNDS,
    accumulator_places,
    burst_length,
)
from hw.spec.weights import WINDOW

ORDERS = 4
"""Orders that may wait."""
LIMIT = 100_000


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
    """An MX instruction."""

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

    def rows(self, turn: int) -> int:
        return self.n_last if self.n_last and turn == self.n_outer - 1 else self.n_rows

    def groups(self) -> list[tuple[int, int]]:
        """(turn, steps) of each group."""
        most = max(1, self.group)
        return [(turn, min(most, self.ob - first)) for turn in range(self.n_outer) for first in range(0, self.ob, most)]


class Front:
    """One unit's beats in front of its rounds: a beat is popped in every cycle with room for another round."""

    def __init__(self, arrivals: list[int], completes: list[bool]):
        self.beats = list(zip(arrivals, completes, strict=False))
        self.pops: list[int] = []
        self.rounds: list[int] = []
        """Pops that complete a round."""
        self.stalls = 0

    def tick(self, now: int, takes: list[int]) -> None:
        """takes: with which rounds were freed."""
        if len(self.pops) == len(self.beats) or self.beats[len(self.pops)][0] + RD_BEAT > now:
            return
        freed = sum(take + ROUND_FREE <= now for take in takes[-WEIGHT_BUFFER_ROUNDS:])
        freed += max(0, len(takes) - WEIGHT_BUFFER_ROUNDS)
        if len(self.rounds) - freed == WEIGHT_BUFFER_ROUNDS:
            self.stalls += 1
            return
        if self.beats[len(self.pops)][1]:
            self.rounds.append(now)
        self.pops.append(now)


@dataclass
class Order:
    """A dense round, or the rounds of a batch for one pair of rows."""

    number: int
    made: int
    mx: Mx
    sparse: bool
    pair: int
    turn: int
    act: int
    size: int
    """Steps of the group."""
    fresh: bool
    """It begins the group."""
    ends: bool
    """It ends the group."""
    first_pair: bool
    last_pair: bool
    end: int | None = None
    """The last cycle of its steps."""


class MatrixModel:
    """See the module. ``reads``: {cycle: operand block} of every access to the operand buffer."""

    def __init__(self, config: Config, starts, program, kinds, arrivals, completes):
        self.config, self.program, self.kinds = config, list(program), kinds
        self.starts = list(starts)
        self.units = [Front(*each) for each in zip(arrivals, completes, strict=True)]
        self.takes, self.frees, self.drained, self.dones = [], [], [], []
        self.reads: dict[int, int] = {}
        self.weight_stall = self.drain_stall = 0
        self.waiting: deque[Order] = deque()
        self.in_work: list[Order] = []
        self.steps: deque[list[int]] = deque()
        """Of steps whose sums are or will be complete: the first cycle in which they can be drained, cycles left."""
        self.at = 0
        """The next round that becomes an order."""
        self.batch = False
        """It is of a batch that has its orders."""
        self.places_used = 0
        self.last_load = -LOAD_INTERVAL
        self.order: Order | None = None
        self.inside: int | None = None
        """The next round of the order that is carried out."""
        self.free_from = 0
        """The last cycle of the steps under way: the next take is then at the earliest."""
        self.mx: Mx | None = None

    def run(self) -> None:
        for now in range(LIMIT):
            if len(self.dones) == len(self.program):
                break
            self._start(now)
            for unit in self.units:
                unit.tick(now, self.frees)
            drained = self._drain(now)
            self._take(now)
            self._make_order(now)
            self.places_used -= drained
        else:
            raise AssertionError(f"not done after {LIMIT} cycles: takes {self.takes}")
        while any(len(unit.pops) < len(unit.beats) for unit in self.units):
            for unit in self.units:
                unit.tick(now, self.frees)
            now += 1

    def _start(self, now: int) -> None:
        """An instruction that started a cycle ago is in work."""
        number = len(self.dones)
        if self.mx is None and number < len(self.starts) and self.starts[number] < now:
            self.mx, self.rounds_left = self.program[number], True
            self.groups, self.ordering = deque(self.mx.groups()), True
            self.pair, self.round_of_group = 0, 0

    def _arrived(self, now: int) -> int:
        """Rounds that have come from every unit."""
        return min(sum(pop + ROUND_ARRIVAL <= now for pop in unit.rounds) for unit in self.units)

    # Orders

    def _make_order(self, now: int) -> None:
        if self.mx is None or not (self.ordering or self.batch) or self.at >= self._arrived(now):
            return
        kind = self.kinds[self.at]
        if self.batch:
            self.at, self.batch = self.at + 1, bool(kind["more"])
            return
        if not self._may_order(now, kind["sparse"]):
            return
        turn, size = self.groups[0]
        rows = self.mx.rows(turn)
        last_pair = not kind["sparse"] or self.pair == (rows - 1) // 2
        last = self.round_of_group == self.mx.kb - 1 if kind["raw"] else kind["last"]
        order = Order(
            self.at,
            now,
            self.mx,
            bool(kind["sparse"]),
            self.pair,
            turn,
            self._act(kind, turn),
            size,
            self.round_of_group == 0 and self.pair == 0,
            bool(last and last_pair),
            self.pair == 0,
            last_pair,
        )
        self.waiting.append(order)
        if order.sparse:
            self._load(now, order, rows)
        self.pair += 1
        if last_pair:
            self.pair, self.round_of_group = 0, self.round_of_group + 1
            self.at, self.batch = self.at + 1, bool(kind["more"])
        if order.ends:
            self.round_of_group = 0
            self.groups.popleft()
            self.ordering = bool(self.groups)

    def _may_order(self, now: int, sparse: bool) -> bool:
        waits = [order for order in self.waiting if order.made < now]
        if not sparse:
            return len(waits) < ORDERS
        orders = waits + [order for order in self.in_work if order.end is None or order.end >= now]
        # A dense round is done behind its last step, a pair with it.
        pairs = sum(order.sparse and order.end != now for order in orders)
        return now >= self.last_load + LOAD_INTERVAL and pairs < 2 and all(order.sparse for order in orders)

    def _act(self, kind, turn: int) -> int:
        """The first operand block of the first row."""
        mx, units = self.mx, self.config.units if self.mx.mode == MxMode.SPLIT_K else 1
        offset = self.round_of_group * units if kind["raw"] else kind["window"] * WINDOW
        return mx.act + turn * mx.act_out + offset

    def _load(self, now: int, order: Order, rows: int) -> None:
        self.last_load = now
        for row in range(2 * order.pair, min(rows, 2 * order.pair + 2)):
            self._read(now + row % 2, order.act + row * self.mx.act_stride)

    def _read(self, cycle: int, block: int) -> None:
        assert cycle not in self.reads, f"two reads of the operand buffer in cycle {cycle}"
        self.reads[cycle] = block

    # Steps

    def _take(self, now: int) -> None:
        if self.mx is None or not self.rounds_left or now < self.free_from:
            return
        if self.inside is not None:
            order, number = self.order, self.inside
            ready, room = not order.first_pair or number < self._arrived(now), True
        else:
            order = self.waiting[0] if self.waiting and self.waiting[0].made < now else None
            number = order.number if order else None
            ready = order is not None and (not order.sparse or now >= order.made + TABLE_LATENCY)
            places = accumulator_places(self.mx.n_rows, self.config.acc_rows)
            room = ready and (not order.fresh or self.places_used + order.size <= places)
        self.weight_stall += not ready
        self.drain_stall += ready and not room
        if ready and room:
            self._carry_out(now, order, number)

    def _carry_out(self, now: int, order: Order, number: int) -> None:
        if self.inside is None:
            self.in_work.append(self.waiting.popleft())
            self.order = order
            self.places_used += order.size * order.fresh
        self.takes.append(now)
        if order.last_pair:
            self.frees.append(now)
        rows, passes = order.mx.rows(order.turn), self.config.passes
        self.free_from = now + (2 if order.sparse else rows) * passes
        if not order.sparse:
            for row in range(rows):
                for pass_ in range(passes):
                    self._read(now + 1 + row * passes + pass_, order.act + row * order.mx.act_stride)
        if self.kinds[number]["more"]:
            self.inside = number + 1
            return
        self.inside, order.end = None, self.free_from
        if order.ends:
            a_row = 1 if order.mx.mode == MxMode.SPLIT_K else self.config.drain_cycles_a_row
            for _ in range(order.size):
                self.steps.append([order.end + MX_ACC_LATENCY, rows * a_row])
            self.rounds_left = self.ordering or bool(self.waiting)

    # Sums

    def _drain(self, now: int) -> int:
        """Drains for a cycle; steps whose place is free in the next."""
        if self.steps and self.steps[0][0] <= now:
            self.steps[0][1] -= 1
            if self.steps[0][1] == 0:
                self.steps.popleft()
                self.drained.append(now)
                if not self.steps and not self.rounds_left:
                    self.dones.append(now + MX_DRAIN_LATENCY)
                    self.mx = None
                return 1
        return 0


def address_times(config: Config, starts: list[int], program: list[Rd], pops: list[int], ready):
    """A unit's bursts: (handshake cycle, beat address, beats) of each, and the cycles in which they leave the reader.

    They go through a register slice, which holds two. ``ready(cycle)`` is arready.
    """
    bursts = [
        (start + RD_ADDRESS - 1, *burst) for start, rd in zip(starts, program, strict=False) for burst in rd.bursts()
    ]
    out, left, between, reserved = [], [], deque(), 0
    for now in range(LIMIT):
        if len(out) == len(bursts):
            return out, left
        full = len(between) == 2
        if between and ready(now):
            out.append((now, *between.popleft()))
        if len(left) < len(bursts) and not full:
            earliest, at, length = bursts[len(left)]
            if now >= earliest and reserved - sum(pop < now for pop in pops) + length <= config.fifo_beats:
                between.append((at, length))
                left.append(now)
                reserved += length
    raise AssertionError(f"{len(out)} of {len(bursts)} addresses after {LIMIT} cycles")
