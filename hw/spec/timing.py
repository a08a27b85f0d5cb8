"""Cycle contract of every unit. docs/machine.md explains the protocol; the RTL's tests measure these numbers.

All times are cycles of the run counter; cycle 0 is the first cycle after the start bit is accepted.
"""

SEQ_INTERVAL = 2
"""Cycles from one sequencer instruction's execution to the next one's (branches included)."""
SEQ_FIRST = 3
"""First execution without fetch. With fetch: SEQ_AFTER_FETCH after the last program beat."""
SEQ_AFTER_FETCH = 4
LDS_RETURN = 2
"""LDS completes this many cycles after its beat arrives; its address is sent in its first free cycle."""
ADDRESS_PIPE = 2
"""From the cycle in which a unit sends a read address to the one in which it is on the port."""
AUX_BEAT = 1
"""From a beat's arrival at the auxiliary port to the cycle in which its unit takes it."""
UNIT_START = 2
"""From an instruction's start to the unit's first address, item, word or take, at the earliest: the descriptor is
registered on its way."""
BURST_BEATS = 16
PAGE_BEATS = 64
"""4 KiB, which no burst crosses (AXI4)."""
ST_PIPE = 6
"""Cycles from an item's issue to its AW/W handshake."""
ST_END = 2
"""From the last response of ST to its end."""
VU_LATENCY = 70
"""A pass ends words + VU_LATENCY cycles after it starts (the depth covers the finaliser)."""
ACC_SLOTS, FEW_ROWS = 8, 4
"""Output steps that a matrix unit's accumulators hold at once: ACC_SLOTS if FEW_ROWS * n_rows <= acc_rows, else 2."""
MX_ACC_LATENCY = 21
"""From a step's issue to the cycle its sum can be drained."""
WEIGHT_BUFFER_ROUNDS = 8
"""Rounds a matrix unit holds ready for its chains."""
MX_DRAIN_LATENCY = 6
"""From the last drain read to the end of the instruction."""
DESCRIPTOR_ERROR = 2
"""From a start to ILLEGAL_DESCRIPTOR."""
BUS_WRITE_ERROR = 1
"""From a response to BUS_WRITE."""
VU_ERROR = 5
"""A pass whose word k leaves a buffer fails in s + k + VU_ERROR."""
STREAM_ERROR = 2
"""From a beat's arrival to BUS_READ of RD, from its pop to STREAM_HEADER; from a take that is refused to STREAM_HEADER
of MX, from a result's drain cycle to BUFFER_RANGE."""
ACT_ERROR = 1
"""From the cycle that multiplies a row whose act block is beyond OB to BUFFER_RANGE."""
END_LATENCY = 2
"""From HALT or the first error to the last cycle of the run: both are collected in registers."""
RESET_CYCLES = 4
"""From a START that is accepted to cycle 0: the core's reset passes a tree of registers first."""
SETTLE_CYCLES = 4
"""Cycles between the last of the program's end and of bus transactions, and done: registered errors and counters catch
up."""


def accumulator_slots(n_rows: int, acc_rows: int) -> int:
    """Output steps of n_rows rows in the accumulators at once."""
    return ACC_SLOTS if FEW_ROWS * n_rows <= acc_rows else 2


def burst_length(address_beats: int, remaining: int) -> int:
    """Beats of the next AXI burst: at most BURST_BEATS, never beyond a page."""
    return min(BURST_BEATS, remaining, PAGE_BEATS - address_beats % PAGE_BEATS)
