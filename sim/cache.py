"""The cache of everything that can be made again: Verilog, simulation binaries, synthesis results, compiled functions.

An entry is a folder under a digest of all that it is made from. It is made in a folder of its own, which no other
process shares, and moved into place whole. Beside its files lies `SHA256SUMS`; an entry that does not match it, because
it was damaged or left half made, is found when it is asked for and made anew:

    ~/.cache/alula/rtl/0f3a.../simulation        the entry's files
                              /SHA256SUMS        what they must be
    ~/.cache/alula/rtl/0f3a....lock              held while the entry is checked or made
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path

from hw.spec.errors import UserError

SUMS = "SHA256SUMS"


def cache_dir() -> Path:
    """The cache's folder: $ALULA_CACHE, else the user's cache folder, else (a user without a home) one in the folder of
    temporary files."""
    if configured := os.environ.get("ALULA_CACHE"):
        return Path(configured).expanduser().resolve()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        return Path(base).expanduser().resolve() / "alula"
    except RuntimeError:
        return Path(tempfile.gettempdir()).resolve() / f"alula-cache-{os.getuid()}"


def entry(kind: str, key: str, make: Callable[[Path], None]) -> Path:
    """The folder of the entry `key` of a kind ("verilog", "rtl", ...). `make` writes its files into the folder that it
    is given, if there is no such entry or a damaged one. UserError where the cache cannot be written."""
    folder = cache_dir() / kind / key
    try:
        with _locked(folder.with_name(f"{key}.lock")):
            if not intact(folder):
                _made(folder, make)
    except OSError as error:
        raise UserError(
            f"cannot use the cache folder {cache_dir()}: {error.strerror or error}: make room there, or "
            "set ALULA_CACHE to another folder"
        ) from error
    return folder


def once(kind: str, key: str, check: Callable[[], None]) -> None:
    """Runs `check` unless it has passed before under this key. Where the cache cannot be written it runs every time."""
    if intact(cache_dir() / kind / key):
        return
    check()
    with suppress(UserError):
        entry(kind, key, lambda folder: (folder / "passed").touch())


def intact(folder: Path) -> bool:
    """Whether an entry's files are all there and are what was written."""
    try:
        return (folder / SUMS).read_text() == _sums(folder)
    except (OSError, UnicodeDecodeError):
        return False


def _made(folder: Path, make: Callable[[Path], None]) -> None:
    """Makes an entry in a folder of its own and moves it into place. What a failed attempt wrote is removed."""
    work = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", suffix=".making", dir=folder.parent))
    try:
        make(work)
        (work / SUMS).write_text(_sums(work))
        work.chmod(0o755)
        shutil.rmtree(folder, ignore_errors=True)
        work.replace(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _sums(folder: Path) -> str:
    """A line a file: its digest and its name, as sha256sum writes them."""
    names = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SUMS)
    return "".join(f"{sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder)}\n" for path in names)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds a lock file, so that two processes do not make the same entry at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


__all__ = ["cache_dir", "entry", "intact", "once"]
