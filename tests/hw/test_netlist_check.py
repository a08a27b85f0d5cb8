"""What the netlist check finds: planted faults on small designs, and the whole machine on `tiny`."""

from functools import partial

import pytest

from hw.levels import above
from hw.netlist_check import Nets, check, fanouts, payload_resets, unregistered_crossings
from hw.packing import packed_luts
from hw.synth_units import Netlist, synthesise_units
from sim.cache import entry
from sim.rtl.accelerator import synthesisable

CLOCK = 1
OUTPUTS = ("Q", "Y", "DO")


def cell(kind, net=None, **pins):
    """A cell as Yosys's JSON has it: each pin with its nets, which are numbers."""
    ways = {pin: "output" if pin in OUTPUTS else "input" for pin in pins}
    return {"type": kind, "connections": pins, "port_directions": ways, "net": net}


def register(i, o, name, **pins):
    return cell("FDRE", name, C=[CLOCK], D=[i], Q=[o], **pins)


def lut(table, inputs, o):
    return cell("$lut", A=inputs, Y=[o]) | {"parameters": {"LUT": table}}


def module(cells, **ports):
    """A module of these cells; a port whose name begins with `o` is an output."""
    ways = {name: "output" if name.startswith("o") else "input" for name in ports}
    return {
        "cells": {str(number): each for number, each in enumerate(cells)},
        "ports": {name: {"direction": ways[name], "bits": bits} for name, bits in ports.items()},
    }


def netlist(top, instances=1, **below):
    return Netlist("top", {**below, "top": top}, {**dict.fromkeys(below, instances), "top": 1})


def around_a_block(driver, reader):
    """A block with a register at its input and at `o`, a LUT in front of `o_logic`, and a way through."""
    block = module(
        [register(2, 3, "held"), register(3, 4, "again"), lut("10", [3], 5)], i=[2], o=[4], o_logic=[5], o_through=[2]
    )
    instance = {"type": "block", "connections": {"i": [3], "o": [4], "o_logic": [5], "o_through": [6]}}
    return netlist(module([driver, instance, reader, register(6, 12, "last")], i=[2], o=[10, 11, 12]), block=block)


def ends(found):
    return {(crossing.port, crossing.end, crossing.pins, crossing.bits) for crossing in found}


def test_a_crossing_is_registered_at_both_ends():
    """Of the three outputs one is driven by a LUT, and one is an input."""
    clean = around_a_block(register(2, 3, "first"), cell("FDRE", "o", C=[CLOCK], D=[4, 5], Q=[10, 11]))
    logic, through = unregistered_crossings(Nets(clean), ["block"])
    assert str(logic) == "block.o_logic (1 bits) is driven by $lut.Y: add a register there"
    assert str(through) == "block.o_through (1 bits) is driven by an input of the block: add a register there"


def test_ends_around_a_block_count_too():
    """A LUT drives the input, and with it what goes through; a memory loads `o`."""
    faulty = around_a_block(lut("10", [2], 3), cell("RAMB36E2", DIN=[4, 5], DO=[10, 11]))
    assert ends(unregistered_crossings(Nets(faulty), ["block"])) == {
        ("block.i", "driver", ("$lut.Y",), 1),
        ("block.o_through", "driver", ("an input of the block",), 1),
        ("block.o", "loads", ("RAMB36E2.DIN",), 1),
        ("block.o_logic", "driver", ("$lut.Y",), 1),
        ("block.o_logic", "loads", ("RAMB36E2.DIN",), 1),
    }


def test_a_handshake_may_be_loaded_by_logic_but_not_driven_by_it():
    """Of a block's input, a LUT is found in front of it, and the one behind it only where it is no handshake."""

    def found(driver, *held):
        block = module([lut("10", [2], 3), register(3, 4, "held")], i_ready=[2], o=[4])
        instance = {"type": "block", "connections": {"i_ready": [3], "o": [4]}}
        whole = netlist(module([driver, instance, register(4, 10, "o")], i=[2], o=[10]), block=block)
        return {(crossing.port, crossing.end) for crossing in unregistered_crossings(Nets(whole), ["block"], held)}

    assert found(register(2, 3, "first")) == {("block.i_ready", "loads")}
    assert not found(register(2, 3, "first"), "block.i_ready")
    assert found(lut("10", [2], 3), "block.i_ready") == {("block.i_ready", "driver")}


