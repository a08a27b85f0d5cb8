"""Functions compiled by numba and kept in the cache, each file behind a digest of its own.

numba keeps compiled functions in files that it trusts: one that was damaged ends the program with an unpickling error,
or runs. Here a file that does not match its digest counts as absent, so the function is compiled again.
"""

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from pickle import loads
from typing import Any

import numba
from numba.core.caching import FunctionCache, IndexDataCacheFile

from hw import spec

from .cache import cache_dir

DIGEST_BYTES = 32


def sources_digest() -> str:
    """Changes with the sources of hw/spec, whose constants compiled functions hold, and of sim, whose functions call
    one another: numba itself looks at a function's own file alone."""
    state = sha256()
    for folder in (Path(spec.__file__).parent, Path(__file__).parent):
        for source in sorted(folder.glob("*.py")):
            state.update(source.name.encode() + b"\0" + source.read_bytes())
    return state.hexdigest()[:16]


numba.config.CACHE_DIR = str(cache_dir() / "numba" / sources_digest())


class _CheckedFiles(IndexDataCacheFile):
    """numba's index and data files, each behind the digest of what follows."""

    def _save_index(self, overloads: dict) -> None:
        self._write(Path(self._index_path), (self._source_stamp, overloads))

    def _load_index(self) -> dict:
        stamp, overloads = self._read(Path(self._index_path)) or (None, {})
        return overloads if stamp == self._source_stamp else {}

    def _save_data(self, name: str, data: Any) -> None:
        self._write(Path(self._data_path(name)), data)

    def _load_data(self, name: str) -> Any:
        return self._read(Path(self._data_path(name)))

    def _write(self, path: Path, value: Any) -> None:
        data = self._dump(value)
        with self._open_for_write(str(path)) as file:
            file.write(sha256(data).digest() + data)

    def _read(self, path: Path) -> Any:
        """What was written, or None where there is no such file or another one than was written."""
        try:
            content = path.read_bytes()
        except OSError:
            return None
        digest, data = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
        return loads(data) if digest == sha256(data).digest() else None


class _CheckedCache(FunctionCache):
    """numba's cache of one function, over checked files. Where the cache cannot be written it is done without."""

    def __init__(self, function: Callable) -> None:
        super().__init__(function)
        stamp = self._impl.locator.get_source_stamp()
        self._cache_file: Any = _CheckedFiles(self._cache_path, self._impl.filename_base, stamp)

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        except OSError:
            self.disable()


def njit(function: Callable) -> Any:
    """`function`, compiled at its first call or loaded from the cache."""
    dispatcher = numba.njit(function)
    dispatcher._cache = _CheckedCache(dispatcher.py_func)
    return dispatcher


__all__ = ["njit", "sources_digest"]
