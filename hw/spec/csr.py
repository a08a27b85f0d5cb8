"""AXI4-Lite control registers (32 bits each, byte offsets). Offsets 0x0-0xC and 0x10 on follow the Xilinx
kernel convention (ap_ctrl_hs); the project's own status and counters start at 0x100."""

from dataclasses import dataclass

from .isa import ARGUMENT_REGISTERS, Error, LdKind, StKind, StMode, StreamFormat, Unit

ACCESS = {
    "RW": "read and write",
    "RO": "read only",
    "RC": "read only, cleared by a read",
    "W1S": "writing 1 sets it, the machine clears it",
    "W1T": "readable, writing 1 toggles it",
}
"""How the host may use a register or a field."""


@dataclass(frozen=True)
class Field:
    """Bits `low` to `high` of a register."""

    name: str
    low: int
    high: int
    meaning: str
    access: str = ""
    """One of `ACCESS`; empty: as the register."""


@dataclass(frozen=True)
class Register:
    """A register of `bits` bits at a byte offset; one of 64 bits has its low word first."""

    offset: int
    name: str
    access: str
    """One of `ACCESS`."""
    meaning: str
    unit: str = ""
    """What its number counts."""
    bits: int = 32
    fields: tuple[Field, ...] = ()


_KEPT_PROGRAM = Field("keep_program", 0, 0, "1: the program is in instruction memory already, its fetch is skipped")
_CONTROL = (
    Register(0x00, "ctrl", "RW", "start and end of a run (ap_ctrl_hs)", fields=(
        Field("start", 0, 0, "starts the program; reads 1 until the run is over; ignored during a run", "W1S"),
        Field("done", 1, 1, "a run has ended since the last read", "RC"),
        Field("idle", 2, 2, "no run is going on", "RO"),
        Field("ready", 3, 3, "as done: the machine takes the next start", "RC"),
    )),
    Register(0x04, "gier", "RW", "global interrupt enable", fields=(
        Field("enable", 0, 0, "1: the interrupt line follows isr"),
    )),
    Register(0x08, "ier", "RW", "which events set isr", fields=(
        Field("done", 0, 0, "end of a run"),
        Field("ready", 1, 1, "ready for the next start"),
    )),
    Register(0x0C, "isr", "W1T", "events that wait to be served", fields=(
        Field("done", 0, 0, "end of a run"),
        Field("ready", 1, 1, "ready for the next start"),
    )),
)  # fmt: skip
_ARGUMENTS = (
    Register(0x10, "program_addr", "RW", "where the program begins in the auxiliary memory", "beats of 64 bytes"),
    Register(0x18, "program_length", "RW", "length of the program", "instructions of 8 bytes"),
    Register(0x20, "entry", "RW", "pc of the first instruction", "instructions"),
    Register(0x28, "flags", "RW", "options of a run", fields=(_KEPT_PROGRAM,)),
    Register(0x30, "watchdog", "RW", "a run without a retired instruction for so long ends with WATCHDOG; 0: never",
             "cycles"),
    Register(0x38, "instruction_limit", "RW", "a longer run ends with INSTRUCTION_LIMIT; 0: none", "instructions"),
    *(
        Register(0x40 + 8 * (i - 1), f"arg{i}", "RW", f"the program's register r{i} at the start")
        for i in range(1, ARGUMENT_REGISTERS + 1)
    ),
)  # fmt: skip
_STATUS = (
    Register(0x100, "status", "RO", "how the run ended: a code of Error (above), 0 is success", fields=(
        Field("code", 0, max(Error).bit_length() - 1, "code of Error"),
    )),
    Register(0x104, "status_detail", "RO",
             "HALT's exit code, or the number of the unit that failed "
             f"({', '.join(f'{unit.value} {unit.name}' for unit in Unit)}, {len(Unit)} sequencer)"),
    Register(0x108, "status_pc", "RO", "pc of the HALT, or of the instruction at fault", "instructions"),
    Register(0x10C, "isa_version", "RO", "version of the instruction set"),
    Register(0x110, "config_digest", "RO", "first 32 bits of the configuration's digest"),
)  # fmt: skip

