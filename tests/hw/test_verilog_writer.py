"""Verilog of components, and of blocks that are written once."""

import os
import subprocess
import sys

import pytest
from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hw.verilog_writer import as_module, convert, module_names


class Delay(wiring.Component):
    """o follows i after one cycle."""

    def __init__(self, bits: int):
        super().__init__({"i": In(bits), "o": Out(bits)})

    def elaborate(self, platform):
        Delay.n_elaborated += 1
        m = Module()
        m.d.sync += self.o.eq(self.i)
        return m


class Invert(wiring.Component):
    """Combinational: no clock port in its Verilog."""

    i: In(8)
    o: Out(8)

    def elaborate(self, platform):
        m = Module()
        m.d.comb += self.o.eq(~self.i)
        return m


class Pair(wiring.Component):
    """Two delays in a row, each the same module."""

    i: In(8)
    o: Out(8)

    def elaborate(self, platform):
        m = Module()
        m.submodules.a = a = as_module(Delay(8), "delay")
        m.submodules.b = b = as_module(Delay(8), "delay")
        m.d.comb += [a.i.eq(self.i), b.i.eq(a.o), self.o.eq(b.o)]
        return m


class Tower(wiring.Component):
    """Wrapped blocks inside wrapped blocks."""

    i: In(8)
    o: Out(8)

    def elaborate(self, platform):
        m = Module()
        value = self.i
        for n in range(3):
            m.submodules[f"pair{n}"] = pair = as_module(Pair(), "pair")
            m.d.comb += pair.i.eq(value)
            value = pair.o
        m.submodules.invert = invert = as_module(Invert(), "invert")
        m.d.comb += [invert.i.eq(value), self.o.eq(invert.o)]
        return m


def test_blocks_are_elaborated_and_written_once():
    Delay.n_elaborated = 0
    names = module_names(convert(Tower(), "tower"))
    assert Delay.n_elaborated == 1
    assert sorted(name for name in names if "." not in name) == ["delay", "invert", "pair", "tower"]


def test_two_blocks_of_one_name_must_agree():
    class Clash(wiring.Component):
        o: Out(16)

        def elaborate(self, platform):
            m = Module()
            m.submodules.a = a = as_module(Delay(8), "delay")
            m.submodules.b = b = as_module(Delay(16), "delay")
            m.d.comb += [a.i.eq(1), b.i.eq(Signal(16)), self.o.eq(a.o + b.o)]
            return m

    Delay.n_elaborated = 0
    with pytest.raises(ValueError, match="'delay' is used with two different signatures"):
        convert(Clash(), "clash")


def test_text_does_not_depend_on_the_process():
    """The text keys the build cache: a hash seed or a path in it would make every build a new one."""
    script = "from tests.hw.test_verilog_writer import *; Delay.n_elaborated = 0; print(convert(Tower(), 'tower'))"
    command = [sys.executable, "-c", script]
    texts = [
        subprocess.check_output(command, env=os.environ | {"PYTHONHASHSEED": str(seed)}, text=True) for seed in (1, 2)
    ]
    assert texts[0] == texts[1]
    assert "/" not in texts[0]
