"""Stand-ins for XRT's and SLASH's C++ libraries, compiled from `stand_ins/`, and the card behind them."""

import ctypes
import subprocess
from functools import cache
from hashlib import sha256
from pathlib import Path

from hw.spec import csr
from hw.spec.config import Config
from hw.spec.isa import ISA_VERSION
from sim.cache import entry
from sim.xrt.native_runtime import SLASH, XRT, Library

SOURCES = Path(__file__).parent / "stand_ins"
LIBRARIES = {XRT.name: ("xrt_coreutil",), SLASH.name: ("vrt", "vrtdpp")}
"""Library -> the files of its lib/; all are made of the first one's source."""


@cache
def installed(library: Library) -> Path:
    """A folder as the vendor's installer leaves it: include/ and lib/."""
    texts = [path.read_bytes() for path in sorted(SOURCES.rglob("*")) if path.is_file()]
    return entry("bridge", sha256(library.name.encode() + b"\0".join(texts)).hexdigest()[:32], _maker(library))


def _maker(library: Library):
    def make(folder: Path) -> None:
        names = LIBRARIES[library.name]
        vendor = library.header.split("/", maxsplit=1)[0]
        for path in (SOURCES / "include").rglob("*.h*"):
            if path.relative_to(SOURCES / "include").parts[0].startswith(vendor):
                target = folder / path.relative_to(SOURCES)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())
        (folder / "lib").mkdir()
        for name in names:
            source = ["-x", "c++", str(SOURCES / f"{names[0]}.cpp")] if name == names[0] else ["-x", "c++", "/dev/null"]
            command = ["g++", "-std=c++20", "-shared", "-fPIC", f"-I{folder / 'include'}", *source]
            subprocess.run([*command, "-o", str(folder / "lib" / f"lib{name}.so")], check=True)

    return make


class Machine:
    """The card behind a stand-in library, reset: a kernel of `config`, done after `polls` reads of CTRL."""

    def __init__(self, library: Library, config: Config, digest: int, polls: int = 3, status: int = 0, shift: int = 0):
        path = installed(library) / "lib" / f"lib{LIBRARIES[library.name][0]}.so"
        self._loaded = ctypes.CDLL(str(path))
        self._loaded.machine_opened.restype = ctypes.c_char_p
        self._loaded.machine_byte.argtypes = [ctypes.c_uint64]
        self._loaded.machine_byte.restype = ctypes.c_uint8
        self._loaded.machine_register.restype = ctypes.c_uint32
        self._loaded.machine_shift.argtypes = [ctypes.c_uint64]
        self._loaded.machine_reset()
        self._loaded.machine_polls(polls)
        self._loaded.machine_shift(shift)
        self._loaded.machine_aux_base(csr.base_offset(config.aux_port))
        self._loaded.machine_set(csr.REGISTERS["isa_version"], ISA_VERSION)
        self._loaded.machine_set(csr.REGISTERS["config_digest"], digest)
        self._loaded.machine_leaves(csr.REGISTERS["status"], status)
        self._loaded.machine_leaves(csr.counter_offset("cycles"), 77)

    @property
    def opened(self) -> str:
        """The container and the instance that were asked for."""
        return self._loaded.machine_opened().decode()

    def register(self, offset: int) -> int:
        return self._loaded.machine_register(offset)

    def base(self, port: int) -> int:
        """Where the host said that a port's memory is."""
        return self.register(csr.base_offset(port)) | self.register(csr.base_offset(port) + 4) << 32

    def byte(self, port: int, offset: int) -> int:
        """Of device memory, as the kernel sees it."""
        return self._loaded.machine_byte(self.base(port) + offset)
