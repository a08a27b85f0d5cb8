"""AXI4-Lite control registers (32 bits each, byte offsets). Offsets 0x0-0xC and 0x10 on follow the Xilinx
kernel convention (ap_ctrl_hs); the project's own status and counters start at 0x100."""

CTRL, GIER, IER, ISR = 0x00, 0x04, 0x08, 0x0C
CTRL_START, CTRL_DONE, CTRL_IDLE, CTRL_READY = 1, 2, 4, 8
"""CTRL bits: start is set by the host and cleared by the machine; done is cleared on read."""

REGISTERS = {
    # arguments (read/write)
    "program_addr": 0x10,    # aux beat address of the program
    "program_length": 0x18,  # instructions
    "entry": 0x20,           # first instruction executed
    "flags": 0x28,           # bit 0: keep the program already in instruction memory (skip the fetch)
    "watchdog": 0x30,        # cycles without a retired instruction before WATCHDOG (0: never)
    "instruction_limit": 0x38,  # instructions before INSTRUCTION_LIMIT (0: none)
    **{f"arg{i}": 0x40 + 8 * (i - 1) for i in range(1, 16)},  # initial r1..r15
    # status (read only)
    "status": 0x100,         # hw.spec.isa.Error
    "status_detail": 0x104,  # HALT code, or unit number of the failing unit (5: sequencer)
    "status_pc": 0x108,
    "isa_version": 0x10C,
    "config_digest": 0x110,  # first 32 bits of the configuration digest
}

COUNTERS = (
    "cycles", "instructions", "stall_queue", "stall_fence", "stall_lds",
    "busy_ld", "busy_st", "busy_rd", "busy_mx", "busy_vu",
    "wait_ld", "wait_st", "wait_rd", "wait_mx", "wait_vu",
    "mx_weight_stall", "mx_drain_stall",
    "read_beats_aux", "read_beats_channels", "write_bytes_aux", "write_bytes_channels",
)
"""64-bit counters from COUNTER_BASE on, low word first. busy: cycles between start and end; wait: cycles a
queue's head waits for semaphores while its unit is idle. read_beats_channels and write_bytes_channels are
sums over channels; write_bytes count enabled strobes."""
COUNTER_BASE = 0x140


def counter_offset(name: str) -> int:
    return COUNTER_BASE + 8 * COUNTERS.index(name)
