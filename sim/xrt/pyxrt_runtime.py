"""XRT up to 2.14: its Python module reads and writes registers itself. Later ones do not (XRT issue 7863)."""

from pathlib import Path
from typing import Any

import numpy as np

from hw.spec.packaging import COMPUTE_UNIT, FIRST_POINTER, KERNEL

_KERNEL_OF_UNIT = f"{KERNEL}:{{{COMPUTE_UNIT}}}"
"""XRT's way to name a kernel by its compute unit: `alula_kernel:{alula_1}`."""


def reads_registers(pyxrt: Any) -> bool:
    """Whether this pyxrt has `kernel.read_register`."""
    return hasattr(pyxrt.kernel, "read_register")


class PyxrtBuffer:
    """A buffer object of pyxrt. Implements `sim.xrt.runtime.Buffer`."""

    def __init__(self, pyxrt: Any, made: Any):
        self._made = made
        self._to = pyxrt.xclBOSyncDirection.XCL_BO_SYNC_BO_TO_DEVICE
        self._from = pyxrt.xclBOSyncDirection.XCL_BO_SYNC_BO_FROM_DEVICE

    @property
    def address(self) -> int:
        return self._made.address()

    @property
    def size_bytes(self) -> int:
        return self._made.size()

    def write(self, offset: int, data: np.ndarray) -> None:
        self._made.write(np.ascontiguousarray(data), offset)
        self._made.sync(self._to, data.nbytes, offset)

    def read(self, offset: int, n_bytes: int) -> np.ndarray:
        self._made.sync(self._from, n_bytes, offset)
        return np.array(self._made.read(n_bytes, offset)).view(np.uint8)


class PyxrtRuntime:
    """One compute unit, opened exclusively. Implements `sim.xrt.runtime.Runtime`.

    pyxrt: the module, or a stand-in. index: the card's number.
    """

    def __init__(self, pyxrt: Any, index: int, xclbin: Path):
        self._pyxrt = pyxrt
        self._device = pyxrt.device(index)
        uuid = self._device.load_xclbin(str(xclbin))
        self._kernel = pyxrt.kernel(self._device, uuid, _KERNEL_OF_UNIT, pyxrt.kernel.exclusive)

    def read_register(self, offset: int) -> int:
        return self._kernel.read_register(offset)

    def write_register(self, offset: int, value: int) -> None:
        self._kernel.write_register(offset, value)

    def allocate(self, port: int, size_bytes: int) -> PyxrtBuffer:
        group = self._kernel.group_id(FIRST_POINTER + port)
        return PyxrtBuffer(self._pyxrt, self._pyxrt.bo(self._device, size_bytes, self._pyxrt.bo.normal, group))
