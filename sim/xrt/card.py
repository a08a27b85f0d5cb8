"""A loaded kernel on a device: registers, and a buffer behind each memory port. Speaks to pyxrt, or to a stand-in."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hw.spec.config import Config
from hw.spec.csr import BASE_ALIGNMENT_LOG2, CTRL, CTRL_DONE, CTRL_IDLE, CTRL_START, REGISTERS, base_offset
from hw.spec.errors import InternalError, UserError
from hw.spec.isa import ISA_VERSION

COMPUTE_UNIT = "alula_kernel:{alula_1}"
FIRST_POINTER = sum(offset < REGISTERS["status"] for offset in REGISTERS.values())
"""Kernel argument number of port 0's pointer; the other ports' follow (alula/alveo/registers.py)."""
POLL_SECONDS = 0.0002
_PAGE = 1 << BASE_ALIGNMENT_LOG2


class Buffer:
    """Device memory of one port: bytes by offset."""

    def __init__(self, xrt: Any, made: Any):
        self._made = made
        self._to = xrt.xclBOSyncDirection.XCL_BO_SYNC_BO_TO_DEVICE
        self._from = xrt.xclBOSyncDirection.XCL_BO_SYNC_BO_FROM_DEVICE

    @property
    def address(self) -> int:
        """Where XRT put it, bytes."""
        return self._made.address()

    @property
    def size_bytes(self) -> int:
        return self._made.size()

    def write(self, offset: int, data: np.ndarray) -> None:
        """data: uint8[n]"""
        self._made.write(np.ascontiguousarray(data), offset)
        self._made.sync(self._to, data.nbytes, offset)

    def read(self, offset: int, n_bytes: int) -> np.ndarray:
        """uint8[n_bytes]"""
        self._made.sync(self._from, n_bytes, offset)
        return np.array(self._made.read(n_bytes, offset)).view(np.uint8)


class Card:
    """One compute unit that belongs to this process alone."""

    def __init__(self, xrt: Any, config: Config, index: int, xclbin: Path, timeout_seconds: float):
        self.config, self.timeout_seconds, self._xrt = config, timeout_seconds, xrt
        self.buffers: list[Buffer] = []
        self._device = xrt.device(index)
        uuid = self._device.load_xclbin(str(xclbin))
        self._kernel = xrt.kernel(self._device, uuid, COMPUTE_UNIT, xrt.kernel.exclusive)
        if not hasattr(self._kernel, "read_register"):
            raise UserError(
                "this pyxrt reads no kernel registers (XRT 2.15 and later, XRT issue 7863): "
                "install XRT 2.14, where pyxrt.kernel has read_register"
            )
        self._identify()

    def _identify(self) -> None:
        found = [self.read_register(REGISTERS[name]) for name in ("isa_version", "config_digest")]
        if found != [ISA_VERSION, int(self.config.digest()[:8], 16)]:
            raise UserError(
                f"the loaded kernel has instruction set {found[0]} and configuration {found[1]:08x}, the program has "
                f"{ISA_VERSION} and {self.config.digest()[:8]} ({self.config.name}): build and load that configuration"
            )

    def allocate(self, sizes_bytes: Sequence[int]) -> None:
        """A buffer for every port, in the memory bank that its pointer is connected to; tells the kernel where."""
        for port, size in enumerate(sizes_bytes):
            group = self._kernel.group_id(FIRST_POINTER + port)
            rounded = max(-(-size // _PAGE), 1) * _PAGE
            buffer = Buffer(self._xrt, self._xrt.bo(self._device, rounded, self._xrt.bo.normal, group))
            if buffer.address % _PAGE:
                raise InternalError(f"port {port}: buffer at 0x{buffer.address:x}, not on a page of {_PAGE} bytes")
            self.write_register(base_offset(port), buffer.address & 0xFFFFFFFF)
            self.write_register(base_offset(port) + 4, buffer.address >> 32)
            self.buffers.append(buffer)

    def read_register(self, offset: int) -> int:
        return self._kernel.read_register(offset)

    def write_register(self, offset: int, value: int) -> None:
        self._kernel.write_register(offset, value)

    def start(self) -> None:
        if not self.read_register(CTRL) & CTRL_IDLE:
            raise InternalError("the kernel is not idle: another run has not ended; reset the card (xbutil reset)")
        self.write_register(CTRL, CTRL_START)

    def wait(self) -> None:
        """Until done; InternalError after the time limit. Reading clears done, so it is read by this alone."""
        limit = time.monotonic() + self.timeout_seconds
        while not self.read_register(CTRL) & CTRL_DONE:
            if time.monotonic() > limit:
                raise InternalError(f"not done within {self.timeout_seconds:g} s: reset the card (xbutil reset)")
            time.sleep(POLL_SECONDS)
