"""The `.alula` file: one compiled model, versioned and checksummed.

magic (8 bytes), manifest length (8, little-endian), manifest JSON, then sections at 4 KiB boundaries. The manifest
names model, configuration and digest, ISA version, entries, memory map, and every section with its SHA-256. The
program's section comes first; weight sections say which port and beat they belong to and are read lazily.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hw.spec.config import Config
from hw.spec.errors import UserError
from hw.spec.isa import ISA_VERSION

from . import pack
from .program import Compiled

MAGIC, VERSION, ALIGN = b"ALULA\0\0\2", 2, 4096
MANIFEST_ROOM = 1 << 22
"""Manifest bytes reserved ahead of the sections, which are written before their checksums are known."""


def save(path: str | Path, compiled: Compiled, quant) -> dict:
    """Write the container of a model; returns its manifest. quant None stores the program alone (timing-only)."""
    return write_container(Path(path), _facts(compiled, quant), _pieces(compiled, quant))


def write_container(path: Path, facts: dict[str, Any], pieces: Iterator[pack.Piece]) -> dict:
    """Write a container atomically: sections, then the manifest of `facts` and of their checksums, which is returned.
    The first piece is the program."""
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
        with os.fdopen(handle, "wb") as file:
            manifest = _write(file, facts, pieces)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}: free some space or choose another place") from None
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
    return manifest


def _write(file, facts: dict[str, Any], pieces: Iterator[pack.Piece]) -> dict:
    sections: list[list[Any]] = []
    for port, beat, data in pieces:
        at = MANIFEST_ROOM if not sections else -(-file.tell() // ALIGN) * ALIGN
        file.seek(at)
        body = np.ascontiguousarray(data).reshape(-1).view(np.uint8).data
        file.write(body)
        sections.append([port, beat, at, len(body), hashlib.sha256(body).hexdigest()])
    manifest = {"format": VERSION, "isa_version": ISA_VERSION} | facts
    manifest |= {
        "sections": sections,
        "program_sha256": sections[0][4],
        "weights_sha256": hashlib.sha256("".join(s[4] for s in sections[1:]).encode()).hexdigest(),
    }
    text = json.dumps(manifest, separators=(",", ":")).encode()
    header = MAGIC + len(text).to_bytes(8, "little") + hashlib.sha256(text).digest() + text
    if len(header) > MANIFEST_ROOM:
        raise UserError(f"the manifest has {len(header)} bytes, {MANIFEST_ROOM} are reserved: compile fewer layers")
    file.seek(0)
    file.write(header)
    return manifest


def _facts(compiled: Compiled, quant) -> dict[str, Any]:
    """What a manifest says of a model besides its sections."""
    layout, config = compiled.layout, compiled.layout.config
    return {
        "model": layout.model.name,
        "config": config.name,
        "config_digest": config.digest(),
        "config_fields": asdict(config),
        "context": layout.context,
        "layers": layout.model.text.n_layers,
        "vision": layout.model.vision is not None,
        "weights": quant is not None,
        "entries": compiled.program.entries,
        "instructions": len(compiled.program.words),
        "operators": [list(change) for change in compiled.program.operator_changes()],
        "layer_loops": [list(loop) for loop in compiled.program.layer_loops],
        "memory_map": layout.memory_map(),
        "average_bits": layout.sizes.average_bits,
        "nonzeros": layout.sizes.nonzeros,
        "weight_bytes": layout.weight_bytes,
    }


def _pieces(compiled: Compiled, quant) -> Iterator[pack.Piece]:
    if quant is not None:
        yield from pack.pieces(compiled.layout, quant, compiled.program.words)
    else:
        yield compiled.config.units, 0, np.array(compiled.program.words, np.uint64).view(np.uint8)


@dataclass
class Container:
    """An opened container: manifest and file. Sections are memory-mapped."""

    path: Path
    manifest: dict

    def program(self) -> list[int]:
        """The encoded instructions."""
        return self._section(self.manifest["sections"][0]).view(np.uint64).tolist()

    def pieces(self, config: Config) -> Iterator[pack.Piece]:
        """What lies in the machine's memory, memory-mapped; UserError for another configuration."""
        if config.digest() != self.manifest["config_digest"]:
            raise UserError(
                f"{self.path} was compiled for configuration {self.manifest['config']} with digest "
                f"{self.manifest['config_digest']}, this one has {config.digest()}: compile it again"
            )
        for section in self.manifest["sections"]:
            yield section[0], section[1], self._section(section)

    def _section(self, section) -> np.ndarray:
        _, _, at, n_bytes, _ = section
        return np.memmap(self.path, np.uint8, "r", at, (n_bytes,))

    def verify(self) -> None:
        """Check every section against its SHA-256."""
        for section in self.manifest["sections"]:
            if hashlib.sha256(self._section(section).data).hexdigest() != section[4]:
                raise UserError(
                    f"{self.path} is corrupt: the section at byte {section[2]} does not match its "
                    "checksum: compile it again"
                )


def load(path: str | Path, verify: bool = True) -> Container:
    """Open a container; UserError (one line) if it is missing, foreign, of another version, truncated or corrupt."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            head = file.read(48)
            length = int.from_bytes(head[8:16], "little")
            text = file.read(length) if len(head) == 48 and length <= MANIFEST_ROOM else b""
        size = path.stat().st_size
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}: give a file made by `alula compile`") from None
    if head[:6] != MAGIC[:6]:
        raise UserError(f"{path} is not an alula container: give a file made by `alula compile`")
    if head[7:8] != MAGIC[7:8]:
        raise UserError(f"{path} has container version {head[7]}, this alula reads {VERSION}: compile it again")
    if hashlib.sha256(text).digest() != head[16:48]:
        raise UserError(f"{path} is corrupt: its manifest does not match its checksum: compile it again")
    manifest = json.loads(text)
    if manifest["format"] != VERSION or manifest["isa_version"] != ISA_VERSION:
        raise UserError(
            f"{path} has ISA version {manifest['isa_version']}, this alula has {ISA_VERSION}: compile it again"
        )
    end = max(section[2] + section[3] for section in manifest["sections"])
    if size < end:
        raise UserError(f"{path} is truncated: {size} of {end} bytes: copy or compile it again")
    container = Container(path, manifest)
    if verify:
        container.verify()
    return container
