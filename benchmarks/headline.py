"""The headline figures: LLaVA-1.5 on `u280` by the cycle simulator, with the memory that the configuration has.

Nothing here needs weights: the cycle simulator times a program without them. Every entry is what its command prints.
"""

import time

from alula.first_token import first_token
from alula.session import open_flow
from alula.simulation import simulate
from benchmarks.depends import TIMING
from hw.spec.memory import MemoryModel
from ref_model.compress import Compression

CONFIG = "u280"
SEVEN, THIRTEEN = "llava-1.5-7b", "llava-1.5-13b"
DECODES = (
    (SEVEN, "3.5", (128, 512, 2048)),
    (SEVEN, "2", (128,)),
    (THIRTEEN, "3.5", (128,)),
)
"""Model, bits a weight, keys that a decode step sees."""
PREFILL_TOKENS, TEXT_TOKENS, VISUAL_TOKENS, SPARSITY = 616, 40, 29, "8:16"
FIRST_TOKEN_AIM_SECONDS = 0.25
DEPENDS = (
    *TIMING,
    "alula/first_token.py",
    "alula/useful.py",
    "benchmarks/headline.py",
    f"machine:{CONFIG}",
    f"program:{SEVEN}/{CONFIG}",
    f"program:{THIRTEEN}/{CONFIG}",
)
KEPT = (
    "cycles", "seconds_at_clock", "clock_hz", "tokens_per_second", "macs", "mac_utilisation", "array_utilisation",
    "hbm_utilisation", "hbm_busy", "memory", "layers",
)  # fmt: skip
PART = ("part", "cycles", "seconds_at_clock", "macs", "macs_sparse", "mac_utilisation", "array_utilisation")


def measure() -> dict:
    """One entry a simulated phase, and the time to first token by part."""
    runs = [_prefill("dense"), _prefill(SPARSITY)]
    for model, bits, keys in DECODES:
        runs += _decodes(model, bits, keys)
    layer = open_flow(SEVEN, CONFIG, layers=1, vision=False, timing_only=True, compression=_bits("3.5"))
    return {
        "what": "cycle simulator, synthetic models of the published shapes; seconds are cycles over an assumed clock",
        "config": CONFIG,
        "runs": runs,
        "one_layer_decode": _kept(simulate(layer, "decode", kv=128)),
        "first_token": _first_token(),
    }


def _bits(bits: str) -> Compression | None:
    return Compression.parse(bits, "dense", "best")


def _kept(result: dict) -> dict:
    return {key: result[key] for key in KEPT if key in result}


def _prefill(sparsity: str) -> dict:
    compression = Compression.parse("8", sparsity, "best")
    flow = open_flow(SEVEN, CONFIG, vision=False, timing_only=True, compression=compression)
    found = _kept(simulate(flow, "prefill", tokens=PREFILL_TOKENS))
    command = f"alula simulate --model {SEVEN} --config {CONFIG} --phase prefill --tokens {PREFILL_TOKENS}"
    command += "" if sparsity == "dense" else f" --sparsity {sparsity}"
    about = {"model": SEVEN, "phase": "prefill", "tokens": PREFILL_TOKENS, "bits": "8", "sparsity": sparsity}
    return about | {"command": command} | found


def _decodes(model: str, bits: str, keys: tuple[int, ...]) -> list[dict]:
    flow = open_flow(model, CONFIG, vision=False, timing_only=True, compression=_bits(bits))
    rows = []
    for kv in keys:
        command = f"alula simulate --model {model} --config {CONFIG} --phase decode --kv {kv} --bits {bits}"
        found = _kept(simulate(flow, "decode", kv=kv))
        rows.append({"model": model, "phase": "decode", "kv": kv, "bits": bits, "command": command} | found)
    return rows


def _first_token() -> dict:
    began = time.monotonic()
    compression = Compression.parse("8", SPARSITY, "best")
    flow = open_flow(SEVEN, CONFIG, timing_only=True, compression=compression, keep_visual=VISUAL_TOKENS)
    found = first_token(flow, TEXT_TOKENS, MemoryModel.of(flow.config))
    command = (
        f"alula simulate --model {SEVEN} --config {CONFIG} --phase ttft --tokens {TEXT_TOKENS} "
        f"--image-tokens {VISUAL_TOKENS} --sparsity {SPARSITY}"
    )
    return {
        "model": SEVEN, "text_tokens": TEXT_TOKENS, "visual_tokens": VISUAL_TOKENS, "sparsity": SPARSITY,
        "aim_seconds": FIRST_TOKEN_AIM_SECONDS, "command": command, "vision_layers": found["vision_layers"],
        "vision_tokens": flow.model.config.n_visual_tokens + 1,
        "parts": [{key: part[key] for key in PART if key in part} for part in found["parts"]],
        "total": {key: found[key] for key in PART if key in found}, "wall_seconds": time.monotonic() - began,
    }  # fmt: skip
