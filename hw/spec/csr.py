"""AXI4-Lite control registers (32 bits each, byte offsets). Offsets 0x0-0xC and 0x10 on follow the Xilinx
kernel convention (ap_ctrl_hs); the project's own status and counters start at 0x100."""

from .isa import LdKind, StKind, StMode, StreamFormat

CTRL, GIER, IER, ISR = 0x00, 0x04, 0x08, 0x0C
CTRL_START, CTRL_DONE, CTRL_IDLE, CTRL_READY = 1, 2, 4, 8
"""CTRL bits: start is set by the host and cleared by the machine; done is cleared on read."""

REGISTERS = {
    # arguments (read/write)
    "program_addr": 0x10,  # aux beat address of the program
    "program_length": 0x18,  # instructions
    "entry": 0x20,  # first instruction executed
    "flags": 0x28,  # bit 0: keep the program already in instruction memory (skip the fetch)
    "watchdog": 0x30,  # cycles without a retired instruction before WATCHDOG (0: never)
    "instruction_limit": 0x38,  # instructions before INSTRUCTION_LIMIT (0: none)
    **{f"arg{i}": 0x40 + 8 * (i - 1) for i in range(1, 16)},  # initial r1..r15
    # status (read only)
    "status": 0x100,  # hw.spec.isa.Error
    "status_detail": 0x104,  # HALT code, or unit number of the failing unit (5: sequencer)
    "status_pc": 0x108,
    "isa_version": 0x10C,
    "config_digest": 0x110,  # first 32 bits of the configuration digest
}

LD_BEATS = {kind: f"read_beats_{kind.name.lower()}" for kind in LdKind}
RD_BEATS = {StreamFormat.STREAM: "read_beats_weights", StreamFormat.RAW: "read_beats_kv"}
ST_BYTES = {kind: f"write_bytes_{kind.name.lower()}" for kind in StKind}
KV_BYTES = "write_bytes_kv"
"""Counters by what is moved. ST's kind counts in modes that write aux (LIN, SC); K and V are KV_BYTES."""

TRAFFIC = (
    "read_beats_aux",
    "read_beats_channels",
    "write_bytes_aux",
    "write_bytes_channels",
    "read_beats_fetch",
    "read_beats_scalars",
    *LD_BEATS.values(),
    *RD_BEATS.values(),
    *ST_BYTES.values(),
    KV_BYTES,
)
"""The first four count at the memory ports, the others by purpose: aux reads are fetch + scalars (LDS) + LD_BEATS,
channel reads RD_BEATS, aux writes ST_BYTES, channel writes KV_BYTES."""

COUNTERS = (
    "cycles",
    "instructions",
    "stall_queue",
    "stall_fence",
    "stall_lds",
    "busy_ld",
    "busy_st",
    "busy_rd",
    "busy_mx",
    "busy_vu",
    "wait_ld",
    "wait_st",
    "wait_rd",
    "wait_mx",
    "wait_vu",
    "mx_weight_stall",
    "mx_drain_stall",
    *TRAFFIC[:4],
    "unpack_stall",
    *TRAFFIC[4:],
)
"""64-bit counters from COUNTER_BASE on, low word first. busy: cycles between start and end; wait: cycles a
queue's head waits for semaphores while its unit is idle. read_beats_channels and write_bytes_channels are
sums over channels; write_bytes count enabled strobes. unpack_stall: cycles in which unit 0 holds a weight beat back
because its weight buffer is full."""
COUNTER_BASE = 0x140

BASE_REGISTERS = 0x400
"""64-bit base addresses of the memory ports (read/write, low word first): bytes, added to every address that leaves the
port; their lowest 12 bits are always 0. XRT writes where it put a port's buffer."""
BASE_ALIGNMENT_LOG2 = 12
MAX_PORTS = (0x1000 - BASE_REGISTERS) // 8


def counter_offset(name: str) -> int:
    return COUNTER_BASE + 8 * COUNTERS.index(name)


def base_offset(port: int) -> int:
    """Of a memory port's base register (its low word)."""
    return BASE_REGISTERS + 8 * port


def store_counter(mode: int, kind: int) -> str:
    """The counter by purpose of an ST's bytes."""
    return KV_BYTES if mode in (StMode.K, StMode.V) else ST_BYTES[StKind(kind)]
