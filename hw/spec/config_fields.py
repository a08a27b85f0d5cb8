"""What each field of a configuration means, in which unit and range it is, and what more of it costs.

`hw.spec.config` checks these ranges; the reference table of the documents is made from them.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Field:
    """A whole number of `least` to `most` `unit`s; `rule` is what else has to hold, in words."""

    unit: str
    least: int
    most: int
    meaning: str
    costs: str
    rule: str = ""


_BUFFER = 1 << 20
FIELDS = {
    "units": Field(
        "matrix units",
        1,
        256,
        "Matrix units. Each has a memory channel of its own, from which its weights, keys and values come.",
        "Each takes 16 DSPs a chain and two more a chain for accumulators, its weight FIFO, its accumulators, and a "
        "memory channel. Twice as many halve the time of products and double the bandwidth that is used.",
        "a power of two",
    ),
    "chains": Field(
        "chains a unit",
        1,
        8,
        "DSP chains in a matrix unit: rows of 16 multipliers that skip pruned weights. A multiplier makes two products "
        "a cycle.",
        "18 DSPs each in every unit. Fewer chains take more cycles for each row (8 / chains).",
        "1, 2, 4 or 8",
    ),
    "lanes": Field(
        "lanes",
        16,
        4096,
        "Lanes of the vector unit: int32 values that it works on in a cycle.",
        "14 DSPs, about 2,400 LUTs and one block RAM each. More lanes drain results sooner.",
        "a multiple of 16 that divides 16 x units",
    ),
    "ob_blocks": Field(
        "blocks of 16 int8",
        8,
        _BUFFER,
        "Operand buffer OB: the activations that the matrix units multiply.",
        "16 bytes of UltraRAM each.",
        "a power of two, at least one block for each unit",
    ),
    "ab_granules": Field(
        "granules of 16 int32",
        64,
        _BUFFER,
        "Accumulator buffer AB: the sums that the matrix units drain and the vector unit reads.",
        "64 bytes of UltraRAM each. It bounds the tokens that a prefill works on at once.",
        "a multiple of lanes / 16",
    ),
    "pb_granules": Field(
        "granules of 16 int32",
        64,
        _BUFFER,
        "Parameter buffer PB: scales, norms' weights, embedding rows and RoPE tables that LD brings.",
        "64 bytes of UltraRAM each.",
        "a multiple of lanes / 16",
    ),
    "vb_granules": Field(
        "granules of 16 int32",
        64,
        _BUFFER,
        "Vector buffer VB: the vector unit's own values, such as the residual stream.",
        "64 bytes of UltraRAM each.",
        "a multiple of lanes / 16",
    ),
    "sb_granules": Field(
        "granules of 16 int32",
        64,
        _BUFFER,
        "Store buffer SB: results on their way to memory.",
        "64 bytes of UltraRAM each.",
        "a multiple of lanes / 16",
    ),
    "rs_entries": Field(
        "row scalars",
        64,
        1 << 16,
        "Row scalars of the vector unit: one value for each row, such as its largest magnitude.",
        "About 3 x 64 bits of block RAM each.",
    ),
    "acc_rows": Field(
        "rows",
        2,
        4096,
        "Activation rows that a matrix instruction can hold in the accumulators.",
        "256 bytes of block RAM a row in every unit. With more rows a prefill reads a weight less often.",
        "a power of two",
    ),
    "fifo_beats": Field(
        "beats of 64 bytes",
        32,
        1 << 16,
        "Weight FIFO of a matrix unit: how far its channel may run ahead of the products.",
        "64 bytes of block RAM in every unit. A short FIFO runs empty while the memory refreshes.",
    ),
    "imem_instructions": Field(
        "instructions of 8 bytes",
        64,
        1 << 24,
        "Instruction memory: the longest program.",
        "8 bytes of block RAM each.",
        "a multiple of 8",
    ),
    "clock_hz": Field(
        "Hz",
        50_000_000,
        2_000_000_000,
        "The kernel's clock. It is an assumption: no vendor tool has confirmed one.",
        "Cycles of the kernel are unchanged but for the memory, which keeps its own clock.",
        "a whole number of kHz, not above memory.clock_hz",
    ),
    "channel_bytes": Field(
        "bytes",
        1 << 16,
        1 << 32,
        "Memory behind each matrix unit's port: weights, keys and values.",
        "Nothing on the chip. The card says how much there is.",
        "a multiple of 4,096",
    ),
    "aux_bytes": Field(
        "bytes",
        1 << 16,
        1 << 36,
        "Auxiliary memory: program, embedding rows, parameters, tables, activations that are kept, results.",
        "Nothing on the chip.",
        "a multiple of 4,096",
    ),
    "queue_depth": Field(
        "instructions",
        1,
        64,
        "Instructions that wait in front of each of the five units. The compiler's programs need eight.",
        "About 500 flip-flops or LUT memory each.",
    ),
}
"""Fields that are whole numbers, in the order of `hw.spec.config.Config`."""

MEMORY_FIELDS = {
    "clock_hz": Field(
        "Hz",
        50_000_000,
        2_000_000_000,
        "Clock of the ports with a fixed latency: beats of 64 bytes a second that one delivers at most. HBM channels "
        "always run at 450 MHz.",
        "Nothing on the chip.",
    ),
    "read_latency": Field(
        "cycles of memory.clock_hz",
        1,
        4096,
        "From a read address to the first beat, on every port of kind `fixed`, and on the auxiliary port.",
        "Nothing on the chip; longer latencies want more fifo_beats.",
    ),
    "write_latency": Field(
        "cycles of memory.clock_hz",
        1,
        4096,
        "From a write's last beat to its response.",
        "Nothing on the chip.",
    ),
}
"""Fields of section `[memory]` that are whole numbers; `kind` is a word (`hw.spec.config.MEMORY_KINDS`)."""
