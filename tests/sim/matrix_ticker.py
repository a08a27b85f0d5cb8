"""A slow model of MX that ticks every cycle, from docs/machine.md: tables, orders, takes and drains.

Two walks go over the rounds, each in its own pace: one reads pairs of rows for the tables, one takes rounds. Drains
follow groups that are done.
"""

from dataclasses import dataclass

from hw.spec.config import Config
from hw.spec.isa import MxMode
from hw.spec.timing import LOAD_INTERVAL, MX_ACC_LATENCY, MX_DRAIN_LATENCY, TABLE_LATENCY, accumulator_places

RAW = "raw"
"""The kind of a RAW round; that of others is `tests.sim.streams.Kind`."""


@dataclass
class Walk:
    """A place in an instruction's rounds: the next round, the group it belongs to, the pair of rows it is for.

    first: the round that began the batch; k: rounds (RAW) of the group before.
    """

    f: dict[str, int]
    number: int
    first: int
    step: int = 0
    pair: int = 0
    k: int = 0
    fresh: bool = True

    @property
    def done(self):
        return self.step == self.f["n_outer"] * self.f["ob"]

    @property
    def size(self):
        """Steps of the group."""
        return min(max(1, self.f["group"]), self.f["ob"] - self.step % self.f["ob"])

    @property
    def rows(self):
        last_turn = self.step // self.f["ob"] == self.f["n_outer"] - 1
        return self.f["n_last"] or self.f["n_rows"] if last_turn else self.f["n_rows"]

    @property
    def last_pair(self):
        return self.pair == (self.rows - 1) // 2

    def forward(self, kind):
        """Behind the next round: its kind. Whether an order ends there, and a group."""
        _, _, sparse, more, last = (0, 0, False, False, self.k == self.f["kb"] - 1) if kind == RAW else kind
        self.fresh = False
        self.number += 1
        if more:
            return False, False
        if sparse and not self.last_pair:
            self.pair, self.number = self.pair + 1, self.first
            return True, False
        self.pair, self.first, self.k = 0, self.number, self.k + 1
        if last:
            self.step, self.k, self.fresh = self.step + self.size, 0, True
        return True, last


def is_sparse(kind):
    return kind != RAW and kind[2]


class Matrix:
    """rounds: (cycle from which on it can be begun with, kind) of every round so far, of the whole program."""

    def __init__(self, config: Config):
        self.config, self.rounds, self.take = config, [], None
        self.weight_stall = self.drain_stall = 0
        self.freed_at = -1
        """Cycle of the latest take that reads a round for the last time."""

    def start(self, s, f):
        first = self.take.number if self.take else 0
        self.s, self.f = s, f
        self.take, self.load = Walk(f, first, first), Walk(f, first, first)
        self.ready, self.dense_end = s + 1, 0
        self.read = []
        """Cycles in which the rows of a pair were read, of every sparse order so far."""
        self.orders_loaded = 0
        """Those that `load` is behind of."""
        self.ends = []
        """Last cycles in which sparse orders are multiplied."""
        self.drains, self.dend = [], []
        """(first cycle in which it can be drained, rows) of steps that are made; ends of the drains so far."""

    def tick(self, t):
        """One cycle; whether the instruction ends in it."""
        if t > self.s:
            self.read_rows(t)
            if not self.take.done and t >= self.ready:
                self.take_round(t)
        self.drain(t)
        return self.take.done and not self.drains and t == self.dend[-1] + MX_DRAIN_LATENCY

    def has_come(self, number, t):
        return number < len(self.rounds) and self.rounds[number][0] <= t

    def read_rows(self, t):
        """Goes behind a dense round when it is multiplied, behind the first round of a batch when a pair is read."""
        load = self.load
        while not load.done and self.has_come(load.number, t):
            kind = self.rounds[load.number][1]
            sparse = is_sparse(kind)
            if not sparse and (self.take.number <= load.number or t <= self.dense_end):
                return
            if sparse and len(self.read) == self.orders_loaded:
                if not self.may_read(t):
                    return
                self.read.append(t)
            order_ends, _ = load.forward(kind)
            self.orders_loaded += sparse and order_ends

    def may_read(self, t):
        """Whether the pair before last is multiplied, whose table it is, and the last pair's table is written."""
        p = len(self.read)
        if p >= 2 and (len(self.ends) < p - 1 or t < self.ends[p - 2]):
            return False
        return p == 0 or t >= self.read[-1] + LOAD_INTERVAL

    def take_round(self, t):
        walk, places = self.take, accumulator_places(self.f["n_rows"], self.config.acc_rows)
        if not self.is_there(t):
            self.weight_stall += 1
            return
        behind = walk.step + walk.size - 1 - places
        if walk.fresh and behind >= 0 and (behind >= len(self.dend) or t < self.dend[behind] + 1):
            self.drain_stall += 1
            return
        kind, rows, size = self.rounds[walk.number][1], walk.rows, walk.size
        sparse = is_sparse(kind)
        self.ready = end = t + (2 if sparse else rows) * self.config.passes
        if walk.last_pair or not sparse:
            self.freed_at = t
        order_ends, group_ends = walk.forward(kind)
        if not sparse:
            self.dense_end = end
        elif order_ends:
            self.ends.append(end)
        if group_ends:
            self.drains += [(end + MX_ACC_LATENCY, rows)] * size

    def is_there(self, t):
        """Whether everything but places for the sums of the next round's group is."""
        walk, order = self.take, len(self.ends)
        if not self.has_come(walk.number, t):
            return False
        if not is_sparse(self.rounds[walk.number][1]):
            return self.has_come(walk.number, t - 1) and t > self.s + 1
        return walk.number > walk.first or (order < len(self.read) and t >= self.read[order] + TABLE_LATENCY)

    def drain(self, t):
        """Steps one after the other; of a step, row by row."""
        wide = self.f["mode"] == MxMode.SPLIT_N
        if self.drains and t >= self.drains[0][0] and (not self.dend or t >= self.dend[-1] + 1):
            _, rows = self.drains.pop(0)
            self.dend.append(t + rows * (self.config.drain_cycles_a_row if wide else 1) - 1)
