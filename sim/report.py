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
    lies in the channels. macs_sparse: `macs` without the products of pruned weights (None: nothing is pruned)."""

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
    macs_sparse: int | None = None
    layers_of_model: int | None = None
    """Layers that the whole model has; None: it has `layers`."""
    head: bool = True
    """Whether the run ends in logits."""

    @property
    def whole(self) -> bool:
        """Whether all of the model ran. Of a part there is neither a rate of tokens nor a time to the first token."""
        return self.head and self.layers_of_model in (None, self.layers)


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
    configuration's own), whose peak `hbm_utilisation` and `hbm_busy` are shares of.

    `mac_utilisation` is dense-equivalent: useful products of the dense model over what the array could do, above 1
    where the array skips pruned weights. `array_utilisation` counts the products that the array multiplied, at most 1.
    The keys with hbm are of the channels, whatever memory is behind them.
    """
    cycles = result.cycles
    seconds = cycles / config.clock_hz if cycles else None
    moved = bytes_by_memory(result.counters)
    read, written = moved["channel_bytes_read"], moved["channel_bytes_written"]
    peak = (cycles or 0) * (memory or MemoryModel.of(config)).peak_bytes_per_cycle(config)
    possible = (cycles or 0) * config.macs_per_cycle
    sparse = workload.macs if workload.macs_sparse is None else workload.macs_sparse
    return {
        "backend": backend,
        "config": config.name,
        "model": workload.model,
        "phase": workload.phase,
        "tokens": workload.tokens,
        "kv": workload.kv,
        "layers": workload.layers,
        "layers_of_model": workload.layers if workload.layers_of_model is None else workload.layers_of_model,
        "whole_model": workload.whole,
        "cycles": cycles,
        "seconds_at_clock": seconds,
        "clock_hz": config.clock_hz,
        "macs": workload.macs,
        "macs_sparse": sparse,
        "mac_utilisation": workload.macs / possible if cycles else None,
        "array_utilisation": sparse / possible if cycles else None,
        "tokens_per_second": workload.tokens / seconds if seconds and workload.whole else None,
        "ttft_seconds": seconds if workload.phase == "prefill" and workload.whole else None,
        "hbm_bytes_read": read,
        "hbm_bytes_written": written,
        **moved,
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


def bytes_by_memory(counters: dict[str, int]) -> dict[str, int]:
    """Bytes that moved, by the memory they are in: the channels hold weights, keys and values; the auxiliary memory
    holds programs, tables, rows, scales of keys and values, and results."""
    channels = counters.get("read_beats_channels", 0) * BEAT_BYTES, counters.get("write_bytes_channels", 0)
    aux = counters.get("read_beats_aux", 0) * BEAT_BYTES, counters.get("write_bytes_aux", 0)
    return {
        "channel_bytes_read": channels[0],
        "channel_bytes_written": channels[1],
        "aux_bytes_read": aux[0],
        "aux_bytes_written": aux[1],
        "bytes_read": channels[0] + aux[0],
        "bytes_written": channels[1] + aux[1],
    }
