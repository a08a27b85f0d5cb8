"""XRT and SLASH by their C++ libraries: a small bridge is compiled against what the user has installed.

The bridge (`native/`) has a C interface, so no binding generator is needed. It is built once for each content of the
library's headers, and kept in the cache.
"""

import ctypes
import os
import shutil
import subprocess
from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np

from hw.spec.errors import InternalError, UserError
from hw.spec.packaging import COMPUTE_UNIT, FIRST_POINTER, KERNEL, port_name
from sim.cache import entry

BRIDGE = "bridge.so"
_FLAGS = ("-std=c++20", "-O2", "-shared", "-fPIC", "-Wall", "-Wno-deprecated-declarations")


@dataclass(frozen=True)
class Library:
    """A vendor's host library."""

    name: str
    source: str
    """The bridge's file in `native/`."""
    variable: str
    """Environment variable with the folder that has its include/ and lib/."""
    folder: str
    """That folder where the variable is not set."""
    header: str
    """A header that tells whether it is installed."""
    links: tuple[str, ...]
    includes: tuple[str, ...] = ()
    """Folders of headers that its own headers ask for."""
    install: str = ""
    """What a user without it does."""

    @property
    def root(self) -> Path:
        return Path(os.environ.get(self.variable) or self.folder)


XRT = Library(
    "XRT", "xrt.cpp", "XILINX_XRT", "/opt/xilinx/xrt", "xrt/xrt_device.h", ("xrt_coreutil",),
    install="install XRT with its headers and source its setup.sh",
)  # fmt: skip
SLASH = Library(
    "SLASH", "slash.cpp", "SLASH_ROOT", "/usr", "vrt/device.hpp", ("vrt", "vrtdpp"),
    includes=("/usr/include/jsoncpp", "/usr/include/libxml2"),
    install="install SLASH's packages libvrt-dev and libvrtd-dev",
)  # fmt: skip


def build(library: Library) -> Path:
    """The bridge to a library, built where it is not in the cache. UserError where the library or g++ is missing."""
    if not (library.root / "include" / library.header).is_file():
        raise UserError(
            f"{library.name} is not installed: there is no include/{library.header} in {library.root} "
            f"(${library.variable}); {library.install}, or take --device sim"
        )
    if shutil.which("g++") is None:
        raise UserError("g++ is not on PATH: install a C++20 compiler, for example with `apt-get install g++`")
    with as_file(files("sim.xrt").joinpath("native")) as native:
        includes = [f"-I{folder}" for folder in (library.root / "include", *library.includes)]
        base = ["g++", *_FLAGS, *includes, str(native / library.source)]
        lib = library.root / "lib"
        links = [f"-L{lib}", f"-Wl,-rpath,{lib}", *(f"-l{name}" for name in library.links)]
        key = sha256(_run([*base, "-E", "-P"], library) + " ".join(links).encode()).hexdigest()[:32]
        made = entry("bridge", key, lambda folder: _compile([*base, "-o", str(folder / BRIDGE), *links], library))
    return made / BRIDGE


def _compile(command: list[str], library: Library) -> None:
    _run(command, library)


def _run(command: list[str], library: Library) -> bytes:
    """The compiler's output; InternalError with its first complaint."""
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        complaints = [line for line in done.stderr.decode(errors="replace").splitlines() if "error" in line]
        raise InternalError(
            f"the bridge to {library.name} does not compile against {library.root}: {(complaints or ['g++ failed'])[0]}"
        )
    return done.stdout


class NativeBuffer:
    """Memory that the bridge holds. Implements `sim.xrt.runtime.Buffer`."""

    def __init__(self, bridge: "Bridge", handle: ctypes.c_void_p, address: int, size_bytes: int):
        self._bridge, self._handle, self._address, self._size_bytes = bridge, handle, address, size_bytes

    @property
    def address(self) -> int:
        return self._address

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    def write(self, offset: int, data: np.ndarray) -> None:
        flat = np.ascontiguousarray(data)
        self._bridge.call("write", self._handle, ctypes.c_uint64(offset), flat.ctypes, ctypes.c_uint64(flat.nbytes))

    def read(self, offset: int, n_bytes: int) -> np.ndarray:
        data = np.empty(n_bytes, np.uint8)
        self._bridge.call("read", self._handle, ctypes.c_uint64(offset), data.ctypes, ctypes.c_uint64(n_bytes))
        return data


class Bridge:
    """The compiled bridge: functions that return an error's text, or null."""

    def __init__(self, library: Library):
        self.library = library
        try:
            self._loaded = ctypes.CDLL(str(build(library)))
        except OSError as error:
            raise UserError(f"{library.name} cannot be loaded: {error}; {library.install}") from None

    def call(self, name: str, *arguments) -> None:
        """InternalError with what the vendor's library said."""
        function = self._loaded[f"alula_{name}"]
        function.restype = ctypes.c_char_p
        wrong = function(*arguments)
        if wrong is not None:
            raise InternalError(f"{self.library.name}: {' '.join(wrong.decode(errors='replace').split())}")


class NativeRuntime:
    """The kernel by the C++ library. Implements `sim.xrt.runtime.Runtime`.

    device: a card's number (XRT) or PCIe address (SLASH). n_ports: of memory, aux included. It stays open until the
    object goes.
    """

    def __init__(self, library: Library, device: str, image: Path, n_ports: int):
        self._bridge, self._handle = Bridge(library), ctypes.c_void_p()
        try:
            self._bridge.call(
                "open", device.encode(), str(image).encode(), KERNEL.encode(), COMPUTE_UNIT.encode(),
                ctypes.c_uint32(FIRST_POINTER), ctypes.c_uint32(n_ports), ctypes.byref(self._handle),
            )  # fmt: skip
        except InternalError as error:
            raise UserError(f"cannot open card {device} with {image}: {error}") from None

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self._bridge.call("close", self._handle)

    def read_register(self, offset: int) -> int:
        value = ctypes.c_uint32()
        self._bridge.call("read_register", self._handle, ctypes.c_uint32(offset), ctypes.byref(value))
        return value.value

    def write_register(self, offset: int, value: int) -> None:
        self._bridge.call("write_register", self._handle, ctypes.c_uint32(offset), ctypes.c_uint32(value))

    def allocate(self, port: int, size_bytes: int) -> NativeBuffer:
        memory, address = ctypes.c_void_p(), ctypes.c_uint64()
        self._bridge.call(
            "allocate", self._handle, ctypes.c_uint32(port), port_name(port).encode(), ctypes.c_uint64(size_bytes),
            ctypes.byref(memory), ctypes.byref(address),
        )  # fmt: skip
        return NativeBuffer(self._bridge, memory, address.value, size_bytes)
