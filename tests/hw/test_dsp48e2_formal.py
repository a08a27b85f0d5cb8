"""Proofs by SMT: the DSP48E2 model is its arithmetic, and a DSP group's multiplexer picks what its index says."""

import pytest
from amaranth.hdl import Module, Mux, Signal, signed, unsigned
from amaranth.lib import wiring
from amaranth.lib.wiring import Out

from hw.dsp48e2 import DSP48E2
from hw.dsp_group import LANE_BITS, DSPGroup, delay
from hw.spec.config import BLOCK
from hw.spec.weights import UNREACHED
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
    """``differ``: an operand of a group's multiplier is not the one that mode and index name."""

    differ: Out(1)

    def __init__(self, number, index_bits=4):
        super().__init__()
        self.number, self.index_bits = number, index_bits
        self.inputs = [
            Signal(unsigned(bits), name=name)
            for name, bits in (
                ("act0", 8 * BLOCK),
                ("act1", 8 * BLOCK),
                ("row0", 8),
                ("row1", 8),
                ("at", 4),
                ("sparse", 1),
                ("row", 1),
                ("single", 1),
            )
        ]

    def elaborate(self, platform):
        m = Module()
        m.submodules.group = group = DSPGroup(first_position=4)
        acts0, acts1, row0, row1, index, sparse, row, single = self.inputs
        m.d.comb += [
            group.acts[0].eq(acts0),
            group.acts[1].eq(acts1),
            group.sparse.eq(sparse),
            group.row.eq(row),
            group.weights[0][self.number].eq(row0),
            group.weights[1][self.number].eq(row1),
            group.indices[self.number].eq(index),
            group.single.eq(single),
        ]
        x1, x0, y = group._select(m, self.number)
        # By shifting, not by choosing: the same value only if exactly the indexed byte comes through.
        narrow = index[: self.index_bits]
        picked = [(acts >> (narrow << 3))[:8] for acts in (acts0, acts1)]
        own = (acts0 >> (8 * (4 + self.number)))[:8]
        weight = Mux(~single & (index == UNREACHED[self.number]), 0, Mux(row, row1, row0))
        with m.If(sparse):
            m.d.comb += self.differ.eq((x0[:8] != picked[0]) | (x1[:8] != picked[1]) | (y[:8] != weight))
        with m.Else():
            m.d.comb += self.differ.eq((x0[:8] != row0) | (x1[:8] != row1) | (y[:8] != own))
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
def test_sparse_multiplexer_picks_the_indexed_activation(tmp_path, number):
    assert LANE_BITS == 18
    assert solve(tmp_path, Selection(number)) is None


def test_a_multiplexer_of_half_the_block_is_found(tmp_path):
    found = solve(tmp_path, Selection(0, index_bits=3))
    assert found["sparse"] == 1 and found["at"] >= 8
