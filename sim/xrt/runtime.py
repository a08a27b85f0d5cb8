"""What the host needs of a card's library, whichever it is: registers, and device memory behind each port."""

from typing import Protocol

import numpy as np


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
