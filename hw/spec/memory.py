"""The memory models, shared by the cycle simulator and the RTL test bench: docs/memory.md.

Each port is independent and in order. With a fixed latency, a read accepted at t shows beat i at
max(t + latency_j + i, previous beat + 1); a write's response comes write_latency after its last beat. With HBM the
channels' reads come when `hw.spec.hbm` says; the auxiliary port and every write's response stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from hw.spec.config import MEMORY_KINDS, Config, ConfigError
from hw.spec.hbm import SLOT_HZ, WORDS
from hw.spec.isa import WORD_MASK


def hash32(seed: int, port: int, request: int) -> int:
    """Counter-based hash (murmur3 finaliser) for random latencies."""
    x = (seed * 0x9E3779B1 + port * 0x85EBCA77 + request * 0xC2B2AE3D) & WORD_MASK
    for multiplier in (0x85EBCA6B, 0xC2B2AE35):
        x ^= x >> 16 if multiplier == 0x85EBCA6B else x >> 13
        x = x * multiplier & WORD_MASK
    return x ^ x >> 16


@dataclass(frozen=True)
class MemoryModel:
    """read_latency and write_latency in kernel cycles; jitter: largest extra read latency, 0 for none; hbm: channels
    are HBM2 pseudo-channels, and of the latencies only the auxiliary port's reads and the responses of writes are left.
    """

    read_latency: int
    write_latency: int
    jitter: int = 0
    seed: int = 0
    hbm: bool = False
    slots_a_cycle: Fraction = Fraction(2)
    """Slots of an HBM channel (`hw.spec.hbm`) in a kernel cycle: 2 at 225 MHz."""

    @classmethod
    def of(cls, config: Config, kind: str | None = None, jitter: int = 0, seed: int = 0) -> MemoryModel:
        """The memory of a configuration; kind: "fixed" or "hbm", None for the configuration's own."""
        if kind is not None and kind not in MEMORY_KINDS:
            raise ConfigError(f"unknown memory {kind!r}: choose {' or '.join(MEMORY_KINDS)}")
        if jitter < 0:
            raise ConfigError(f"a jitter of {jitter} cycles: it is the largest extra latency, 0 or more")
        hbm = (kind or config.memory.kind) == "hbm"
        return cls(config.read_latency, config.write_latency, jitter, seed, hbm, Fraction(SLOT_HZ, config.clock_hz))

    @property
    def kind(self) -> str:
        return "hbm" if self.hbm else "fixed"

    def peak_bytes_per_cycle(self, config: Config) -> float:
        """What all channels together deliver at their peak."""
        return float(self.peak_share * config.peak_bytes_per_cycle)

    @property
    def peak_share(self) -> Fraction:
        """Of a beat a cycle, what a channel delivers at its peak: an HBM channel sends a beat in WORDS slots."""
        return min(Fraction(1), self.slots_a_cycle / WORDS) if self.hbm else Fraction(1)

    def report(self) -> dict:
        """What a run's JSON says of its memory."""
        return {"memory": self.kind, "jitter": self.jitter, "memory_seed": self.seed}

    def extra(self, port: int, request: int) -> int:
        """Random extra latency of the request-th read (from 0) of a port."""
        return hash32(self.seed, port, request) % (self.jitter + 1) if self.jitter else 0

    def latency(self, port: int, request: int) -> int:
        """Latency of the request-th read (from 0) of a port whose latency is fixed."""
        return self.read_latency + self.extra(port, request)
