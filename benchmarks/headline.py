"""What LLaVA-1.5 does on `u280`, whole models in the cycle simulator: the figures that README shows.

Timing only, HBM model, the configuration's assumed clock. Every row is one `alula simulate`, whose command is in it.
"""

import time
from dataclasses import dataclass

from alula.first_token import first_token
from alula.session import Flow, open_flow
from alula.simulation import simulate
from benchmarks.depends import TIMING
from hw.spec.memory import MemoryModel
from ref_model.compress import Compression

CONFIG = "u280"
DEPENDS = (
    *TIMING,
    "alula/first_token.py",
    "alula/useful.py",
    f"machine:{CONFIG}",
    f"program:llava-1.5-7b/{CONFIG}",
    f"program:llava-1.5-13b/{CONFIG}",
)
KEPT = (
    "cycles",
    "seconds_at_clock",
    "tokens_per_second",
    "ttft_seconds",
    "mac_utilisation",
    "array_utilisation",
    "hbm_utilisation",
    "hbm_busy",
    "memory",
    "clock_hz",
    "layers",
)


@dataclass(frozen=True)
class Case:
    """One run: `length` is prompt tokens (prefill), keys (decode), or text tokens (ttft)."""

    name: str
    model: str
    phase: str
    length: int
    bits: str = "8"
    sparsity: str = "dense"
    image_tokens: int | None = None

    @property
    def command(self) -> str:
        length = f"--kv {self.length}" if self.phase == "decode" else f"--tokens {self.length}"
        more = "" if self.image_tokens is None else f" --image-tokens {self.image_tokens}"
        more += "" if self.bits == "8" else f" --bits {self.bits}"
        more += "" if self.sparsity == "dense" else f" --sparsity {self.sparsity}"
        return f"alula simulate --model {self.model} --config {CONFIG} --phase {self.phase} {length}{more}"


CASES = (
    Case("prefill", "llava-1.5-7b", "prefill", 616),
    Case("prefill 8:16", "llava-1.5-7b", "prefill", 616, sparsity="8:16"),
    Case("decode 128", "llava-1.5-7b", "decode", 128, bits="3.5"),
    Case("decode 512", "llava-1.5-7b", "decode", 512, bits="3.5"),
    Case("decode 2048", "llava-1.5-7b", "decode", 2048, bits="3.5"),
    Case("decode 2 bits", "llava-1.5-7b", "decode", 128, bits="2"),
    Case("decode 13B", "llava-1.5-13b", "decode", 128, bits="3.5"),
    Case("first token", "llava-1.5-7b", "ttft", 40, sparsity="8:16", image_tokens=29),
)


def measure() -> dict:
    """One entry a case."""
    return {
        "what": "whole models in the cycle simulator, HBM model, assumed clock; weights are not loaded",
        "config": CONFIG,
        "runs": [measure_case(case) for case in CASES],
    }


def measure_case(case: Case) -> dict:
    """The row of a case."""
    began = time.monotonic()
    result = _simulated(case, _open(case))
    row = {"name": case.name, "command": case.command, "model": case.model, "phase": case.phase, "length": case.length}
    row |= {key: result.get(key) for key in KEPT}
    if case.phase == "ttft":
        row["parts"] = result["parts"]
    return row | {"wall_seconds": time.monotonic() - began}


def _open(case: Case) -> Flow:
    compression = Compression.parse(case.bits, case.sparsity, "best")
    options = {"timing_only": True, "compression": compression, "vision": case.phase == "ttft"}
    return open_flow(case.model, CONFIG, keep_visual=case.image_tokens, **options)


def _simulated(case: Case, flow: Flow) -> dict:
    if case.phase == "ttft":
        return first_token(flow, case.length, MemoryModel.of(flow.config))
    return simulate(flow, case.phase, **{"kv" if case.phase == "decode" else "tokens": case.length})
