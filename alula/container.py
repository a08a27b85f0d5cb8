"""Container files as the commands use them."""

import gc
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from alula.runtime.lengths import program_sizes
from alula.session import Flow
from compiler import container
from hw.spec.config import BEAT_BYTES
from hw.spec.errors import UserError
from hw.spec.isa import INSTRUCTION_BYTES


def save(path: Path, flow: Flow) -> dict:
    """Write a compiled model with its weights; what the command prints."""
    manifest = container.save(path, flow.compiled, flow.model)
    layout = flow.layout
    used = {"channel_bytes_used": layout.channel.at * BEAT_BYTES, "aux_bytes_used": layout.aux.at * BEAT_BYTES}
    kept = {
        key: value
        for key, value in manifest.items()
        if key not in ("sections", "memory_map", "operators", "layer_loops")
    }
    return (
        kept
        | flow.asked
        | used
        | {"layers_of_model": flow.model.config.text.layers}
        | {
            "program_bytes": manifest["instructions"] * INSTRUCTION_BYTES,
            "sections": len(manifest["sections"]),
            "channel_capacity_bytes": flow.config.channel_bytes,
            "aux_capacity_bytes": flow.config.aux_bytes,
        }
    )


def sizes(path: Path | None, flow: Flow, lengths: str) -> dict:
    """What the command prints of a model compiled for timing only; with a path the program alone is stored there.

    lengths: the mode whose instructions are `program_bytes`; all modes are in "by_lengths".
    """
    if path is not None:
        container.save(path, flow.compiled, None)
    layout, words = flow.layout, flow.compiled.program.words
    with _frozen():
        by_lengths = program_sizes(flow.compiled, flow.image)
    return flow.compression_report | {
        "model": layout.model.name,
        "config": flow.config.name,
        "config_digest": flow.config.digest(),
        "context": layout.context,
        "layers": layout.model.text.n_layers,
        "layers_of_model": flow.model.config.text.layers,
        "instructions": len(words),
        "program_sha256": hashlib.sha256(np.array(words, np.uint64).tobytes()).hexdigest(),
        "lengths": lengths,
        "program_bytes": by_lengths[lengths]["program_bytes"],
        "by_lengths": by_lengths,
        "channel_bytes_used": layout.channel.at * BEAT_BYTES,
        "aux_bytes_used": layout.aux.at * BEAT_BYTES,
        "channel_capacity_bytes": flow.config.channel_bytes,
        "aux_capacity_bytes": flow.config.aux_bytes,
    }


@contextmanager
def _frozen() -> Iterator[None]:
    """Garbage is collected among new objects only: streams are millions of these, and each collection would walk over
    all of the compiler and of torch besides."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@dataclass(frozen=True)
class Listed:
    """A program with what is known of it."""

    code: bytes
    labels: dict[int, str]
    """pc -> the entry, or the part of one, that begins there."""
    operators: list[tuple[int, str]]
    """As `compiler.program.Program.operator_changes`; empty where the file does not say."""


def listed(path: Path, content: bytes) -> Listed:
    """The program of a container, or of a raw program file."""
    if content[:6] != container.MAGIC[:6]:
        return Listed(_raw_program(path, content), {}, [])
    opened = container.load(path)
    code = b"".join(word.to_bytes(INSTRUCTION_BYTES, "little") for word in opened.program())
    changes = [(pc, name) for pc, name in opened.manifest.get("operators", [])]
    labels = {first: "one layer a pass:" for first, _ in opened.manifest.get("layer_loops", [])}
    return Listed(code, labels | entry_labels(opened.manifest["entries"]), changes)


def entry_labels(entries: dict[str, dict]) -> dict[int, str]:
    """pc -> label, for `entries` as a manifest has them."""
    labels = {}
    for name, entry in entries.items():
        arguments = ", ".join(f"r{number} {argument}" for number, argument in enumerate(entry["args"], 1))
        labels[entry["entry"]] = f"{name}: {arguments}"
        labels |= {pc: f"{name}.{part}:" for part, pc in entry.get("parts", {}).items()}
    return labels


def _raw_program(path: Path, content: bytes) -> bytes:
    if path.suffix != ".bin":
        raise UserError(f"{path} is not an alula container: give a file made by `alula compile`, or a raw program .bin")
    if not content or len(content) % INSTRUCTION_BYTES:
        raise UserError(
            f"{path} has {len(content)} bytes, a raw program is a multiple of {INSTRUCTION_BYTES}: "
            "give a file made by `alula asm`"
        )
    return content
