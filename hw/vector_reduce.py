"""Reduction over lanes and words, and the finaliser that turns a total into a row-scalar entry."""

from itertools import count

from amaranth.hdl import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hw.pipeline import copies
from hw.row_scalars import ENTRY
from hw.spec import numerics as nm
from hw.spec.isa import Fin, Reduce
from hw.vector_arith import (
    ROUND_SHIFT_LATENCY,
    bit_length,
    delayed,
    non_negative,
    registered,
    round_shift,
    saturate,
    scale_operands,
)

TOTAL_BITS = 64
FIN_BITS = 48
NODES_A_CHOICE = 4
"""Adders of the tree, of 32 bits, whose operation one register chooses."""
DIGITS_A_CYCLE = 2
ROOT_LATENCY = 16 // DIGITS_A_CYCLE
DIVIDE_LATENCY = 16 // DIGITS_A_CYCLE
NORMALISED = 5
FINALISER_LATENCY = NORMALISED + ROOT_LATENCY + DIVIDE_LATENCY + 1


def reduce_latency(lanes: int) -> int:
    """Cycles from a word's values to a total that ends with it."""
    return (lanes - 1).bit_length() + 1


class VectorReduce(wiring.Component):
    """A tree over lanes, a stage a level, then an accumulator over words.

    Numeric contract: sum (MAX and ABSMAX: largest) of all values since `first`; exact, sums modulo 2**64.
    Latency: `reduce_latency(lanes)`. Throughput: one word a cycle, rows of any length back to back.
    Back-pressure: none. Reset: none. Parameters: lanes (a power of two).
    Members: `kind`: `isa.Reduce`, constant during a pass; `values` with `first`; `total` after every word.
    """

    def __init__(self, lanes: int):
        self.lanes = lanes
        super().__init__(
            {
                "kind": In(3),
                "first": In(1),
                "valid": In(1),
                "values": In(data.ArrayLayout(signed(32), lanes)),
                "total": Out(signed(TOTAL_BITS)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        by_size = (self.kind == Reduce.MAX) | (self.kind == Reduce.ABSMAX)
        # Constant during a pass: each few nodes of the tree have a register of their own.
        choices = copies(m, by_size, -(-self.lanes // NODES_A_CHOICE), "largest")
        nodes = count()

        def combined(a, b):
            largest = choices[next(nodes) // NODES_A_CHOICE]
            return Mux(largest, Mux(a > b, a, b), a + b).as_signed()

        level, values = 0, [self.values[i] for i in range(self.lanes)]
        while len(values) > 1:
            values = [
                registered(m, combined(a, b), f"level{level}_{i}")
                for i, (a, b) in enumerate(zip(values[::2], values[1::2], strict=True))
            ]
            level += 1
        first, valid = delayed(m, self.first, level, "first"), delayed(m, self.valid, level, "valid")
        total = Signal(signed(TOTAL_BITS), reset_less=True)
        m.d.comb += self.total.eq(total)
        with m.If(valid):
            m.d.sync += total.eq(Mux(first, values[0], combined(total, values[0])))
        return m


class Finaliser(wiring.Component):
    """Total -> entry {raw, fin}.

    Numeric contract: `hw.spec.vector.finish`; `square_shift` stands for r0's raw.
    Latency: FINALISER_LATENCY: saturate, sum, bit length, two of normalising, a square root and a division of two
    digits a cycle, pack. Throughput: one a cycle. Back-pressure: none. Reset: none.
    Members: `fin`: `isa.Fin`, and `imm1`: constant during a pass; `total`, `square_shift`; `entry`.
    """

    fin: In(3)
    imm1: In(32)
    total: In(signed(TOTAL_BITS))
    square_shift: In(5)
    entry: Out(ENTRY)

    def elaborate(self, platform):
        m = Module()
        total = registered(m, saturate(self.total, FIN_BITS), "total_48")
        epsilon = registered(m, self.imm1 >> Cat(C(0, 1), self.square_shift), "epsilon")
        raw = registered(m, saturate(total, 32), "raw")
        is_root = Signal()
        m.d.sync += is_root.eq(self.fin == Fin.RSQRT)
        size = registered(
            m, Mux(is_root, non_negative(total) + epsilon, non_negative(saturate(total, 32)))[:FIN_BITS], "size"
        )

        length = registered(m, bit_length(size), "length")
        up = FIN_BITS - length
        coarse = registered(m, (registered(m, size, "size_3") << Cat(C(0, 3), up[3:6]))[:FIN_BITS], "coarse")
        left = registered(m, (coarse << registered(m, up[:3], "fine"))[:FIN_BITS], "normalised")
        length = delayed(m, length, 2, "length")

        radicand = Mux(length[0], left[17:], left[16:])
        root = self._root(m, radicand[:32])
        divisor = Mux(is_root, root, delayed(m, left[32:], ROOT_LATENCY, "divisor"))
        start = Mux(self.fin == Fin.QRECIP, nm.QRECIP_NUMERATOR >> 16, nm.RECIP_NUMERATOR >> 16)
        quotient = self._divide(m, divisor[:16], start)

        length = delayed(m, length, ROOT_LATENCY + DIVIDE_LATENCY, "length_q")
        shift = delayed(m, self.square_shift, FINALISER_LATENCY - 1, "square_shift")
        self._pack(m, quotient, length, shift, self._raw(m, total, raw))
        return m

    def _root(self, m, radicand):
        """Restoring square root of 32 bits: 16 digits, two radicand bits each."""
        remainder, root = C(0, 18), C(0, 0)
        for stage in range(ROOT_LATENCY):
            for digit in range(DIGITS_A_CYCLE):
                at = 30 - 2 * (stage * DIGITS_A_CYCLE + digit)
                shifted = Cat(radicand[at : at + 2], remainder)[:19]
                trial = Signal(signed(20), name=f"root_trial{at}")
                m.d.comb += trial.eq(shifted - Cat(C(1, 2), root))
                fits = ~trial[-1]
                remainder, root = Mux(fits, trial[:18], shifted[:18]), Cat(fits, root)
            remainder, root = registered(m, remainder, f"rest{stage}"), registered(m, root, f"root{stage}")
            radicand = registered(m, radicand, f"radicand{stage}")
        return root

    def _divide(self, m, divisor, remainder):
        """Restoring division of remainder * 2**16, remainder <= divisor: 16 digits; all ones where 2**16 is meant."""
        quotient = C(0, 0)
        for stage in range(DIVIDE_LATENCY):
            for digit in range(DIGITS_A_CYCLE):
                trial = Signal(signed(18), name=f"divide_trial{stage}_{digit}")
                shifted = Cat(C(0, 1), remainder[:16])
                m.d.comb += trial.eq(shifted - divisor)
                fits = ~trial[-1]
                remainder, quotient = Mux(fits, trial[:16], shifted[:16]), Cat(fits, quotient)
            remainder, quotient = registered(m, remainder, f"left{stage}"), registered(m, quotient, f"quotient{stage}")
            divisor = registered(m, divisor, f"divisor{stage}")
        return quotient

    def _raw(self, m, total, raw):
        """raw at FINALISER_LATENCY - 1; total at 1, raw at 2."""
        mantissa, shift = scale_operands(self.imm1, 0)
        mantissa, shift = registered(m, mantissa, "mean_mantissa"), registered(m, shift, "mean_shift")
        product = delayed(m, total * mantissa, 3, "mean_product")
        mean = round_shift(m, product, shift | C(0, 7), "mean")
        at = 1 + 3 + ROUND_SHIFT_LATENCY
        chosen = Mux(self.fin == Fin.MEAN, mean, delayed(m, raw, at - 2, "raw"))[:32]
        return delayed(m, chosen, FINALISER_LATENCY - 1 - at, "raw_chosen")

    def _pack(self, m, quotient, length, shift, raw):
        half = (length - 31).as_signed() >> 1
        exponents = {Fin.RECIP: 31 + length - 16, Fin.QRECIP: 24 + length - 16, Fin.RSQRT: 31 + half + shift}
        exponent = Signal(8)
        valid = Signal()
        with m.Switch(self.fin):
            for fin, value in exponents.items():
                with m.Case(fin):
                    m.d.comb += [exponent.eq(value), valid.eq(length != 0)]
        m.d.comb += [
            self.entry.raw.eq(registered(m, raw, "entry_raw")),
            self.entry.fin.eq(registered(m, Mux(valid, Cat(quotient, exponent), 0), "entry_fin")),
        ]
