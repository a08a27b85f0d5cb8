"""Lengths of AXI4 read bursts."""

from amaranth.hdl import *
from amaranth.utils import exact_log2

from hw.spec.timing import BURST_BEATS, PAGE_BEATS

_BURST_BITS = exact_log2(BURST_BEATS)
_PAGE_BITS = exact_log2(PAGE_BEATS)


def next_burst(address, remaining):
    """`hw.spec.timing.burst_length` on signals: 1 .. BURST_BEATS.

    Written out in gates: three LUTs deep, where adders and comparators are three carry chains in a row.
    """
    inside, few = address[:_BURST_BITS], remaining[:_BURST_BITS]
    last = address[_BURST_BITS:_PAGE_BITS].all()  # of a page's bursts: it may be shorter
    room = Cat(*(bit ^ inside[:i].any() for i, bit in enumerate(inside)), ~inside.any())  # BURST_BEATS - inside
    carries = [inside[i] & few[i] & (inside | few)[i + 1 :].all() for i in range(_BURST_BITS)]
    beyond = Cat(carries).any()  # the carry of inside + few: few >= room
    many = remaining[_BURST_BITS:].any()
    return Mux(many | (last & beyond), Mux(last, room, BURST_BEATS), few)
