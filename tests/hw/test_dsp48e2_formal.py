"""Proofs by SMT: the DSP48E2 model is its arithmetic, and a DSP group multiplies what mode and index say."""

import pytest
from amaranth.hdl import Cat, Module, Mux, Signal, signed, unsigned
from amaranth.lib import wiring
from amaranth.lib.wiring import Out

from hw.dsp48e2 import DSP48E2
from hw.dsp_group import HALVES, LANE_BITS, DSPGroup, delay
from hw.spec.config import BLOCK
from tests.hw.smt import solve

PRE_ADDER_BITS, PRODUCT_BITS = 27, 45


class SliceArithmetic(wiring.Component):
    """``differ``: p is not (a + d) * b + pcin of the inputs ``latency`` cycles ago."""

    differ: Out(1)

    def __init__(self, stages, widened=0):
        super().__init__()
        self.slice, self.widened = DSP48E2(stages=stages), widened
        self.inputs = [Signal(signed(bits), name=name) for name, bits in (("a", 27), ("d", 27), ("b", 18))]
        self.inputs += [Signal(signed(48), name="pcin"), Signal(1, name="cascade")]

    def elaborate(self, platform):
        m = Module()
        m.submodules.slice = dut = self.slice
        a, d, b, pcin, cascade = self.inputs
        m.d.comb += [dut.a.eq(a), dut.d.eq(d), dut.b.eq(b), dut.pcin.eq(pcin), dut.cascade.eq(cascade), dut.en.eq(1)]
        pre_added = Signal(signed(PRE_ADDER_BITS + self.widened))
        m.d.comb += pre_added.eq(delay(m, a, dut.latency, "a_then") + delay(m, d, dut.latency, "d_then"))
        product = Signal(signed(PRODUCT_BITS))
        m.d.comb += product.eq(pre_added * delay(m, b, dut.latency, "b_then"))
        added = (
            delay(m, pcin, 1, "pcin_then")
            & delay(m, cascade, dut.latency - dut.cascade_delay, "cascade_then").replicate(48).as_signed()
        )
        expected = Signal(signed(48))
        m.d.comb += [expected.eq(product + added), self.differ.eq(dut.p != expected)]
        return m


class Selection(wiring.Component):
    """``differ``: an operand of a group's multiplier is not the one that the mode names; sparse: not the entry that was
    written last at the place that it reads.

    The place is any and stays for two cycles. An entry that is read in one cycle, or written, is read in the next,
    whatever is written elsewhere: so it holds for entries written in every order, at any time. ``place_bits``: how much
    of a place the claim believes in.
    """

    differ: Out(1)

    def __init__(self, number, place_bits=5):
        super().__init__()
        self.number, self.place_bits = number, place_bits
        self.inputs = [
            Signal(unsigned(bits), name=name)
            for name, bits in (
                ("place", 5),
                ("entry", 16),
                ("en", 1),
                ("at", 5),
                ("act", 8),
                ("row0", 8),
                ("row1", 8),
                ("sparse", 1),
                ("row", 1),
            )
        ]

    def elaborate(self, platform):
        m = Module()
        m.submodules.group = group = DSPGroup()
        number = self.number
        place, entry, en, at, act, row0, row1, sparse, row = self.inputs
        m.d.comb += [
            group.entry.as_value().eq(entry),
            group.write.en.eq(en),
            Cat(group.write.at, group.write.half).eq(at),
            Cat(group.indices[number], group.half).eq(place),
            group.acts[number].eq(act),
            group.weights[0][number].eq(row0),
            group.weights[1][number].eq(row1),
            group.sparse.eq(sparse),
            group.row.eq(row),
        ]
        x1, x0, y = (operand[:8] for operand in group._select(m, number))
        right, stays = Signal(), Signal()
        expected, was_right = Signal(16, reset_less=True), Signal(reset_less=True)
        m.d.comb += [right.eq(Cat(x0, x1) == expected), stays.eq(delay(m, place, 1, "place_before") == place)]
        m.d.sync += was_right.eq(right & sparse)
        written = en & (at[: self.place_bits] == place[: self.place_bits])
        with m.If(written):
            m.d.sync += [expected.eq(entry), was_right.eq(1)]
        with m.If(sparse):
            m.d.comb += self.differ.eq((was_right & stays & ~right) | (y != Mux(row, row1, row0)))
        with m.Else():
            m.d.comb += self.differ.eq((x0 != row0) | (x1 != row1) | (y != act))
        return m


@pytest.mark.parametrize("stages", [1, 2])
def test_slice_is_its_arithmetic(tmp_path, stages):
    """For every value of every operand: (a + d) wraps at 27 bits, p at 48."""
    claim = SliceArithmetic(stages)
    assert solve(tmp_path, claim, claim.slice.latency, unknown_product=True) is None


def test_a_widened_pre_adder_is_found(tmp_path):
    """With one bit more the sum would not wrap: the proof must tell."""
    claim = SliceArithmetic(1, widened=1)
    found = solve(tmp_path, claim, claim.slice.latency)
    total = found["a"] + found["d"]
    assert not -(1 << PRE_ADDER_BITS - 1) <= total < 1 << PRE_ADDER_BITS - 1


@pytest.mark.parametrize("number", [0, 1])
def test_a_sparse_step_reads_the_entry_of_its_index(tmp_path, number):
    assert LANE_BITS == 18 and HALVES * BLOCK == 1 << 5
    assert solve(tmp_path, Selection(number), cycles=1) is None


def test_tables_of_half_the_block_are_found(tmp_path):
    found = solve(tmp_path, Selection(0, place_bits=3), cycles=1)
    assert found["en"] == 1 and found["at"] != found["place"]
