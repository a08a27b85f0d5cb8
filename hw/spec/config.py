"""Accelerator configurations: frozen data, derived quantities as properties, impossible ones refused."""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from typing import Any

from .config_fields import FIELDS, MEMORY_FIELDS, Field
from .isa import INSTRUCTION_BYTES

GRANULE_LANES = 16
"""int32 values in a granule; a granule is 64 bytes, one memory beat."""
BEAT_BYTES = 64
BLOCK = 16
"""A weight block is BLOCK output channels x BLOCK inputs; an operand block is BLOCK int8 values."""
BLOCK_BEATS = BLOCK * BLOCK // BEAT_BYTES
MULTIPLIERS_PER_CHAIN = 16
PAGE_BYTES = 4096
"""Memory images are kept in pages, and AXI bursts do not cross one."""


class ConfigError(ValueError):
    """A configuration that cannot be built; the message names value, limit and unit."""


MEMORY_KINDS = ("fixed", "hbm")


@dataclass(frozen=True)
class Memory:
    """The memory behind a configuration's ports. It has a clock of its own: a faster kernel waits more cycles for it.

    kind "fixed": every port answers after a fixed latency, then with a beat a kernel cycle. kind "hbm": the channels
    are HBM2 pseudo-channels (`hw.spec.hbm`); only the auxiliary port and the responses of writes have a fixed latency.
    """

    kind: str
    clock_hz: int
    """Beats a second that a fixed-latency port can deliver: the kernel, which takes one a cycle, may not be faster."""
    read_latency: int
    """Of a fixed-latency port, from an accepted read address to its first beat, in cycles of this clock."""
    write_latency: int
    """From a write's last beat to its response, in cycles of this clock."""


@dataclass(frozen=True)
class Config:
    """One accelerator. What a field means, its unit, range and cost: `hw.spec.config_fields`.

    Buffers are sized in granules of 16 int32 (64 bytes), the operand buffer in blocks of 16 int8.
    """

    name: str
    units: int
    chains: int
    lanes: int
    ob_blocks: int
    ab_granules: int
    pb_granules: int
    vb_granules: int
    sb_granules: int
    rs_entries: int
    acc_rows: int
    fifo_beats: int
    imem_instructions: int
    clock_hz: int
    channel_bytes: int
    aux_bytes: int
    memory: Memory
    queue_depth: int = 8
    base: str = ""
    """The built-in configuration that this one was made from (`hw.spec.machine`); empty: it is one itself. It says
    which card the machine is meant for, and changes nothing in it."""

    def __post_init__(self):
        for name, field in FIELDS.items():
            self._check_range(name, getattr(self, name), field)
        for name, field in MEMORY_FIELDS.items():
            self._check_range(f"memory.{name}", getattr(self.memory, name), field)
        self._check_array()
        self._check_buffers()
        self._check_memory()

    def _need(self, ok, what):
        if not ok:
            raise ConfigError(f"configuration {self.name!r}: {what}")

    def _check_range(self, name: str, value: Any, field: Field) -> None:
        whole = isinstance(value, int) and not isinstance(value, bool)
        self._need(whole, f"{name} = {value!r} is not a whole number of {field.unit}")
        self._need(
            field.least <= value <= field.most,
            f"{name} = {value:,} is outside {field.least:,}..{field.most:,} {field.unit}",
        )

    def _check_array(self):
        need = self._need
        need(self.units & (self.units - 1) == 0, f"units = {self.units} is not a power of two")
        need(self.chains in (1, 2, 4, 8), f"chains = {self.chains}, supported are 1, 2, 4, 8")
        need(self.lanes % GRANULE_LANES == 0, f"lanes = {self.lanes} is not a multiple of {GRANULE_LANES}")
        need(
            (self.units * GRANULE_LANES) % self.lanes == 0,
            f"lanes = {self.lanes} does not divide units x 16 = {self.units * GRANULE_LANES}",
        )
        need(self.acc_rows & (self.acc_rows - 1) == 0, f"acc_rows = {self.acc_rows} is not a power of two")

    def _check_buffers(self):
        need = self._need
        need(
            self.ob_blocks & (self.ob_blocks - 1) == 0 and self.ob_blocks >= self.ob_banks,
            f"ob_blocks = {self.ob_blocks} is not a power of two of at least {self.ob_banks} blocks",
        )
        for field in ("ab_granules", "pb_granules", "vb_granules", "sb_granules"):
            need(
                getattr(self, field) % self.granules_per_word == 0,
                f"{field} = {getattr(self, field)} is not a multiple of the vector word "
                f"({self.granules_per_word} granules)",
            )
        per_beat = BEAT_BYTES // INSTRUCTION_BYTES
        need(
            self.imem_instructions % per_beat == 0,
            f"imem_instructions = {self.imem_instructions} is not a multiple of the {per_beat} of a memory beat",
        )

    def _check_memory(self):
        need, memory = self._need, self.memory
        need(memory.kind in MEMORY_KINDS, f"memory.kind = {memory.kind!r}, supported are {', '.join(MEMORY_KINDS)}")
        for field in ("channel_bytes", "aux_bytes"):
            need(
                getattr(self, field) % PAGE_BYTES == 0,
                f"{field} = {getattr(self, field):,} is not a multiple of a page of {PAGE_BYTES:,} bytes",
            )
        need(self.clock_hz % 1000 == 0, f"clock_hz = {self.clock_hz:,} is not a whole number of kHz")
        need(
            self.clock_hz <= memory.clock_hz,
            f"clock_hz = {self.clock_hz:,} is above memory.clock_hz = {memory.clock_hz:,}: a port would take more "
            "beats a second than its memory delivers; choose a slower kernel or a faster memory",
        )

    def memory_cycles(self, clocks):
        """Kernel cycles that so many cycles of the memory's clock take, rounded up."""
        return -(-clocks * self.clock_hz // self.memory.clock_hz)

    @property
    def read_latency(self) -> int:
        """Kernel cycles from an accepted read address to the first beat of a fixed-latency port."""
        return self.memory_cycles(self.memory.read_latency)

    @property
    def write_latency(self) -> int:
        """Kernel cycles from a write's last beat to its response."""
        return self.memory_cycles(self.memory.write_latency)

    @property
    def granules_per_word(self) -> int:
        """Granules in one vector-unit word."""
        return self.lanes // GRANULE_LANES

    @property
    def ob_banks(self) -> int:
        """Banks of the operand buffer: a window of WINDOW blocks, or a block for every unit, is read in a cycle."""
        return max(self.units, 8)

    @property
    def passes(self) -> int:
        """Cycles a matrix unit takes for one activation row against one weight block."""
        return BLOCK // 2 // self.chains

    @property
    def drain_cycles_a_row(self) -> int:
        """Cycles to drain one row of one output-block step, outputs divided over the units."""
        return self.units * GRANULE_LANES // self.lanes

    @property
    def macs_per_cycle(self) -> int:
        return self.units * self.chains * MULTIPLIERS_PER_CHAIN * 2

    @property
    def chain_dsps(self) -> int:
        return self.units * self.chains * MULTIPLIERS_PER_CHAIN

    @property
    def peak_bytes_per_cycle(self) -> int:
        """What the matrix units' ports take; a memory with a slower clock delivers less (`MemoryModel`)."""
        return self.units * BEAT_BYTES

    @property
    def aux_port(self) -> int:
        """Index of the auxiliary memory port; ports below it are the matrix units' channels."""
        return self.units

    def digest(self) -> str:
        """First 16 hex digits of the SHA-256 of the canonical JSON of every field but `base`."""
        fields = {name: value for name, value in asdict(self).items() if name != "base"}
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]

    def __str__(self) -> str:
        return self.name


