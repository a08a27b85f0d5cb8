"""A card as a backend: the memory image moves to the device and stays there, registers start and tell the result."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hw.spec.config import Config
from hw.spec.errors import InternalError, UserError
from hw.spec.run import Invocation, Result
from sim.memory_image import MemoryImage, Port
from sim.registers import argument_writes, read_result
from sim.xrt.card import Card
from sim.xrt.opening import open_runtime
from sim.xrt.runtime import Buffer, Runtime

STAND_IN = "sim"
TIMEOUT_SECONDS = 60.0
PCIE_ADDRESS = r"([0-9a-fA-F]{4}:)?[0-9a-fA-F]{2}:[0-9a-fA-F]{2}"
"""Of a board, as v80-smi lists it: d8:00."""


class DevicePort(Port):
    """A port whose bytes lie on the device: every access goes there."""

    def __init__(self, size_bytes: int, buffer: Buffer):
        super().__init__(size_bytes)
        self.buffer = buffer

    def check(self, address: int, n_bytes: int) -> None:
        super().check(address, n_bytes)
        if address + n_bytes > self.buffer.size_bytes:
            raise InternalError(f"{n_bytes} bytes at 0x{address:x}: the device's buffer has {self.buffer.size_bytes}")

    def read(self, address: int, n_bytes: int) -> np.ndarray:
        self.check(address, n_bytes)
        return self.buffer.read(address, n_bytes)

    def write(self, address: int, data: np.ndarray) -> None:
        self.check(address, len(data))
        self.buffer.write(address, data)

    def page(self, number: int) -> np.ndarray:
        raise InternalError("this memory lies on a device: it has no pages here")


class XrtBackend:
    """Runs programs on a card, or on a stand-in for one.

    device: a card's number; with a vbin (V80) its PCIe address; "sim": a stand-in over the RTL. xclbin: the container,
    an xclbin for XRT or a vbin for SLASH. sizes_bytes: what each port's buffer must hold, by default the
    configuration's whole memory. timeout_seconds: of one run.

    A memory's first run moves it to the device for good; it cannot be forked afterwards. One memory at a time.
    """

    name = "xrt"

    def __init__(
        self,
        device: str = STAND_IN,
        xclbin: Path | None = None,
        sizes_bytes: Sequence[int] | None = None,
        timeout_seconds: float = TIMEOUT_SECONDS,
        **options,
    ):
        """options: the stand-in's (`sim.xrt.stand_in.StandIn`)."""
        self.device, self.xclbin, self.sizes_bytes, self.timeout_seconds = device, xclbin, sizes_bytes, timeout_seconds
        self.options = options
        self.card: Card | None = None
        self._owner: MemoryImage | None = None
        vbin = xclbin is not None and xclbin.suffix == ".vbin"
        if device != STAND_IN and vbin and not re.fullmatch(PCIE_ADDRESS, device):
            raise UserError(f"--device {device!r}: give the PCIe address of a V80 (d8:00, as `v80-smi list` has it)")
        if device != STAND_IN and not vbin and not device.isdigit():
            raise UserError(f"--device {device!r}: give a card's number (0, 1, ..) or sim")
        if device != STAND_IN and xclbin is None:
            raise UserError(f"--device {device} needs the kernel's container: give --xclbin FILE, or take --device sim")
        if xclbin is not None and not xclbin.is_file():
            raise UserError(f"no file {xclbin}: give what `alula build --target hw` made, or take --device sim")

    def run(self, config: Config, memory: MemoryImage, invocation: Invocation) -> Result:
        if self.card is None:
            self.card = self._open(config)
        if config != self.card.config:
            raise UserError(
                f"a program of {invocation.program_length} instructions needs another machine than the loaded kernel "
                f"({self.card.config.name}, {self.card.config.imem_instructions} instructions): compile it for that one"
            )
        if memory is not self._owner:
            self._move(memory)
        for offset, value in argument_writes(invocation):
            self.card.write_register(offset, value)
        self.card.start()
        self.card.wait()
        return read_result(self.card.read_register)

    def _open(self, config: Config) -> Card:
        return Card(self._runtime(config), config, self.timeout_seconds)

    def _runtime(self, config: Config) -> Runtime:
        if self.device == STAND_IN:
            from sim.xrt.pyxrt_runtime import PyxrtRuntime
            from sim.xrt.stand_in import StandIn

            return PyxrtRuntime(StandIn(config, **self.options), 0, self.xclbin or Path("simulated.xclbin"))
        assert self.xclbin is not None
        return open_runtime(self.device, self.xclbin, config.units + 1)

    def _move(self, memory: MemoryImage) -> None:
        """Every byte that is not zero goes to the device, and the image looks there from now on."""
        assert self.card is not None
        if self._owner is not None:
            raise InternalError("the card holds another memory: open a backend for each")
        self.card.allocate(self.sizes_bytes or memory.sizes_bytes)
        for port, address, data in memory.contents():
            room = max(self.card.buffers[port].size_bytes - address, 0)
            if data[room:].any():  # pages of the image may reach further than what is in them
                raise InternalError(f"port {port} has data behind the device's buffer of {room + address} bytes")
            self.card.buffers[port].write(address, data[:room])
        memory.ports = [
            DevicePort(port.size_bytes, buffer) for port, buffer in zip(memory.ports, self.card.buffers, strict=True)
        ]
        self._owner = memory
