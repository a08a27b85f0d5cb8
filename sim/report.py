"""The metrics of a run, as a dictionary with stable keys and as a table."""

import resource
from dataclasses import dataclass

from hw.spec.config import BEAT_BYTES, Config
from hw.spec.isa import INSTRUCTION_BYTES
from hw.spec.memory import MemoryModel
from hw.spec.run import Invocation, Result


@dataclass(frozen=True)
class Workload:
    """What ran. macs and useful_bytes count useful products and reads of channels only, padding not; weight_bytes what
    lies in the channels."""

    model: str
    phase: str
    """prefill or decode."""
    tokens: int
    """Tokens the run produced (decode) or consumed (prefill)."""
    kv: int
    """Keys in the cache when the run began."""
    layers: int
    macs: int
    weight_bytes: int
    useful_bytes: int


@dataclass(frozen=True)
class Comparison:
    """Against another executor; None: not compared."""

    bit_exact: bool | None = None
    cycle_exact: bool | None = None
    compared_bytes: int = 0


def metrics(
    backend: str,
    config: Config,
    workload: Workload,
    invocation: Invocation,
    result: Result,
    wall_seconds: float,
    comparison: Comparison = Comparison(),
    memory: MemoryModel | None = None,
) -> dict:
    """Every key is always there; what the backend cannot know is None. memory: what the run was timed with (None: the
    configuration's own), whose peak `hbm_utilisation` and `hbm_busy` are shares of."""
    cycles = result.cycles
    seconds = cycles / config.clock_hz if cycles else None
    read = result.counters.get("read_beats_channels", 0) * BEAT_BYTES
    written = result.counters.get("write_bytes_channels", 0)
    prefill = workload.phase == "prefill"
    peak = (cycles or 0) * (memory or MemoryModel.of(config)).peak_bytes_per_cycle(config)
    return {
        "backend": backend,
        "config": config.name,
        "model": workload.model,
        "phase": workload.phase,
        "tokens": workload.tokens,
        "kv": workload.kv,
        "layers": workload.layers,
        "cycles": cycles,
        "seconds_at_clock": seconds,
        "clock_hz": config.clock_hz,
        "macs": workload.macs,
        "mac_utilisation": workload.macs / (cycles * config.macs_per_cycle) if cycles else None,
        "tokens_per_second": workload.tokens / seconds if seconds else None,
        "ttft_seconds": seconds if prefill else None,
        "hbm_bytes_read": read,
        "hbm_bytes_written": written,
        "hbm_utilisation": (workload.useful_bytes + written) / peak if cycles else None,
        "hbm_busy": (read + written) / peak if cycles else None,
        "instructions_executed": result.counters.get("instructions"),
        "program_bytes": invocation.program_length * INSTRUCTION_BYTES,
        "weight_bytes": workload.weight_bytes,
        "wall_seconds": wall_seconds,
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "bit_exact": comparison.bit_exact,
        "cycle_exact": comparison.cycle_exact,
        "compared_bytes": comparison.compared_bytes,
    }


def table(report: dict):
    """A rich table of the metrics that are known."""
    from rich.table import Table

    out = Table("metric", "value")
    for key, value in report.items():
        if value is not None:
            out.add_row(key, f"{value:.6g}" if isinstance(value, float) else str(value))
    return out
