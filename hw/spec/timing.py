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
"""From the cycle in which LD, LDS or the program fetch sends a read address to the one in which it is on the auxiliary
port. A reader's address is on its channel's port in the cycle in which it is sent."""
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
MAX_PLACES = 32
"""Most output steps that a matrix unit's accumulators hold at once (`accumulator_places`)."""
MX_ACC_LATENCY = 21
"""From a step's issue to the cycle its sum can be drained."""
WEIGHT_BUFFER_ROUNDS = 32
"""Rounds that a matrix unit holds for its chains."""
ROUND_ARRIVAL = 6
"""From the pop of a round's last beat in the last unit to the cycle in which the core can begin with it."""
ROUND_FREE = 9
"""From the take with which a round is read for the last time to the cycle in which its place may be popped into."""
TABLE_LATENCY = 16
"""From the cycle that reads a batch's rows of activations to the first take of its rounds."""
LOAD_INTERVAL = 16
"""Cycles between two of those: a table has 16 entries."""
RD_ADDRESS = 4
"""From RD's start to its first address on the bus."""
RD_DONE = 2
"""From RD's last address on the bus to its end."""
RD_BEAT = 3
"""From a beat's arrival on the bus to the cycle in which it can be popped."""
MX_DRAIN_LATENCY = 8
"""From the last drain read to the end of the instruction."""
DESCRIPTOR_ERROR = 2
"""From a start to ILLEGAL_DESCRIPTOR."""
BUS_WRITE_ERROR = 1
"""From a response to BUS_WRITE."""
VU_ERROR = 5
"""A pass whose word k leaves a buffer fails in s + k + VU_ERROR."""
BUS_ERROR = 5
"""From a beat's arrival on the bus to BUS_READ of RD."""
STREAM_ERROR = 4
"""From a beat's pop to STREAM_HEADER of RD."""
MX_ERROR = 2
"""From a take that is refused to STREAM_HEADER of MX, from a result's drain cycle to BUFFER_RANGE."""
STOP_DELAY = 3
"""From an error to the last cycle in which a unit may still send an address: the stop has to reach it."""
UNIT_REPORT = 2
"""What a unit tells of its stalls is counted so many cycles later."""
ACT_ERROR = 2
"""From the cycle that reads a row whose act block is beyond OB to BUFFER_RANGE."""
BUS_IDLE = 2
"""From the arrival of the last beat that RD asked for to the last cycle in which the core still waits for it."""
END_LATENCY = 2
"""From HALT or the first error to the last cycle of the run: both are collected in registers."""
RESET_CYCLES = 4
"""From a START that is accepted to cycle 0: the core's reset passes a tree of registers first."""
SETTLE_CYCLES = 4
"""Cycles between the last of the program's end and of bus transactions, and done: registered errors and counters catch
up."""


def accumulator_places(n_rows: int, acc_rows: int) -> int:
    """Output steps of n_rows rows (at least 1) in the accumulators at once: each has as many rows as the next power of
    two, of 2 * acc_rows."""
    return min(MAX_PLACES, 2 * acc_rows >> (n_rows - 1).bit_length())


def burst_length(address_beats: int, remaining: int) -> int:
    """Beats of the next AXI burst: at most BURST_BEATS, never beyond a page."""
    return min(BURST_BEATS, remaining, PAGE_BEATS - address_beats % PAGE_BEATS)
