"""Which library a container's card is reached through."""

from pathlib import Path

from sim.xrt.native_runtime import SLASH, XRT, NativeRuntime
from sim.xrt.pyxrt_runtime import PyxrtRuntime, reads_registers
from sim.xrt.runtime import Runtime


def open_runtime(device: str, image: Path, n_ports: int) -> Runtime:
    """The card with the container loaded. device: its number, or with a vbin (SLASH) its PCIe address, such as d8:00.

    An xclbin goes through pyxrt where that still reads registers (up to XRT 2.14), else through XRT's C++ library.
    n_ports: memory ports, aux included. UserError for a library that is not installed.
    """
    if image.suffix == ".vbin":
        return NativeRuntime(SLASH, device, image, n_ports)
    try:
        import pyxrt
    except ImportError:
        pyxrt = None
    if pyxrt is not None and reads_registers(pyxrt):
        return PyxrtRuntime(pyxrt, int(device), image)
    return NativeRuntime(XRT, device, image, n_ports)
