"""The memory models, shared by the cycle simulator and the RTL test bench: docs/memory.md.

Each port is independent and in order. With a fixed latency, a read accepted at t shows beat i at
max(t + latency_j + i, previous beat + 1); a write's response comes write_latency after its last beat. With HBM the
channels' reads come when `hw.spec.hbm` says; the auxiliary port and every write's response stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

from hw.spec.config import Config, ConfigError

_MASK = 0xFFFFFFFF
KINDS = ("fixed", "hbm")
PSEUDO_CHANNEL_BYTES = 1 << 28
"""Bytes of an HBM2 pseudo-channel: configurations with such channels have HBM unless another memory is asked for."""


def hash32(seed: int, port: int, request: int) -> int:
    """Counter-based hash (murmur3 finaliser) for random latencies."""
    x = (seed * 0x9E3779B1 + port * 0x85EBCA77 + request * 0xC2B2AE3D) & _MASK
    for multiplier in (0x85EBCA6B, 0xC2B2AE35):
        x ^= x >> 16 if multiplier == 0x85EBCA6B else x >> 13
        x = x * multiplier & _MASK
    return x ^ x >> 16


@dataclass(frozen=True)
class MemoryModel:
    """read_latency and write_latency in cycles; jitter: largest extra read latency, 0 for none; hbm: channels are HBM2
    pseudo-channels, and of the latencies only the auxiliary port's reads and the responses of writes are left."""

    read_latency: int
    write_latency: int
    jitter: int = 0
    seed: int = 0
    hbm: bool = False

    @classmethod
    def of(cls, config: Config, kind: str | None = None, jitter: int = 0, seed: int = 0) -> MemoryModel:
        """The memory of a configuration; kind: "fixed" or "hbm", None for the configuration's own."""
        if kind is not None and kind not in KINDS:
            raise ConfigError(f"unknown memory {kind!r}: choose {' or '.join(KINDS)}")
        if jitter < 0:
            raise ConfigError(f"a jitter of {jitter} cycles: it is the largest extra latency, 0 or more")
        hbm = config.channel_bytes == PSEUDO_CHANNEL_BYTES if kind is None else kind == "hbm"
        return cls(config.read_latency, config.write_latency, jitter, seed, hbm)

    @property
    def kind(self) -> str:
        return KINDS[self.hbm]

    def report(self) -> dict:
        """What a run's JSON says of its memory."""
        return {"memory": self.kind, "jitter": self.jitter, "memory_seed": self.seed}

    def extra(self, port: int, request: int) -> int:
        """Random extra latency of the request-th read (from 0) of a port."""
        return hash32(self.seed, port, request) % (self.jitter + 1) if self.jitter else 0

    def latency(self, port: int, request: int) -> int:
        """Latency of the request-th read (from 0) of a port whose latency is fixed."""
        return self.read_latency + self.extra(port, request)
