"""Proofs by SMT: a register slice loses and doubles nothing, and rounds are counted once and keep their places."""

from dataclasses import replace

from amaranth.hdl import Cat, Const, Module, Signal, unsigned
from amaranth.lib import wiring
from amaranth.lib.wiring import Out

from hw import weight_buffer
from hw.round_queue import COUNT, RoundQueue
from hw.skid import Skid
from hw.spec.config import get
from hw.spec.timing import WEIGHT_BUFFER_ROUNDS
from tests.hw.smt import prove

PAYLOAD = unsigned(8)
UNITS = 2
FREE_DELAY = 3
"""Cycles from the schedule's free to that of a unit's buffer: registers between core and unit."""
LAG = 4
"""Rounds that every unit has given and that are not counted yet, at most."""


class Slice(wiring.Component):
    """``differ``: a register slice is not a queue of two. What goes into a queue comes out once and in order, and its
    head stays until it is taken.

    Reset empties both. ``waits``: the slice looks at ``o_ready``.
    """

    differ: Out(1)
    premise: Out(1, init=1)

    def __init__(self, waits=True):
        super().__init__()
        self.waits, self.skid = waits, Skid(PAYLOAD)
        self.i, self.i_valid, self.o_ready, self.kept = (
            Signal(PAYLOAD, name="i"),
            Signal(name="i_valid"),
            Signal(name="o_ready"),
            Signal(PAYLOAD, name="kept_inside"),
        )
        self.inputs = [self.i, self.i_valid, self.o_ready, self.kept]
        self.hidden = {"skid.kept": self.kept}

    def elaborate(self, platform):
        m = Module()
        m.submodules.skid = dut = self.skid
        head, second = (Signal(PAYLOAD, name=name, reset_less=True) for name in ("head", "second"))
        level, pushed, popped, behind = Signal(range(3)), Signal(), Signal(), Signal(range(3))
        m.d.comb += [
            dut.i.eq(self.i),
            dut.i_valid.eq(self.i_valid),
            dut.o_ready.eq(self.o_ready | (not self.waits)),
            popped.eq(self.o_ready & (level != 0)),
            pushed.eq(self.i_valid & (level != 2)),
            behind.eq(level - popped),
            self.differ.eq(
                (dut.o_valid != (level != 0))
                | (dut.i_ready != (level != 2))
                | ((level != 0) & (dut.o != head))
                | ((level == 2) & (self.kept != second))
                | (level > 2)
            ),
        ]
        m.d.sync += level.eq(behind + pushed)
        with m.If(popped):
            m.d.sync += head.eq(second)
        with m.If(pushed):
            with m.If(behind == 0):
                m.d.sync += head.eq(self.i)
            with m.Else():
                m.d.sync += second.eq(self.i)
        return m


class Credits(wiring.Component):
    """``differ``: rounds are lost or counted twice on their way from the units to the schedule, or a place is given
    away before it is free.

    ``given``: rounds that each unit has completed, ``freed``: those that the schedule has freed, modulo 64; a unit
    hears of the latter FREE_DELAY cycles later. The premise: a unit completes a round only with ``room``, and the
    schedule frees rounds that have come. Then, in every cycle and for every unit:

    - ``arrived`` is ``given`` less what is in the registers on the way, and ``freed`` is not ahead of it;
    - no more than WEIGHT_BUFFER_ROUNDS rounds are not freed, and with ``room`` fewer;
    - ``room`` is low only if so many are not freed, or their frees are under way;
    - at most LAG of the rounds that all units have given are not counted.
    """

    differ: Out(1)
    premise: Out(1)

    def __init__(self):
        super().__init__()
        self.done, self.free = Signal(UNITS, name="done"), Signal(name="free")
        self.compared, self.agreed = Signal(name="compared_inside"), Signal(name="agreed_inside")
        self.there = Signal(UNITS, name="there_inside")
        self.held, self.level, self.came = (
            [Signal(shape, name=f"{name}_{unit}_inside") for unit in range(UNITS)]
            for name, shape in (("held", COUNT), ("level", COUNT), ("came", 1))
        )
        self.hidden = {
            "rounds.compared": self.compared,
            "rounds.agreed": self.agreed,
            "rounds.there": self.there,
            **{f"buffer_{unit}.held": self.held[unit] for unit in range(UNITS)},
            **{f"rounds.level_{unit}": self.level[unit] for unit in range(UNITS)},
            **{f"rounds.done_{unit}": self.came[unit] for unit in range(UNITS)},
        }
        self.inputs = [self.done, self.free, *self.hidden.values()]

    def elaborate(self, platform):
        m = Module()
        m.submodules.rounds = rounds = RoundQueue(replace(get("tiny"), units=UNITS))
        freed, told = Signal(COUNT), Signal(FREE_DELAY)
        m.d.sync += [freed.eq(freed + self.free), told.eq(Cat(self.free, told))]
        m.d.comb += rounds.done.eq(self.done)
        allowed, wrong, late = ~self.free | (rounds.arrived != freed), Const(0), Const(1)
        for unit in range(UNITS):
            m.submodules[f"buffer_{unit}"] = buffer = weight_buffer.WeightBuffer()
            m.d.comb += [buffer.done.eq(self.done[unit]), buffer.free.eq(told[-1])]
            given, kept, arrived = (Signal(COUNT, name=f"{name}_{unit}") for name in ("given", "kept", "arrived"))
            m.d.sync += given.eq(given + self.done[unit])
            m.d.comb += [
                kept.eq(given - freed),
                arrived.eq(rounds.arrived - freed),
            ]
            on_way = self.came[unit] + self.level[unit] + self.compared + self.agreed
            not_told = sum(told, start=Const(0))
            allowed &= ~self.done[unit] | buffer.room
            wrong |= arrived + on_way != kept
            taken = kept + not_told
            wrong |= (taken > WEIGHT_BUFFER_ROUNDS) | (buffer.room & (kept >= WEIGHT_BUFFER_ROUNDS))
            wrong |= (self.held[unit] != taken) | (buffer.room == (taken == WEIGHT_BUFFER_ROUNDS))
            wrong |= self.there[unit] != (self.level[unit] != 0)
            late &= (self.level[unit] > 1) | (on_way > LAG)
        m.d.comb += [self.premise.eq(allowed), self.differ.eq(wrong | late)]
        return m


def test_a_register_slice_is_a_queue_of_two(tmp_path):
    assert prove(tmp_path, Slice()) is None


def test_a_slice_that_does_not_wait_is_found(tmp_path):
    found = prove(tmp_path, Slice(waits=False))
    assert found["o_ready"] == 0


def test_every_round_is_counted_once_and_keeps_its_place_until_it_is_freed(tmp_path):
    assert prove(tmp_path, Credits()) is None


def test_a_place_too_many_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(weight_buffer, "WEIGHT_BUFFER_ROUNDS", WEIGHT_BUFFER_ROUNDS + 1)
    assert prove(tmp_path, Credits()) is not None
