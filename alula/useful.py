"""Useful bytes of a run: what it read from the channels without padding."""

from compiler import ir
from hw.spec.config import BEAT_BYTES

from .session import Flow


def useful_bytes(flow: Flow, phase: str, tokens: int, kv: int, counters: dict[str, int], plain: bool) -> int:
    """Weights with their headers and scales, and keys and values of real tokens; every read of them counts.

    Not counted: fillers and absent rows of weight streams, and the rest of a slot of keys. plain: no mask and no
    dropped tokens; with either, the keys and values read are not told from their padding and left out.
    """
    layout, units = flow.layout, flow.config.units
    beats = counters.get("read_beats_weights", 0)
    if phase == "vision":
        held = beats * layout.held_share("vision", "stem", "projector")
        seen = (layout.tower.n_patches + 1,) * _tiles(flow, "vision", layout.tower.n_patches + 1)
        return round(held) * BEAT_BYTES + _cached_bytes(layout.tower.layer, sum(seen), layout.tower.n_layers)
    head = units * sum(layout.head.streams) if flow.head else 0
    held = (beats - head) * layout.held_share("text") + (layout.head.held if flow.head else 0)
    if phase == "decode":
        seen = (kv,)
    else:
        tile = flow.compiled.program.entries["lm"]["tile"]
        seen = tuple(min(first + tile, tokens) for first in range(0, tokens, tile))
    keys = _cached_bytes(layout.model.text.layer, sum(seen), flow.layers) if plain else 0
    return round(held) * BEAT_BYTES + keys


def _tiles(flow: Flow, entry: str, tokens: int) -> int:
    return -(-tokens // flow.compiled.program.entries[entry]["tile"])


def _cached_bytes(ops: list, tokens: int, layers: int) -> int:
    """Keys and values of so many tokens."""
    attention = next(op for op in ops if isinstance(op, ir.Attention))
    return 2 * tokens * attention.kv_heads * attention.head_dim * layers