_MIB = 1 << 20
_HBM_AND_DDR = Memory("hbm", 300_000_000, 64, 32)
"""Channels of HBM2, an auxiliary port to DDR4-2400: 19.2 GB/s are 300 million beats a second; 213 ns to the first."""
_U280 = Config(
    name="u280",
    units=32,
    chains=8,
    lanes=64,
    ob_blocks=131072,
    ab_granules=180224,
    pb_granules=28672,
    vb_granules=131072,
    sb_granules=32768,
    rs_entries=16384,
    acc_rows=256,
    fifo_beats=1024,
    imem_instructions=8192,
    clock_hz=225_000_000,
    channel_bytes=256 * _MIB,
    aux_bytes=16384 * _MIB,
    memory=_HBM_AND_DDR,
)
"""The card that the others are described by: each says where it differs."""

CONFIGS = {
    c.name: c
    for c in (
        Config(
            name="tiny",
            units=2,
            chains=2,
            lanes=16,
            ob_blocks=4096,
            ab_granules=4096,
            pb_granules=2048,
            vb_granules=2048,
            sb_granules=1024,
            rs_entries=1024,
            acc_rows=64,
            fifo_beats=64,
            imem_instructions=8192,
            clock_hz=225_000_000,
            channel_bytes=8 * _MIB,
            aux_bytes=16 * _MIB,
            memory=Memory("fixed", 450_000_000, 40, 20),
        ),
        Config(
            name="small",
            units=4,
            chains=8,
            lanes=16,
            ob_blocks=16384,
            ab_granules=32768,
            pb_granules=8192,
            vb_granules=16384,
            sb_granules=4096,
            rs_entries=4096,
            acc_rows=128,
            fifo_beats=128,
            imem_instructions=8192,
            clock_hz=225_000_000,
            channel_bytes=64 * _MIB,
            aux_bytes=256 * _MIB,
            memory=Memory("fixed", 450_000_000, 64, 32),
        ),
        _U280,
        replace(_U280, name="u55c", units=16, channel_bytes=512 * _MIB, aux_bytes=8192 * _MIB),
        replace(
            _U280,
            name="u50",
            units=16,
            ob_blocks=65536,
            ab_granules=131072,
            pb_granules=16384,
            vb_granules=98304,
            sb_granules=16384,
            aux_bytes=4096 * _MIB,
        ),
        replace(_U280, name="v80", units=64, chains=4, clock_hz=200_000_000, channel_bytes=512 * _MIB),
    )
}


def get(machine: "str | Config") -> Config:
    """The configuration of a name (one that is a configuration already, as it is); `ConfigError` with the list of names
    otherwise."""
    if isinstance(machine, Config):
        return machine
    if machine in CONFIGS:
        return CONFIGS[machine]
    close = get_close_matches(machine.lower(), CONFIGS, 1)
    hint = f", is {close[0]!r} meant?" if close else ""
    raise ConfigError(
        f"unknown configuration {machine!r}{hint}: choose one of {', '.join(CONFIGS)}, or give a .toml file"
    )
