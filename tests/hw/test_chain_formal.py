"""Proof by SMT that the hardware's own lane unpacking is exact for 8 packed products, and not for 9.

A product of |weight| <= 127 and |act| <= 128 is at most 16256 in magnitude. That a slice forms both products exactly is
settled by exhaustion in ``test_dsp48e2.py``; what is left are two statements about the 48-bit cascade:

- adding a packed product to a packed pair of lane sums gives the packed pair of the new sums, whatever the values;
- ``unpack_lanes`` returns both lanes of every packed pair within ``n * 16256``.

By induction over the cascade the unpacking is exact. ``hw.chain.unpack_lanes`` itself is translated to SMT-LIB. (The
same in one formula over 16 products is a matter of adder reassociation, and takes yices more than 5 minutes.)
"""

from functools import reduce
from itertools import pairwise
from operator import or_

from amaranth.hdl import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import Out

from hw import chain
from hw.dsp_group import DSPGroup, delay
from hw.spec.config import MULTIPLIERS_PER_CHAIN
from hw.unpacker import Unpacker
from tests.hw.smt import solve

PRODUCT_BITS, PACKED_BITS = 45, 37
"""A product of a packed operand; both lanes of a tap."""
SYMMETRIC_BOUND = 127 * 128
FULL_BOUND = 128 * 128


class Unpacking(wiring.Component):
    """``differ`` is set where lane sums within ``bound`` are not what their packed pair unpacks to."""

    differ: Out(1)

    def __init__(self, bound):
        super().__init__()
        self.bound = bound
        self.inputs = [Signal(signed(20), name="lo"), Signal(signed(20), name="hi")]

    def elaborate(self, platform):
        m = Module()
        lo, hi = self.inputs
        p = Signal(signed(48))
        m.d.comb += p.eq((hi << 18) + lo)
        lanes = {}
        for name, value in chain.unpack_lanes(p).items():
            lanes[name] = Signal(signed(19), name=f"{name}_unpacked")
            m.d.comb += lanes[name].eq(value)
        in_bounds = (lo >= -self.bound) & (lo <= self.bound) & (hi >= -self.bound) & (hi <= self.bound)
        m.d.comb += self.differ.eq(in_bounds & ((lanes["lo"] != lo) | (lanes["hi"] != hi)))
        return m


class Accumulation(wiring.Component):
    """``differ`` is set where the 48-bit cascade's sum is not the packed pair of the lanes' sums."""

    differ: Out(1)

    def __init__(self):
        super().__init__()
        self.inputs = [
            Signal(signed(20), name="lo"),
            Signal(signed(20), name="hi"),
            Signal(signed(16), name="x0"),
            Signal(signed(16), name="x1"),
        ]

    def elaborate(self, platform):
        m = Module()
        lo, hi, x0, x1 = self.inputs
        pcin, product, p, expected = (Signal(signed(48), name=name) for name in ("pcin", "product", "p", "expected"))
        m.d.comb += [
            pcin.eq((hi << 18) + lo),
            product.eq((x1 << 18) + x0),
            p.eq(pcin + product),
            expected.eq(((hi + x1) << 18) + (lo + x0)),
            self.differ.eq(p != expected),
        ]
        return m


