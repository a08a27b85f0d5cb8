"""A module of one's own from a file: `my_file.py:MyModule`.

The name is a class without required arguments, a function that returns a module, or a module. What it is called with is
looked up on it first, then in the file:

    inputs     a function without arguments that returns example tensors by the names of `forward`'s parameters
    dynamic    axes with a symbolic length: {"x": {0: "seq"}} (may be absent)
    lengths    the least and the largest value of every symbolic length: {"seq": (1, 616)} (may be absent)

A module that is called in several ways has `entries` instead, by the names of its methods:

    entries    {"prefill": {"inputs": .., "dynamic": .., "lengths": .., "takes": {"visual": "encode"}}, "decode": ..}
"""

import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from alula.module_entry import ONLY, Entry, method_of
from hw.spec.errors import UserError

PARTS = ("inputs", "dynamic", "lengths", "method", "takes")
"""What an entry may say."""


@dataclass(frozen=True)
class Source:
    """A module and how it is called; see `alula.compile`."""

    name: str
    module: nn.Module
    entries: Mapping[str, Entry]


def read_source(text: str, seed: int = 0) -> Source:
    """The module that `FILE.py:NAME` names, its weights and inputs drawn with that seed.

    UserError, one line, for a file or a name that is not there or does not follow the convention.
    """
    path, _, name = text.rpartition(":")
    if not path.endswith(".py") or not name.isidentifier():
        raise UserError(f"module is {text!r}: give FILE.py:NAME, as in examples/own_projector.py:Projector")
    torch.manual_seed(seed)  # for what the file itself draws
    file = _execute(Path(path))
    found = getattr(file, name, None)
    if found is None:
        raise UserError(f"{path} has no {name}{_meant(file, name)}: give the name of a class, a function or a module")
    torch.manual_seed(seed)
    module = _module(found, text)
    return Source(name, module.eval(), _entries(_Convention(found, file, text), module))


@dataclass(frozen=True)
class _Convention:
    """Where a name of the convention is looked up: on the object, then in the file."""

    found: Any
    file: ModuleType
    text: str

    def get(self, name: str, otherwise: Any = None) -> Any:
        return getattr(self.found, name) if self.has_own(name) else getattr(self.file, name, otherwise)

    def has_own(self, name: str) -> bool:
        return inspect.getattr_static(self.found, name, None) is not None


def _entries(convention: _Convention, module: nn.Module) -> dict[str, Entry]:
    """The entries that the convention names; the only one is `forward`."""
    entries, inputs = convention.get("entries"), convention.get("inputs")
    for one, other in (("entries", "inputs"), ("inputs", "entries")):
        if convention.has_own(one) and not convention.has_own(other):  # what the file says is about another module
            entries, inputs = (entries, None) if one == "entries" else (None, inputs)
    if entries is not None and inputs is not None:
        raise UserError(f"{convention.text} has both inputs and entries: give every entry inputs of its own")
    if entries is None:
        names = ("inputs", "dynamic", "lengths")
        return {ONLY: _entry({name: convention.get(name) for name in names}, module, ONLY, convention.text)}
    if not isinstance(entries, Mapping) or not entries:
        raise UserError(
            f"{convention.text}: entries must be a dict with one entry at least: see docs/howto/own-module.md"
        )
    found = {}
    for name, entry in entries.items():
        where = f"{convention.text}, entry {name}"
        if not isinstance(entry, Mapping):
            raise UserError(f"{where} is a {type(entry).__name__}, a dict is needed: see docs/howto/own-module.md")
        if unknown := [key for key in entry if key not in PARTS]:
            raise UserError(f"{where} has {unknown[0]!r}: choose of {', '.join(PARTS)}")
        found[str(name)] = _entry(entry, module, str(entry.get("method") or name), where)
    return found


def _entry(parts: Mapping[str, Any], module: nn.Module, method: str, text: str) -> Entry:
    """One entry; UserError for parts of another kind."""
    inputs = parts.get("inputs")
    if not callable(inputs):
        raise UserError(
            f"{text} has no inputs: add a function `inputs` that returns example tensors by the names of forward's "
            'parameters, as in def inputs(): return {"x": torch.randn(16, 64)}'
        )
    given = {what: parts[what] for what in ("dynamic", "lengths", "takes") if parts.get(what) is not None}
    chosen = getattr(module, method_of(module, method), None)
    return Entry(_examples(_called(inputs, text), chosen, text), method=str(parts.get("method") or ""), **given)


def _called(inputs: Callable, text: str) -> Any:
    try:
        return inputs()
    except Exception as error:  # whatever a user's function does
        raise UserError(f"{text}: `inputs` fails ({type(error).__name__}: {error}): correct it") from error


def _execute(path: Path) -> ModuleType:
    """The file as a Python module; files beside it can be imported by it."""
    if not path.is_file():
        raise UserError(f"no file {path}: give the path of an existing file")
    spec = importlib.util.spec_from_file_location(f"alula_user_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    file = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.resolve().parent))
    sys.modules[spec.name] = file
    try:
        spec.loader.exec_module(file)
    except Exception as error:  # whatever a user's file does
        raise UserError(f"{path} cannot be executed ({type(error).__name__}: {error}): correct the file") from error
    finally:
        sys.path.pop(0)
    return file


def _meant(file: ModuleType, name: str) -> str:
    close = get_close_matches(name, vars(file), 1)
    return f", is {close[0]} meant?" if close else ""


def _module(found: Any, text: str) -> nn.Module:
    """An instance: of a class, from a function, or as it is."""
    if isinstance(found, nn.Module):
        return found
    if not callable(found):
        raise UserError(f"{text} is a {type(found).__name__}: give a class, a function or a module")
    required = [
        p.name
        for p in inspect.signature(found).parameters.values()
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    if required:
        raise UserError(
            f"{text} needs the argument {required[0]!r}: give it a default, or name a function without arguments"
        )
    try:
        made = found()
    except Exception as error:  # whatever a user's constructor does
        raise UserError(f"{text} cannot be made ({type(error).__name__}: {error}): correct it") from error
    if not isinstance(made, nn.Module):
        raise UserError(f"{text} gives a {type(made).__name__}, a torch.nn.Module is needed")
    return made


def _examples(values: Any, method: Any, text: str) -> dict[str, Tensor]:
    """Example tensors in the order of the method's parameters; as they are where there is no such method."""
    if not isinstance(values, Mapping) or not all(isinstance(v, Tensor) for v in values.values()):
        raise UserError(f"{text}: `inputs` must return a dict of tensors, by the names of forward's parameters")
    if not inspect.isroutine(method) or getattr(method, "__func__", None) is nn.Module.forward:
        return dict(values)
    parameters = inspect.signature(method).parameters
    names = [name for name, p in parameters.items() if p.kind != p.VAR_KEYWORD]
    others = [name for name in values if name not in names]
    if len(names) == len(parameters) and (unknown := others):
        raise UserError(
            f"{text}: inputs names {unknown[0]!r}, {method.__name__} takes {', '.join(names)}: correct the name"
        )
    return {name: values[name] for name in [*names, *others] if name in values}
