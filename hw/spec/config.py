"""Accelerator configurations: frozen data, derived quantities as properties, impossible ones refused."""

import hashlib
import json
from dataclasses import asdict, dataclass

GRANULE_LANES = 16
"""int32 values in a granule; a granule is 64 bytes, one memory beat."""
BEAT_BYTES = 64
BLOCK = 16
"""A weight block is BLOCK output channels x BLOCK inputs; an operand block is BLOCK int8 values."""
BLOCK_BEATS = BLOCK * BLOCK // BEAT_BYTES
MULTIPLIERS_PER_CHAIN = 16
LEAST_CLOCK_HZ = 50_000_000
"""Below, data that an HBM channel sends could be due before the simulator knows of it (docs/memory.md)."""


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
    """One accelerator.

    Buffers are sized in granules of 16 int32 (64 bytes), the operand buffer in blocks of 16 int8.
    """

    name: str
    units: int
    """Matrix units, each bound to one memory channel (a power of two)."""
    chains: int
    """Sparse DSP chains of 16 multipliers a matrix unit (2, 4 or 8)."""
    lanes: int
    """Vector unit lanes (a multiple of 16)."""
    ob_blocks: int
    ab_granules: int
    pb_granules: int
    vb_granules: int
    sb_granules: int
    rs_entries: int
    """Row-scalar entries of the vector unit."""
    acc_rows: int
    """Activation rows one matrix instruction can hold in its accumulators (each of two banks)."""
    fifo_beats: int
    """Run-ahead FIFO of weight beats in a matrix unit."""
    imem_instructions: int
    clock_hz: int
    channel_bytes: int
    aux_bytes: int
    memory: Memory
    queue_depth: int = 8
    """Instructions each unit's queue holds."""

    def __post_init__(self):
        def need(ok, what):
            if not ok:
                raise ConfigError(f"configuration {self.name!r}: {what}")

        self._check_memory(need)

        need(self.units >= 1 and self.units & (self.units - 1) == 0, f"units = {self.units} is not a power of two")
        need(self.chains in (1, 2, 4, 8), f"chains = {self.chains}, supported are 1, 2, 4, 8")
        need(self.lanes % GRANULE_LANES == 0, f"lanes = {self.lanes} is not a multiple of {GRANULE_LANES}")
        need(
            (self.units * GRANULE_LANES) % self.lanes == 0,
            f"lanes = {self.lanes} does not divide units x 16 = {self.units * GRANULE_LANES}",
        )
        need(
            self.ob_blocks & (self.ob_blocks - 1) == 0 and self.ob_blocks >= self.ob_banks,
            f"ob_blocks = {self.ob_blocks} is not a power of two of at least {self.ob_banks} blocks",
        )
        need(self.fifo_beats >= 32, f"fifo_beats = {self.fifo_beats} is below two bursts (32 beats)")
        for field in ("ab_granules", "pb_granules", "vb_granules", "sb_granules"):
            need(
                getattr(self, field) % self.granules_per_word == 0,
                f"{field} = {getattr(self, field)} is not a multiple of the vector word "
                f"({self.granules_per_word} granules)",
            )

    def _check_memory(self, need):
        memory = self.memory
        need(memory.kind in MEMORY_KINDS, f"memory.kind = {memory.kind!r}, supported are {', '.join(MEMORY_KINDS)}")
        need(
            min(memory.read_latency, memory.write_latency) >= 1,
            f"memory latencies of {memory.read_latency} and {memory.write_latency} cycles: the least is 1",
        )
        need(
            self.clock_hz % 1000 == 0 and self.clock_hz >= LEAST_CLOCK_HZ,
            f"clock_hz = {self.clock_hz:,} is not a whole number of kHz of at least {LEAST_CLOCK_HZ // 10**6} MHz",
        )
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
        """First 16 hex digits of the SHA-256 of the canonical JSON of every field."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]


_MIB = 1 << 20
_HBM_AND_DDR = Memory("hbm", 300_000_000, 64, 32)
"""Channels of HBM2, an auxiliary port to DDR4-2400: 19.2 GB/s are 300 million beats a second; 213 ns to the first."""

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
        Config(
            name="u280",
            units=32,
            chains=8,
            lanes=64,
            ob_blocks=131072,
            ab_granules=180224,
            pb_granules=28672,
            vb_granules=163840,
            sb_granules=32768,
            rs_entries=16384,
            acc_rows=256,
            fifo_beats=1024,
            imem_instructions=8192,
            clock_hz=225_000_000,
            channel_bytes=256 * _MIB,
            aux_bytes=16384 * _MIB,
            memory=_HBM_AND_DDR,
        ),
        Config(
            name="u55c",
            units=16,
            chains=8,
            lanes=64,
            ob_blocks=131072,
            ab_granules=180224,
            pb_granules=28672,
            vb_granules=163840,
            sb_granules=32768,
            rs_entries=16384,
            acc_rows=256,
            fifo_beats=1024,
            imem_instructions=8192,
            clock_hz=225_000_000,
            channel_bytes=512 * _MIB,
            aux_bytes=8192 * _MIB,
            memory=_HBM_AND_DDR,
        ),
        Config(
            name="u50",
            units=16,
            chains=8,
            lanes=64,
            ob_blocks=65536,
            ab_granules=131072,
            pb_granules=16384,
            vb_granules=98304,
            sb_granules=16384,
            rs_entries=16384,
            acc_rows=256,
            fifo_beats=1024,
            imem_instructions=8192,
            clock_hz=225_000_000,
            channel_bytes=256 * _MIB,
            aux_bytes=4096 * _MIB,
            memory=_HBM_AND_DDR,
        ),
    )
}


def get(name: str) -> Config:
    """The named configuration; `ConfigError` with the list of names otherwise."""
    try:
        return CONFIGS[name]
    except KeyError:
        raise ConfigError(f"unknown configuration {name!r}; choose one of {', '.join(CONFIGS)}") from None