class Reduction(wiring.Component):
    """``differ``: a tap of a half chain is not the packed sum of the tap before it and of the two products that mode
    and indices name; the first tap's sum begins with nothing. By induction over its groups a half chain sums its
    products.

    What a table holds is any value: ``test_dsp48e2_formal.py`` says which. Here the value of a position is changed by
    its index and half, so that a step which reads with another's is found. ``index_bits``: how much of an index the
    claim believes in.
    """

    differ: Out(1)
    groups = 4

    def __init__(self, index_bits=4):
        super().__init__()
        self.chain, self.index_bits = chain.SparseChain(cascade_groups=self.groups), index_bits
        self.step = Signal(chain.STEP, name="step")
        self.held = Signal(data.ArrayLayout(chain.ENTRY, MULTIPLIERS_PER_CHAIN), name="held")
        self.inputs = [self.step.as_value(), self.held.as_value()]

    def elaborate(self, platform):
        m = Module()
        m.submodules.chain = self.chain
        m.d.comb += [self.chain.i.payload.eq(self.step), self.chain.i.payload.breaks.eq(chain.DENSE_BREAKS)]
        then = data.View(chain.STEP, delay(m, self.step.as_value(), self.chain.latency, "then"))
        held = data.View(self.held.shape(), delay(m, self.held.as_value(), self.chain.latency, "held_then"))
        before, wrong = Const(0, PACKED_BITS), []
        for group in range(self.groups):
            total, tap = Signal(PACKED_BITS, name=f"total_{group}"), Signal(PACKED_BITS, name=f"tap_{group}")
            products = [self._product(m, then, held, position) for position in (2 * group, 2 * group + 1)]
            found = self.chain.o.payload[group]
            m.d.comb += [total.eq(before + sum(products)), tap.eq((found.hi << 18) + found.lo)]
            before, wrong = tap, [*wrong, tap != total]
        m.d.comb += self.differ.eq(Cat(*wrong).any())
        return m

    def _product(self, m, then, held, position):
        product = Signal(signed(PRODUCT_BITS), name=f"product_{position}")
        found = self._changed(held[position], then.indices[position][: self.index_bits], then.half)
        m.d.comb += product.eq(self._operand(m, then, position, found) * self._shared(m, then, position))
        return product

    @staticmethod
    def _changed(held, index, half):
        place = Cat(index, Const(0, 4 - len(index)), half)
        return data.View(chain.ENTRY, (held.as_value() ^ place)[: chain.ENTRY.size])

    def looked_up(self):
        """What replaces `DSPGroup._looked_up`, called for one position after the other: a group reads as late as it is
        skewed."""
        positions = iter(range(MULTIPLIERS_PER_CHAIN))

        def look_up(group, m, number):
            position = next(positions)
            late = chain.skew(position // chain.MULTIPLIERS_PER_GROUP, self.groups)
            held = delay(m, self.held[position].as_value(), late, f"held_{position}")
            return self._changed(data.View(chain.ENTRY, held), group.indices[number], group.half)

        return look_up

    def _operand(self, m, then, position, found):
        packed = Signal(signed(27), name=f"packed_{position}")
        x1 = Mux(then.sparse, found[1], then.weights[1][position])
        x0 = Mux(then.sparse, found[0], then.weights[0][position])
        m.d.comb += packed.eq((x1 << 18) + x0)
        return packed

    def _shared(self, m, then, position):
        y = Signal(signed(18), name=f"shared_{position}")
        weight = Mux(then.row, then.weights[1][position], then.weights[0][position])
        m.d.comb += y.eq(Mux(then.sparse, weight, then.acts[position]))
        return y


class MaskPlaces(wiring.Component):
    """``differ``: the places found in a mask of eight bits, a cycle later, are not its bits in ascending order."""

    differ: Out(1)

    def __init__(self, bits=8):
        super().__init__()
        self.bits, self.inputs = bits, [Signal(16, name="mask")]

    def elaborate(self, platform):
        m = Module()
        (mask,) = self.inputs
        places = Unpacker()._places(m, "row", mask, Const(1))
        mask = delay(m, mask, 1, "mask")
        found = Signal(16)
        m.d.comb += found.eq(reduce(or_, ((1 << place)[:16] for place in places)))
        ascending = Cat(a < b for a, b in pairwise(places)).all()
        count = sum(mask, start=Const(0))
        m.d.comb += self.differ.eq((count == self.bits) & ((found != mask) | ~ascending))
        return m


def test_cascade_adds_both_lanes_exactly(tmp_path):
    assert solve(tmp_path, Accumulation()) is None


def test_eight_products_unpack_exactly(tmp_path):
    assert chain.MAX_PRODUCTS_PER_LANE == 8
    assert solve(tmp_path, Unpacking(8 * SYMMETRIC_BOUND)) is None


def test_nine_products_have_a_counterexample(tmp_path):
    """``test_chain.py`` shows the same on the chain itself, with weights and activations."""
    found = solve(tmp_path, Unpacking(9 * SYMMETRIC_BOUND))
    assert not -(1 << 17) <= found["lo"] < 1 << 17
    assert 9 * SYMMETRIC_BOUND >= 1 << 17, "nine products of -127 * -128 reach it"


def test_eight_products_need_symmetric_weights(tmp_path):
    """Weight -128 would be one too many: 8 * 128 * 128 is 2**17, which a signed 18-bit lane does not hold."""
    found = solve(tmp_path, Unpacking(8 * FULL_BOUND))
    assert found["lo"] == 1 << 17
    assert solve(tmp_path, Unpacking(7 * FULL_BOUND)) is None


def test_a_forgotten_borrow_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(chain, "unpack_lanes", lambda p: {"lo": p[:18].as_signed(), "hi": p[18:37].as_signed()})
    found = solve(tmp_path, Unpacking(8 * SYMMETRIC_BOUND))
    assert found["lo"] < 0


def test_a_half_chain_sums_exactly_its_selected_products(tmp_path, monkeypatch):
    """Both modes, every index: selection and reduction lose nothing and count nothing twice (mod 2**37)."""
    claim = Reduction()
    monkeypatch.setattr(DSPGroup, "_looked_up", claim.looked_up())
    assert solve(tmp_path, claim, claim.chain.latency, unknown_product=True) is None


def test_a_claim_about_half_the_block_fails(tmp_path, monkeypatch):
    """With three index bits instead of four the claim is wrong, and the proof says so."""
    claim = Reduction(index_bits=3)
    monkeypatch.setattr(DSPGroup, "_looked_up", claim.looked_up())
    assert solve(tmp_path, claim, claim.chain.latency, unknown_product=True) is not None


def test_a_mask_gives_each_of_its_places_once(tmp_path):
    assert solve(tmp_path, MaskPlaces(), cycles=1) is None


def test_a_mask_of_nine_loses_one(tmp_path):
    assert bin(solve(tmp_path, MaskPlaces(bits=9), cycles=1)["mask"] & 0xFFFF).count("1") == 9
