"""Synthesis by unit: modules that are alike are one, counts multiply, and the longest path is found across modules."""

from functools import cache

from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from hw.dsp_group import delay
from hw.levels import Levels, levels
from hw.synth import luts, synthesise, tally
from hw.synth_units import digest, distinct, instances, split_modules, synthesise_units, unit_of
from hw.verilog_writer import convert


class Stage(wiring.Component):
    """The parity of 11 bits, which takes two levels of LUTs."""

    i: In(11)
    o: Out(1)

    def elaborate(self, platform):
        m = Module()
        m.d.comb += self.o.eq(self.i.xor())
        return m


class Pair(wiring.Component):
    """Two stages behind each other, registered at the end."""

    i: In(32)
    o: Out(1)

    def elaborate(self, platform):
        m = Module()
        m.submodules.first = first = Stage()
        m.submodules.second = second = Stage()
        held = Signal(11)
        m.d.sync += held.eq(self.i[11:])
        m.d.comb += [first.i.eq(self.i[:11]), second.i.eq(held ^ first.o.replicate(11))]
        m.d.sync += self.o.eq(second.o)
        return m


VERILOG = convert(Pair(), "alula")


@cache
def synthesised():
    """The pair, mapped once for all tests that look at it."""
    return synthesise_units(VERILOG, "alula")


def test_units_by_place():
    names = {
        "alula": "ports",
        "alula.control": "control",
        "alula.core": "core",
        "alula.core.load$367": "load",
        "alula.core.vector.lane_3": "vector",
        "matrix_unit.chain_0.group_1": "matrix_unit",
    }
    assert {name: unit_of(name) for name in names} == names


def test_modules_that_are_alike_are_one():
    modules = split_modules(VERILOG)
    assert set(modules) == {"alula", "alula.first", "alula.second"}
    stands_for, texts = distinct(modules, "alula")
    assert stands_for["alula.second"] == "alula.first" and list(texts) == ["alula.first", "alula"]
    assert instances(texts, "alula") == {"alula": 1, "alula.first": 2}


def test_counts_equal_those_of_the_whole():
    made = synthesised()
    assert made.table() == tally(synthesise(VERILOG, "alula")["alula"])
    assert made.table("first")["LUT"] == 4 and made.table()["FF"] == 12
    assert sum(made.table(unit)["LUT"] for unit in made.units) == made.table()["LUT"]


def test_the_longest_path_goes_through_modules():
    made = synthesised()
    found = levels(made, "alula")
    assert (found.luts, found.carries, found.muxes) == (5, 0, 0)  # 2, the XOR, 2
    assert found.starts_in == "i" and found.ends_in == "o (FDRE)"
    assert levels(made, "alula.first") == Levels(2, 0, 0, "i", "o")
    alone = levels(made, "alula", inside=lambda name: name == "alula")
    assert alone.luts == 1


class Around(wiring.Component):
    """A parity behind a stage whose second output is its input, and LUT memory that is written from it."""

    i: In(11)
    o: Out(1)

    def elaborate(self, platform):
        m = Module()
        m.submodules.through = through = Through()
        m.submodules.memory = memory = Memory(shape=1, depth=32, init=[])
        write, read = memory.write_port(), memory.read_port(domain="comb")
        m.d.comb += [
            through.i.eq(Cat(self.i[:10], self.i.xor())),
            write.data.eq(through.copy),
            write.en.eq(1),
            write.addr.eq(self.i),
            read.addr.eq(self.i),
        ]
        m.d.sync += self.o.eq(read.data)
        return m


class Through(wiring.Component):
    """One bit of its input as it came."""

    i: In(11)
    copy: Out(1)

    def elaborate(self, platform):
        m = Module()
        m.d.comb += self.copy.eq(self.i[10])
        return m


def test_paths_go_through_modules_and_end_where_a_memory_is_written():
    found = levels(synthesise_units(convert(Around(), "alula"), "alula"), "alula")
    assert found.luts == 2 and "RAM" in found.ends_in


class Delayed(wiring.Component):
    """What a block is asked and what it answers are registered inside it; the parity behind is outside."""

    i: In(11)
    o: Out(1)

    def elaborate(self, platform):
        m = Module()
        held, late = Signal(11), Signal(11)
        m.d.sync += [held.eq(self.i), late.eq(held)]
        m.submodules.stage = stage = Stage()
        m.d.comb += stage.i.eq(late)
        m.d.sync += self.o.eq(stage.o)
        return m


class Chain(wiring.Component):
    """A parity behind each of two equal blocks."""

    i: In(11)
    o: Out(2)

    def elaborate(self, platform):
        m = Module()
        for number in range(2):
            m.submodules[f"delayed_{number}"] = delayed = Delayed()
            m.submodules[f"stage_{number}"] = stage = Stage()
            m.d.comb += [delayed.i.eq(self.i), stage.i.eq(self.i ^ delayed.o.replicate(11))]
            m.d.sync += self.o[number].eq(stage.o)
        return m


def test_paths_start_and_end_inside_of_modules():
    found = levels(synthesise_units(convert(Chain(), "alula"), "alula"), "alula")
    assert found.luts == 3 and found.starts_in == "delayed_0.o (FDRE)" and found.ends_in == "o[0] (FDRE)"


class ShiftRegister(wiring.Component):
    """Twenty cycles late."""

    i: In(1)
    o: Out(1)

    def elaborate(self, platform):
        m = Module()
        m.d.comb += self.o.eq(delay(m, self.i, 20, "late"))
        return m


def test_shift_registers_are_counted_apart():
    """Twenty stages are one SRLC32E, with or without a flip-flop behind it."""
    made = synthesise_units(convert(ShiftRegister(), "alula"), "alula").table()
    assert made["SRL"] == 1 and made["LUT"] == made["LUTRAM"] == 0 and made["FF"] <= 1
    assert luts(made) == 1


def test_what_figures_come_from_has_one_digest():
    assert digest(VERILOG) == digest(VERILOG) != digest(VERILOG + " ")


def test_modules_of_units_that_were_left_out_end_paths():
    made = synthesise_units(VERILOG, "alula", only={"ports"})
    assert levels(made, "alula").luts == 1


def test_the_cache_gives_what_was_mapped(tmp_path):
    made = []

    def kept(key, make):
        folder = tmp_path / key
        if not folder.exists():
            folder.mkdir()
            make(folder)
            made.append(key)
        return folder

    first, second = (synthesise_units(VERILOG, "alula", cache=kept) for _ in range(2))
    assert first == second and len(made) == 2  # both stages are one module
