"""Container files as the commands use them."""

import hashlib
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
    kept = {key: value for key, value in manifest.items() if key not in ("sections", "memory_map")}
    return (
        kept
        | flow.asked
        | used
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
    by_lengths = program_sizes(flow.compiled, flow.image)
    return flow.compression_report | {
        "model": layout.model.name,
        "config": flow.config.name,
        "config_digest": flow.config.digest(),
        "context": layout.context,
        "layers": layout.model.text.n_layers,
        "instructions": len(words),
        "program_sha256": hashlib.sha256(np.array(words, np.uint64).tobytes()).hexdigest(),
        "lengths": lengths,
        "program_bytes": by_lengths[lengths]["program_bytes"],
        "by_lengths": by_lengths,
        "channel_bytes_used": layout.channel.at * BEAT_BYTES,
        "aux_bytes_used": layout.aux.at * BEAT_BYTES,
    }


def program_bytes(path: Path, content: bytes) -> bytes:
    """The encoded program of a container, or the bytes of a raw program file."""
    if content[:6] == container.MAGIC[:6]:
        words = container.load(path).program()
        return b"".join(word.to_bytes(INSTRUCTION_BYTES, "little") for word in words)
    if path.suffix != ".bin":
        raise UserError(f"{path} is not an alula container: give a file made by `alula compile`, or a raw program .bin")
    if not content or len(content) % INSTRUCTION_BYTES:
        raise UserError(
            f"{path} has {len(content)} bytes, a raw program is a multiple of {INSTRUCTION_BYTES}: "
            "give a file made by `alula asm`"
        )
    return content
