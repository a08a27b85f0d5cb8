"""What the host needs of a card's library, whichever it is: registers, and device memory behind each port."""

from pathlib import Path
from typing import Protocol

import numpy as np

KERNEL, INSTANCE = "alula_kernel", "alula_1"
"""Names in the container that `alula build` makes."""


class Buffer(Protocol):
    """Device memory of one port: bytes by offset."""

    @property
    def address(self) -> int:
        """Where the library put it on the device, bytes."""

    @property
    def size_bytes(self) -> int: ...

    def write(self, offset: int, data: np.ndarray) -> None:
        """data: uint8[n]; it is on the device afterwards."""

    def read(self, offset: int, n_bytes: int) -> np.ndarray:
        """uint8[n_bytes], as the device has it now."""


class Runtime(Protocol):
    """A loaded kernel that belongs to this process. Registers hold 32 bits; offsets are those of `hw.spec.csr`."""

    def read_register(self, offset: int) -> int: ...

    def write_register(self, offset: int, value: int) -> None: ...

    def allocate(self, port: int, size_bytes: int) -> Buffer:
        """Memory in the bank that the port is connected to."""


def port_name(port: int) -> str:
    """A memory port as the kernel calls it."""
    return f"m{port:02d}_axi"


def open_runtime(device: str, image: Path, n_ports: int) -> Runtime:
    """The card with the container loaded. device: its number, or with a vbin (SLASH) its PCIe address, such as d8:00.

    An xclbin goes through pyxrt where that still reads registers (up to XRT 2.14), else through XRT's C++ library.
    n_ports: memory ports, aux included. UserError for a library that is not installed.
    """
    from sim.xrt.native_runtime import SLASH, XRT, NativeRuntime
    from sim.xrt.pyxrt_runtime import PyxrtRuntime, reads_registers

    if image.suffix == ".vbin":
        return NativeRuntime(SLASH, device, image, n_ports)
    try:
        import pyxrt
    except ImportError:
        pyxrt = None
    if pyxrt is not None and reads_registers(pyxrt):
        return PyxrtRuntime(pyxrt, int(device), image)
    return NativeRuntime(XRT, device, image, n_ports)
