"""A module's program as a container (see `compiler.container`): program, weights, and where inputs and results lie."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from compiler.container import write_container
from compiler.stages.entry import LoweredEntry
from compiler.stages.program import Lowered
from hw.spec.config import BEAT_BYTES


def save(name: str, lowered: Lowered, path: Path) -> dict[str, Any]:
    """Writes the file atomically; returns its manifest."""
    config = lowered.config
    words = np.array(lowered.words, np.uint64).view(np.uint8)
    pieces = [(config.aux_port, 0, words), *lowered.memory.pieces]
    weights = sum(len(data) for port, _, data in lowered.memory.pieces if port != config.aux_port)
    facts = {
        "model": name,
        "config": config.name,
        "config_digest": config.digest(),
        "config_fields": asdict(config),
        "weights": True,
        "entries": {name: _entry(entry) for name, entry in lowered.entries.items()},
        "instructions": len(lowered.words),
        "operators": _changes(lowered.operators),
        "layer_loops": [],
        "memory_map": {"bytes_a_beat": BEAT_BYTES},
        "weight_bytes": weights,
    }
    return write_container(path, facts, iter(pieces))


def _changes(operators: dict[int, str]) -> list[list]:
    """pc of every ISSUE that is for another operator than the one before it, and that operator."""
    found: list[list] = []
    for pc, name in sorted(operators.items()):
        if not found or found[-1][1] != name:
            found.append([pc, name])
    return found


def _entry(entry: LoweredEntry) -> dict[str, Any]:
    """Where an entry begins, its argument registers, its lengths, and where its values lie: name -> [first beat, beats
    a row, groups, channels], caches by their beat in the channels."""
    rows = {name: [r.base, r.beats, r.layout.groups, r.layout.size] for name, r in entry.rows.items()}
    caches = {name: [c.base, c.scales, c.heads, c.size, c.context] for name, c in entry.caches.items()}
    return {
        "entry": entry.start,
        "args": [str(length) for length in entry.arguments.names],
        "lengths": {symbol: [limits.least, limits.most] for symbol, limits in entry.arguments.ranges.items()},
        "rows": rows,
        "caches": caches,
        "results": {name: view.base for name, view in entry.integers.results.items()},
    }
