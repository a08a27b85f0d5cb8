"""Stands in for pyxrt and a card: the packaged kernel in the RTL simulation behind pyxrt's names.

Only what `sim.xrt.pyxrt_runtime` uses is here. Device memory lives between runs; each START is one simulation of the
kernel from reset, with the registers written before and the buffers at addresses of the stand-in's own choosing.
"""

from enum import Enum

import numpy as np

from hw.spec import csr
from hw.spec.config import Config
from hw.spec.memory import MemoryModel
from hw.spec.packaging import FIRST_POINTER
from sim.memory_image import PAGE_BYTES, Port
from sim.registers import result_offsets
from sim.rtl import run as rtl
from sim.rtl.accelerator import kernel_design

IDENTIFICATION = ("isa_version", "config_digest")
AUX_BANK = 1 << 38
"""Device address of the bank behind aux: far above the channels', which follow each other from 0 on."""
BUFFER_OFFSET = 0x5000
"""Where in its bank the first buffer lies; XRT, too, need not begin at 0."""
_WRITABLE = {offset for offset in csr.REGISTERS.values() if offset < csr.REGISTERS["status"]}


class SyncDirection(Enum):
    XCL_BO_SYNC_BO_TO_DEVICE = 0
    XCL_BO_SYNC_BO_FROM_DEVICE = 1


class StandIn:
    """The module `pyxrt`, for one device. stall_percent: see `sim.rtl.run.run`."""

    xclBOSyncDirection = SyncDirection

    def __init__(self, config: Config, stall_percent: int = 0, max_cycles: int = 10**8):
        self.config, self.stall_percent, self.max_cycles = config, stall_percent, max_cycles
        self.memories = [Port(0) for _ in range(config.units + 1)]
        self.allocated: list[tuple[int, int, int]] = []
        """(port, device address, bytes)"""
        self.registers: dict[int, int] = {}
        self.last: rtl.RunResult | None = None
        outer = self

        class Device:
            def __init__(self, index: int):
                self.index = index

            def load_xclbin(self, path: str) -> str:
                """There is nothing to load; registers come up as reset leaves them."""
                outer.registers = {}
                outer._play([(csr.CTRL, csr.CTRL_START)], [csr.REGISTERS[name] for name in IDENTIFICATION])
                return "simulated"

        class Kernel:
            exclusive = 1

            def __init__(self, device, uuid, name, mode):
                self.name = name

            def group_id(self, argument: int) -> int:
                """The port: each has a bank of its own."""
                return argument - FIRST_POINTER

            def read_register(self, offset: int) -> int:
                return outer._read(offset)

            def write_register(self, offset: int, value: int) -> None:
                outer._write(offset, value)

        class BufferObject:
            normal = 0

            def __init__(self, device, size: int, flags: int, group: int):
                self.port, self._size = group, size
                self._address = outer._place(group, size)
                self._host = np.zeros(size, np.uint8)

            def address(self) -> int:
                return self._address

            def size(self) -> int:
                return self._size

            def write(self, data, seek: int) -> None:
                flat = np.asarray(data).reshape(-1).view(np.uint8)
                self._host[seek : seek + flat.nbytes] = flat

            def read(self, size: int, skip: int) -> np.ndarray:
                return self._host[skip : skip + size].view(np.int8).copy()

            def sync(self, direction: SyncDirection, size: int, offset: int) -> None:
                memory, span = outer.memories[self.port], slice(offset, offset + size)
                if direction is SyncDirection.XCL_BO_SYNC_BO_TO_DEVICE:
                    memory.write(self._address + offset, self._host[span])
                else:
                    self._host[span] = memory.read(self._address + offset, size)

        self.device, self.kernel, self.bo = Device, Kernel, BufferObject

    def _place(self, port: int, size: int) -> int:
        bank = AUX_BANK if port == self.config.aux_port else port * self.config.channel_bytes
        address = bank + BUFFER_OFFSET
        self.memories[port].size_bytes = address + size
        self.allocated.append((port, address, size))
        return address

    def _write(self, offset: int, value: int) -> None:
        if offset == csr.CTRL and value & csr.CTRL_START:
            self._start()
        elif offset in _WRITABLE or offset >= csr.BASE_REGISTERS:
            self.registers[offset] = value

    def _read(self, offset: int) -> int:
        value = self.registers.get(offset, csr.CTRL_IDLE if offset == csr.CTRL else 0)
        if offset == csr.CTRL:  # done is cleared by reading it
            self.registers[csr.CTRL] = value & ~(csr.CTRL_DONE | csr.CTRL_READY)
        return value

    def _start(self) -> None:
        kept = {
            offset: value
            for offset, value in self.registers.items()
            if offset in _WRITABLE or offset >= csr.BASE_REGISTERS
        }
        # CTRL comes first: reading it is what clears done.
        self._play([*kept.items(), (csr.CTRL, csr.CTRL_START)], [csr.CTRL, *result_offsets()])

    def _play(self, writes: list[tuple[int, int]], reads: list[int]) -> None:
        """One simulation: memories in, registers written (and the interrupt enabled, which the bench waits for),
        registers and memories out."""
        enable = [(csr.GIER, 1), (csr.IER, 1)]
        image = [
            rtl.MemoryImage(port, number * PAGE_BYTES, memory.pages[number][: memory.size_bytes - number * PAGE_BYTES])
            for port, memory in enumerate(self.memories)
            for number in sorted(memory.pages)
        ]
        self.last = rtl.run(
            kernel_design(self.config),
            sizes_bytes=[memory.size_bytes for memory in self.memories],
            memory=MemoryModel.of(self.config),
            image=image,
            csr_writes=enable + writes,
            csr_reads=reads,
            max_cycles=self.max_cycles,
            dump_ranges=[rtl.DumpRange(*place) for place in self.allocated],
            stall_percent=self.stall_percent,
        )
        self.registers |= dict(zip(reads, self.last.csr, strict=True))
        for (port, address, _), data in zip(self.allocated, self.last.dumps, strict=True):
            self._keep(self.memories[port], address, np.frombuffer(data, np.uint8))

    @staticmethod
    def _keep(memory: Port, address: int, data: np.ndarray) -> None:
        """Stores what a run left; pages that were and are zero stay unwritten."""
        done = 0
        while done < len(data):
            number, offset = divmod(address + done, PAGE_BYTES)
            part = data[done : done + PAGE_BYTES - offset]
            if number in memory.pages or part.any():
                memory.write(address + done, part)
            done += len(part)
