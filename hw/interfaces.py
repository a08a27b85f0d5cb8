"""Signatures the blocks share: memory ports, unit ports, buffer ports.

AXI4 members are flat and lower case. Every burst is INCR of 64-byte beats without IDs, so size, burst type, cache and
protection bits are tied where the ports leave the chip. Addresses are bytes, lengths are beats - 1.
"""

from amaranth.hdl import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hw.spec.config import BEAT_BYTES
from hw.spec.csr import BASE_ALIGNMENT_LOG2
from hw.spec.isa import FIELDS, Unit

MEMORY_ADDRESS_BITS = 64
BASE_BITS = MEMORY_ADDRESS_BITS - BASE_ALIGNMENT_LOG2
"""Bits of a port's base address that are kept: the others are 0."""
BUFFER_ADDRESS_BITS = 32
BEAT_BITS = 8 * BEAT_BYTES
ERROR_BITS = 4


def based(address, base):
    """A byte address with the kept bits of a base added."""
    return Cat(address[:BASE_ALIGNMENT_LOG2], address[BASE_ALIGNMENT_LOG2:] + base)


def AXI4Read(address_bits=MEMORY_ADDRESS_BITS):
    """The read half of an AXI4 master."""
    return wiring.Signature(
        {
            "araddr": Out(address_bits),
            "arlen": Out(8),
            "arvalid": Out(1),
            "arready": In(1),
            "rdata": In(BEAT_BITS),
            "rresp": In(2),
            "rlast": In(1),
            "rvalid": In(1),
            "rready": Out(1),
        }
    )


def AXI4Write(address_bits=MEMORY_ADDRESS_BITS):
    """The write half of an AXI4 master."""
    return wiring.Signature(
        {
            "awaddr": Out(address_bits),
            "awlen": Out(8),
            "awvalid": Out(1),
            "awready": In(1),
            "wdata": Out(BEAT_BITS),
            "wstrb": Out(BEAT_BYTES),
            "wlast": Out(1),
            "wvalid": Out(1),
            "wready": In(1),
            "bresp": In(2),
            "bvalid": In(1),
            "bready": Out(1),
        }
    )


def descriptor_layout(unit: Unit):
    """A unit's descriptor: its FIELDS in order, 32 bits each."""
    return data.StructLayout(dict.fromkeys(FIELDS[unit], 32))


def UnitPort(unit: Unit):
    """The dispatcher's end of a unit; the unit has ``In(UnitPort(unit))``.

    ``start`` is high in one cycle, behind the instruction's start s; ``desc`` is stable from then until ``done``, which
    is high in cycle e only.
    ``error`` is a pulse or a level (the dispatcher keeps the first); ``error_code`` is a `hw.spec.isa.Error`.
    """
    return wiring.Signature(
        {
            "start": Out(1),
            "desc": Out(descriptor_layout(unit)),
            "done": In(1),
            "error": In(1),
            "error_code": In(ERROR_BITS),
        }
    )


def BufferRead(words: int, lanes: int, lane_bits: int = 32):
    """A read port as its user sees it; ``data`` is there `hw.buffer_memory.READ_LATENCY` cycles after ``en`` and
    ``addr`` (in words)."""
    return wiring.Signature(
        {
            "en": Out(1),
            "addr": Out(range(words)),
            "data": In(data.ArrayLayout(signed(lane_bits), lanes)),
        }
    )


def BufferWrite(words: int, lanes: int, lane_bits: int = 32, enables: int = 1):
    """A write port as its user sees it; ``en`` has a bit for each of ``enables`` equal parts of the word.

    What is written in cycle t is read by a read port's ``en`` in t + 1.
    """
    return wiring.Signature(
        {
            "en": Out(enables),
            "addr": Out(range(words)),
            "data": Out(data.ArrayLayout(signed(lane_bits), lanes)),
        }
    )
