"""Speed of the cycle simulator: simulated cycles a second of wall time, without moving data."""

import time

from alula.session import open_flow
from alula.simulation import simulate

RUNS = (
    ("llava-tiny", "tiny", None, "prefill", 64, 1),
    ("llava-tiny", "tiny", None, "decode", 1, 200),
    ("smollm2-135m", "small", None, "prefill", 128, 1),
    ("smollm2-135m", "small", None, "decode", 1, 256),
)


def measure() -> dict:
    """One entry a run."""
    runs, flows = [], {}
    for model, config, layers, phase, tokens, kv in RUNS:
        key = model, config, layers
        flow = flows.setdefault(key, open_flow(model, config, layers=layers, vision=False))
        began = time.monotonic()
        result = simulate(flow, phase, tokens=tokens, kv=kv, name="cycle")
        runs.append(
            {
                "model": model,
                "config": config,
                "phase": phase,
                "tokens": tokens,
                "kv": kv,
                "cycles": result["cycles"],
                "mac_utilisation": result["mac_utilisation"],
                "hbm_utilisation": result["hbm_utilisation"],
                "simulator_seconds": result["simulator_seconds"],
                "wall_seconds": time.monotonic() - began,
                "cycles_per_second": result["cycles"] / result["simulator_seconds"],
            }
        )
    return {"runs": runs}