def test_loads_add_up_over_modules_that_pass_a_net_on():
    """Two readers of 40 flip-flops, the second behind the first; clocks do not count."""
    reader = module([register(2, 10 + i, "o", CE=[3]) for i in range(40)], i=[2], enable=[3], o_passed=[3])
    first, second = (
        {"type": "reader", "connections": {"i": [9], "enable": [enable], "o_passed": [passed]}}
        for enable, passed in ((5, 6), (6, 7))
    )
    nets = Nets(netlist(module([register(4, 5, "held$5[0]"), first, second], i=[4, 9]), instances=2, reader=reader))
    assert [(found.net, found.loads) for found in fanouts(nets, 39)] == [("top:held", 80), ("top:i", 80)]
    assert not fanouts(nets, 80)


def test_wide_registers_that_are_reset_are_found():
    """Three bits behind the reset, three behind reset or another condition, three that are 0 on that condition."""
    merged = lut("1110", [2, 3], 4)
    cells = [
        register(5, 10 + i, f"{name}$7[{i}]", R=[by]) for name, by in (("a", 2), ("b", 4), ("c", 3)) for i in range(3)
    ]
    found = payload_resets(netlist(module([merged, *cells], core_rst=[2], clear=[3], burst=[5])), 3, ["*:b"])
    assert [(reset.register, reset.bits) for reset in found] == [("top:a", 3)]
    assert len(payload_resets(netlist(module([merged, *cells], core_rst=[2], clear=[3])), 3, [])) == 2


def test_paths_above_a_bound_are_listed_once():
    """Two LUTs behind each other in a module, and one in front of it."""
    inner = module([lut("10", [2], 3), lut("10", [3], 4), register(4, 5, "end")], i=[2], o=[5])
    instance = {"type": "inner", "connections": {"i": [4], "o": [5]}}
    whole = netlist(module([register(2, 3, "start"), lut("10", [3], 4), instance], i=[2], o=[5]), inner=inner)
    (path,) = above(whole, "top", 2)
    assert (path.luts, path.starts_in, path.ends_in) == (3, "start (FDRE)", "2.end (FDRE)")
    assert not above(whole, "top", 3)


CHOICE = "11001010"
"""A[2] ? A[1] : A[0], the last input first."""
SIX, FIVE, TWO = ("01" * (1 << width - 1) for width in (6, 5, 2))


def packed(*cells):
    return packed_luts(netlist(module(list(cells))))


def test_a_multiplexer_behind_two_luts_is_none():
    behind = lut(SIX, [10, 11, 12, 13, 14, 15], 20), lut(SIX, [15, 16, 17, 18, 19, 9], 21)
    assert packed(*behind, lut(CHOICE, [20, 21, 8], 30)) == 2
    assert packed(*behind, lut(CHOICE, [20, 21, 8], 30), register(20, 31, "also")) == 3
    assert packed(*behind, lut("11101010", [20, 21, 8], 30)) == 3  # no multiplexer


def test_functions_of_five_inputs_together_are_one():
    assert packed(lut(FIVE, [1, 2, 3, 4, 5], 20), lut(TWO, [5, 1], 21)) == 1
    assert packed(lut(FIVE, [1, 2, 3, 4, 5], 20), lut(TWO, [5, 6], 21)) == 2


def test_shift_registers_of_one_length_and_enable_share():
    def shift(length, enable):
        place = {f"A{bit}": [str(length >> bit & 1)] for bit in range(4)}
        return cell("SRL16E", CLK=[CLOCK], CE=[enable], D=[2], Q=[3], **place)

    assert packed(shift(5, 4), shift(5, 4), shift(5, 4)) == 2
    assert packed(shift(5, 4), shift(6, 4), shift(5, 7)) == 3


@pytest.fixture(scope="module")
def tiny():
    """Everything that is above a bound in `tiny`."""
    return check(synthesise_units(synthesisable("tiny"), cache=partial(entry, "yosys")))


@pytest.mark.parametrize("kind", ["crossings", "fanouts", "paths", "resets"])
def test_the_machine_stays_within_the_bounds(tiny, kind):
    if found := getattr(tiny, kind):
        pytest.fail("\n".join(map(str, found)), pytrace=False)
