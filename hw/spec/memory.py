"""The fixed-latency memory model, shared by the cycle simulator and the RTL test bench.

Each port is independent and in order. A read accepted at t shows beat i at
max(t + latency_j + i, previous beat + 1); a write's response comes write_latency after its last beat.
"""

from dataclasses import dataclass

_MASK = 0xFFFFFFFF


def hash32(seed: int, port: int, request: int) -> int:
    """Counter-based hash (murmur3 finaliser) for random latencies."""
    x = (seed * 0x9E3779B1 + port * 0x85EBCA77 + request * 0xC2B2AE3D) & _MASK
    for multiplier in (0x85EBCA6B, 0xC2B2AE35):
        x ^= x >> 16 if multiplier == 0x85EBCA6B else x >> 13
        x = x * multiplier & _MASK
    return x ^ x >> 16


@dataclass(frozen=True)
class MemoryModel:
    """read_latency and write_latency in cycles; jitter: largest extra read latency, 0 for none."""

    read_latency: int
    write_latency: int
    jitter: int = 0
    seed: int = 0

    def latency(self, port: int, request: int) -> int:
        """Latency of the request-th read (from 0) of a port."""
        if not self.jitter:
            return self.read_latency
        return self.read_latency + hash32(self.seed, port, request) % (self.jitter + 1)
