"""Simulators of one encoded program: functional, cycle-exact and RTL."""

from hashlib import sha256
from pathlib import Path

import numba

from hw import spec
from sim.rtl.toolchain import cache_dir


def _spec_digest() -> str:
    state = sha256()
    for source in sorted(Path(spec.__file__).parent.glob("*.py")):
        state.update(source.read_bytes())
    return state.hexdigest()[:16]


# Compiled functions hold the constants of hw/spec, but numba keeps them until their own file changes.
numba.config.CACHE_DIR = str(cache_dir() / "numba" / _spec_digest())
