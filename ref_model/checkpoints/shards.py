"""Which safetensors files of a folder are the model, by one rule, the one that transformers goes by:

1. `model.safetensors`, if it is there, is the whole model.
2. Else `model.safetensors.index.json` says which file holds which tensor.
3. Else `NAME-00001-of-0000N.safetensors` ... are the model if all N of one NAME are there.
4. Else a single safetensors file is the model, unless it is an adapter.

Any other folder is refused: two models in one folder would be read as a mixture of both.
"""

import re
from pathlib import Path

from hw.spec.errors import UserError

from .json_file import read_json

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors")
_ADAPTER = re.compile(r"adapter|lora", re.IGNORECASE)


def weight_files(folder: Path) -> dict[Path, set[str] | None]:
    """File -> the stored names that the index wants of it, or None for all that are in it."""
    if (folder / WHOLE).exists():
        return {folder / WHOLE: None}
    if (folder / INDEX).exists():
        return _indexed(folder)
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(f"no *.safetensors in {folder}: {_instead(folder)}")
    if len(files) == 1 and _ADAPTER.search(files[0].name):
        raise UserError(f"{files[0]} is an adapter, not a model: merge it into its base model and give that folder")
    if len(files) == 1 and not _SHARD.fullmatch(files[0].name):
        return {files[0]: None}
    return dict.fromkeys(_complete(folder, files))


def _instead(folder: Path) -> str:
    if any(folder.glob("*.bin")) or any(folder.glob("*.pth")):
        return "convert its PyTorch files to safetensors"
    return "give a complete model folder"


def _indexed(folder: Path) -> dict[Path, set[str] | None]:
    places = read_json(folder / INDEX).get("weight_map")
    well = isinstance(places, dict) and all(
        isinstance(file, str) and Path(file).name == file for file in places.values()
    )
    if not isinstance(places, dict) or not well or not places:
        raise UserError(f"{folder / INDEX} has no weight_map of tensor names to file names: download it again")
    wanted: dict[Path, set[str] | None] = {}
    for name, file in places.items():
        names = wanted.setdefault(folder / file, set())
        assert names is not None
        names.add(name)
    return dict(sorted(wanted.items()))


def _complete(folder: Path, files: list[Path]) -> list[Path]:
    """The files, if they are all the parts of one model and nothing else."""
    parts = [_SHARD.fullmatch(file.name) for file in files]
    stems = {(part[1], part[3]) for part in parts if part}
    if None in parts or len(stems) != 1:
        names = ", ".join(file.name for file in files[:4]) + (", ..." if len(files) > 4 else "")
        raise UserError(f"{folder} has no {WHOLE} and no {INDEX}, but {names}: leave one model's files there")
    ((stem, count),) = stems
    for number in range(1, int(count) + 1):
        file = folder / f"{stem}-{number:05}-of-{count}.safetensors"
        if not file.exists():
            raise UserError(f"{folder} has {len(files)} of {int(count)} parts, {file.name} is missing: download it")
    return files


__all__ = ["weight_files"]
