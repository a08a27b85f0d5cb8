"""GGUF files as files: metadata, tensors, the parts of a split one, and which keys are understood.

A key of the file's own architecture that nobody reads may change what the model computes, so it is refused by name;
llama.cpp reads nothing else but `general.`, `tokenizer.` and `split.`, of which the reader and the tokenizer take care.
"""

import re
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor

from hw.spec.errors import UserError

_PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")
_DAMAGE = (ValueError, KeyError, IndexError, OSError, OverflowError, struct.error, UnicodeDecodeError, TypeError)


def open_reader(path: Path) -> gguf.GGUFReader:
    """The library's reader; UserError if `path` is not a complete GGUF file."""
    try:
        return gguf.GGUFReader(path)
    except FileNotFoundError:
        raise UserError(f"no file {path}: give the path of a GGUF file") from None
    except _DAMAGE as error:
        raise UserError(f"{path} is not a complete GGUF file ({_one_line(error)}): download it again") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def metadata(reader: gguf.GGUFReader, key: str, default: Any = None) -> Any:
    """One metadata value as a Python object, `default` if the key is absent."""
    field = reader.get_field(key)
    try:
        return default if field is None else field.contents()
    except _DAMAGE as error:
        raise UserError(f"metadata {key} cannot be read ({_one_line(error)}): download the GGUF file again") from error


def number(reader: gguf.GGUFReader, path: Path, key: str, default: float | None = None, whole: bool = True) -> Any:
    """One metadata value that has to be a number; UserError if it is missing or something else."""
    found = metadata(reader, key, default)
    if isinstance(found, bool) or not isinstance(found, int if whole else int | float):
        shown = repr(found) if len(repr(found)) <= 60 else f"{repr(found)[:57]}..."
        raise UserError(
            f"{path}: metadata {key} is {shown}, a {'whole ' if whole else ''}number is needed: convert the model again"
        )
    return found


def parts(path: Path) -> list[gguf.GGUFReader]:
    """Readers of all files of the model whose first (or only) one is at `path`."""
    first = open_reader(path)
    count, place = number(first, path, "split.count", 0), number(first, path, "split.no", 0)
    if count <= 1:
        return [first]
    name = _PART.fullmatch(path.name)
    if name is None:
        raise UserError(
            f"{path} is part {place + 1} of {count}, whose files are called "
            f"NAME-00001-of-{count:05}.gguf ...: give back its name"
        )
    names = [f"{name[1]}-{part:05}-of-{count:05}.gguf" for part in range(1, min(count, 100_000) + 1)]
    if place != 0:
        raise UserError(f"{path} is part {place + 1} of {count}: give the first, {path.parent / names[0]}")
    readers = [first, *(_part(path.parent / other, part, count) for part, other in enumerate(names[1:], 1))]
    _complete(path, readers)
    return readers


def _part(path: Path, place: int, count: int) -> gguf.GGUFReader:
    if not path.exists():
        raise UserError(f"no file {path}, part {place + 1} of {count}: download it into the same folder")
    reader = open_reader(path)
    if (metadata(reader, "split.no"), metadata(reader, "split.count")) != (place, count):
        raise UserError(f"{path} is not part {place + 1} of {count} as its name says: download it again")
    return reader


def _complete(path: Path, readers: list[gguf.GGUFReader]) -> None:
    names = [tensor.name for reader in readers for tensor in reader.tensors]
    expected = metadata(readers[0], "split.tensors.count", len(names))
    if len(names) != expected or len(set(names)) != len(names):
        raise UserError(
            f"{path} and its {len(readers) - 1} other parts hold {len(names)} tensors, {expected} "
            "different ones are expected: download all parts again"
        )


def refuse_unknown(
    reader: gguf.GGUFReader, path: Path, prefix: str, read: Iterable[str], fixed: Mapping[str, tuple[Any, ...]]
) -> None:
    """UserError for a key `prefix`.* that is not in `read`, nor in `fixed` with one of its values."""
    known = {f"{prefix}.{key}" for key in read}
    for key in reader.fields:
        if not key.startswith(f"{prefix}.") or key in known:
            continue
        value, allowed = metadata(reader, key), fixed.get(key.removeprefix(f"{prefix}."))
        shown = repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:57]}..."
        if allowed is None:
            raise UserError(
                f"{path}: metadata {key} is {shown}, and what it does to the arithmetic is not known here: "
                "choose another model"
            )
        if value not in allowed:
            raise UserError(
                f"{path}: metadata {key} is {shown}, supported is {' or '.join(map(repr, allowed))}: "
                "choose another model"
            )


def dequantised(tensor: gguf.ReaderTensor, origin: str) -> np.ndarray:
    """Values of a stored tensor, float32 (F16 as float16); UserError for a format that the library cannot read."""
    try:
        return gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    except NotImplementedError:
        raise UserError(
            f"{origin}: {tensor.name} is in format {tensor.tensor_type.name}, which the gguf library does "
            "not dequantise: choose another quantisation of the model"
        ) from None
    except ValueError as error:
        raise UserError(
            f"{origin}: {tensor.name} of shape {list(tensor.shape)} does not fit its format "
            f"({_one_line(error)}): download it again"
        ) from error


def as_torch(values: np.ndarray) -> Tensor:
    """A copy: F32 tensors are read-only views of the mapped file, which PyTorch has no notion of."""
    return torch.from_numpy(np.array(values))
