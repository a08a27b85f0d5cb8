"""A machine of one's own: a configuration by name, from a TOML file, or with some fields changed.

A file names the built-in configuration that it starts from, and what is different::

    base = "u280"
    lanes = 32

    [memory]
    kind = "fixed"

`resolve("my.toml", ["chains=4"])` gives that machine with four chains. Standard library only.
"""

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from difflib import get_close_matches
from hashlib import sha256
from pathlib import Path

from .config import CONFIGS, Config, ConfigError, get
from .config_fields import FIELDS, MEMORY_FIELDS

FILE_SUFFIX = ".toml"
_SECTION = "memory"
_MEMORY = ("kind", *MEMORY_FIELDS)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,47}")
"""Names become parts of file names and of Verilog comments."""


def resolve(machine: str | Config, changes: Iterable[str] = ()) -> Config:
    """The configuration that `--config` and `--set` describe.

    machine: a built-in name, the path of a TOML file, or a configuration. changes: `field=value` or
    `memory.field=value`, applied in order. ConfigError in one line for what cannot be read or built.
    """
    is_file = isinstance(machine, str) and machine.endswith(FILE_SUFFIX)
    chosen = _from_file(Path(str(machine))) if is_file else get(machine)
    wanted = list(changes)
    if not wanted:
        return chosen
    table = _table_of(wanted)
    return _changed(chosen, table, _name_of(chosen, wanted), "--set")


def _from_file(path: Path) -> Config:
    try:
        table = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"no file {path}: give a .toml file that exists, or one of {', '.join(CONFIGS)}") from None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not text: give a TOML file") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not TOML: {' '.join(str(error).split())}") from None
    base = table.pop("base", None)
    if not isinstance(base, str) or base not in CONFIGS:
        said = "no base" if base is None else f"base = {base!r}"
        raise ConfigError(f"{path} has {said}: write base = NAME, one of {', '.join(CONFIGS)}")
    return _changed(CONFIGS[base], table, _file_name(path, table.pop("name", None)), str(path))


def _file_name(path: Path, given: object) -> str:
    """The machine's name: what the file says, else the file's own name."""
    name = path.stem if given is None else given
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigError(
            f"{path}: the name {name!r} is not of 1 to 48 letters, digits, '_', '.' and '-': write name = another"
        )
    if name in CONFIGS:
        raise ConfigError(f"{path}: the name {name!r} is that of a built-in configuration: write name = another")
    return name


def _table_of(changes: list[str]) -> dict:
    """{field: value, "memory": {field: value}} of `field=value` texts; values are written as in TOML."""
    table: dict = {}
    for change in changes:
        key, equals, text = change.partition("=")
        key = key.strip()
        if not equals or not key or not text.strip():
            raise ConfigError(f"--set {change!r} is not field=value: write for example --set lanes=32")
        section, dot, field = key.partition(".")
        place = table.setdefault(section, {}) if dot else table
        place[field if dot else section] = _value(text.strip())
    return table


def _value(text: str) -> object:
    """A TOML value; a bare word stands for itself."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _name_of(chosen: Config, changes: list[str]) -> str:
    """The base's name and what was changed, as `u280-lanes32`; a digest where that is too long for a name."""
    told = "".join(f"-{change.replace('=', '').replace('.', '_')}" for change in changes)
    name = re.sub(r"[^A-Za-z0-9_.-]", "", chosen.name + told)
    if _NAME.fullmatch(name):
        return name
    return f"{chosen.name[:39]}-{sha256(told.encode()).hexdigest()[:8]}"


def _changed(start: Config, table: Mapping, name: str, where: str) -> Config:
    """`start` with the fields of a table; ConfigError for a key that is no field."""
    fields = dict(table)
    memory = fields.pop(_SECTION, {})
    if not isinstance(memory, dict):
        raise ConfigError(f"{where}: memory is a section: write [memory] and below it kind = ..., or memory.kind=...")
    for key in fields:
        _known(key, (*FIELDS, _SECTION), where)
    for key in memory:
        _known(key, _MEMORY, where, f"{_SECTION}.")
    if not isinstance(memory.get("kind", ""), str):
        raise ConfigError(f"{where}: memory.kind = {memory['kind']!r} is not a word: write fixed or hbm")
    return replace(start, **fields, memory=replace(start.memory, **memory), name=name, base=start.base or start.name)


def _known(key: str, fields: Iterable[str], where: str, section: str = "") -> None:
    names = list(fields)
    if key in names:
        return
    close = get_close_matches(key, names, 1)
    hint = f", is {section}{close[0]} meant?" if close else ""
    raise ConfigError(f"{where}: {section}{key} is no field{hint}: choose one of {', '.join(names)}")
