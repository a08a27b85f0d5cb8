"""What the commands share: files written whole or not at all, progress, tables."""

import json
import os
import resource
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from hw.spec.errors import UserError

PIPE_COLUMNS = 80
"""Width of tables that go to a file or a pipe."""
console = Console(highlight=False, emoji=False, width=None if sys.stdout.isatty() else PIPE_COLUMNS)
errors = Console(stderr=True, highlight=False, emoji=False, soft_wrap=True)


def write_atomically(path: Path, content: bytes | str) -> None:
    """The file appears complete or not at all; UserError where it cannot be written."""
    data = content.encode() if isinstance(content, str) else content
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as output:
            output.write(data)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {error.strerror}; choose another place") from error


def check_writable(path: Path | None) -> None:
    """Refuses a result file before the work is done."""
    if path is None:
        return
    parent = path.absolute().parent
    faults = {
        "it is a folder": path.is_dir(),
        "its folder does not exist": not parent.is_dir(),
        "nothing can be written into its folder": not os.access(parent, os.W_OK),
    }
    for what, is_so in faults.items():
        if is_so:
            raise UserError(f"cannot write {path}: {what}")


def write_json(path: Path | None, result: dict) -> None:
    """The result as JSON, if a path was asked for."""
    if path is not None:
        write_atomically(path, json.dumps(result, indent=2) + "\n")


def read_bytes(path: Path) -> bytes:
    """A file's bytes; UserError if it cannot be read."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"no file {path}: give the path of an existing file") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


@contextmanager
def progress(what: str, total: int | None = None) -> Iterator:
    """A progress bar on stderr; yields advance(n=1, note=None). Without a terminal nothing is drawn."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=errors, transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(what, total=total)

        def advance(n: int = 1, note: str | None = None) -> None:
            bar.update(task, advance=n, description=f"{what}: {note}" if note else what)

        yield advance


def table(title: str, columns: list[str], rows: list[list]) -> Table:
    """A rich table, numbers to the right."""
    out = Table(title=title, title_justify="left")
    for at, column in enumerate(columns):
        out.add_column(column, justify="right" if at else "left", overflow="fold")
    for row in rows:
        out.add_row(*(show(value) for value in row))
    return out


def size(n_bytes: float) -> str:
    """Bytes as people read them, in decimal multiples: "117.1 kB"."""
    for unit, power in (("GB", 9), ("MB", 6), ("kB", 3)):
        if n_bytes >= 10**power:
            return f"{amount(n_bytes / 10**power)} {unit}"
    return f"{n_bytes:,.0f} bytes"


def duration(seconds: float) -> str:
    """A time as people read it, in s or ms."""
    return f"{amount(seconds)} s" if seconds >= 1 or seconds == 0 else f"{amount(1e3 * seconds)} ms"


def percent(share: float) -> str:
    """A share of 1 as people read it."""
    return f"{100 * share:,.1f} %"


def amount(value: float) -> str:
    """A number with four digits that count, thousands separated."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def show(value: object) -> str:
    """A value as people read it."""
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.6g}" if abs(value) < 1e6 else f"{value:,.0f}"
    return "-" if value is None else str(value)


def peak_memory_bytes() -> int:
    """Largest resident size of this process and of the programs it ran."""
    kib = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return kib * 1024