CTRL, GIER, IER, ISR = (register.offset for register in _CONTROL)
CTRL_START, CTRL_DONE, CTRL_IDLE, CTRL_READY = (1 << bit.low for bit in _CONTROL[0].fields)
"""CTRL bits: start is set by the host and cleared by the machine; done is cleared on read."""
REGISTERS = {register.name: register.offset for register in (*_ARGUMENTS, *_STATUS)}
"""Name -> offset of the arguments (read/write) and of the status (read only)."""

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

_UNITS = {
    Unit.LD: "the load unit (LD)",
    Unit.ST: "the store unit (ST)",
    Unit.RD: "the read unit (RD)",
    Unit.MX: "the matrix unit of every channel (MX)",
    Unit.VU: "the vector unit (VU)",
}
_BEATS, _BYTES = "beats of 64 bytes", "bytes"
_COUNTERS = {
    "cycles": ("length of the run", "cycles"),
    "instructions": ("instructions that the sequencer executed", "instructions"),
    "stall_queue": ("the sequencer waits because a unit's queue is full", "cycles"),
    "stall_fence": ("the sequencer waits at a FENCE or a HALT until units have finished", "cycles"),
    "stall_lds": ("the sequencer waits for a word from the auxiliary memory", "cycles"),
    **{f"busy_{u.name.lower()}": (f"{text} works: from start to end of an instruction", "cycles")
       for u, text in _UNITS.items()},
    **{f"wait_{u.name.lower()}": (f"{text} rests, its next instruction waits for semaphores", "cycles")
       for u, text in sorted(_UNITS.items())},
    "mx_weight_stall": ("the matrix units are at work and wait for weights", "cycles"),
    "mx_drain_stall": ("the matrix units are at work and wait until accumulators are emptied", "cycles"),
    "read_beats_aux": ("everything read from the auxiliary memory", _BEATS),
    "read_beats_channels": ("everything read from the channels, summed over them", _BEATS),
    "write_bytes_aux": ("everything written to the auxiliary memory (enabled strobes)", _BYTES),
    "write_bytes_channels": ("everything written to the channels, summed over them (enabled strobes)", _BYTES),
    "unpack_stall": ("matrix unit 0 holds a weight beat back because its weight buffer is full", "cycles"),
    "read_beats_fetch": ("aux reads of the program", _BEATS),
    "read_beats_scalars": ("aux reads of LDS: one word each", _BEATS),
    LD_BEATS[LdKind.ACTIVATIONS]: ("aux reads of activations", _BEATS),
    LD_BEATS[LdKind.EMBEDDING]: ("aux reads of embedding rows", _BEATS),
    LD_BEATS[LdKind.PARAMETERS]: ("aux reads of scale words and biases", _BEATS),
    LD_BEATS[LdKind.KV_SCALES]: ("aux reads of scales of cached keys and values", _BEATS),
    LD_BEATS[LdKind.TABLES]: ("aux reads of tables (RoPE, positions, selection)", _BEATS),
    RD_BEATS[StreamFormat.STREAM]: ("channel reads of weights", _BEATS),
    RD_BEATS[StreamFormat.RAW]: ("channel reads of cached keys and values", _BEATS),
    ST_BYTES[StKind.ACTIVATIONS]: ("aux writes of activations", _BYTES),
    ST_BYTES[StKind.RESULTS]: ("aux writes of results (logits)", _BYTES),
    ST_BYTES[StKind.KV_SCALES]: ("aux writes of scales of cached keys and values", _BYTES),
    ST_BYTES[StKind.LISTS]: ("aux writes of lists that the machine makes (survivors)", _BYTES),
    KV_BYTES: ("channel writes of keys and values", _BYTES),
}  # fmt: skip
COUNTERS = tuple(_COUNTERS)
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


def registers(ports: int) -> tuple[Register, ...]:
    """Every register of a machine with so many memory ports, in the order of their offsets."""
    counters = (
        Register(counter_offset(name), name, "RO", meaning, unit, 64) for name, (meaning, unit) in _COUNTERS.items()
    )
    bases = (
        Register(
            base_offset(port),
            f"base{port:02d}",
            "RW",
            f"added to every address that leaves memory port {port}; its lowest {BASE_ALIGNMENT_LOG2} bits are 0",
            "bytes",
            64,
        )
        for port in range(ports)
    )
    return (*_CONTROL, *_ARGUMENTS, *_STATUS, *counters, *bases)
