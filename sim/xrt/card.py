"""A kernel on a device: identification, a buffer behind each memory port, start and wait. See `sim.xrt.runtime`."""

import time
from collections.abc import Sequence

from hw.spec.config import Config
from hw.spec.csr import BASE_ALIGNMENT_LOG2, CTRL, CTRL_DONE, CTRL_IDLE, CTRL_START, REGISTERS, base_offset
from hw.spec.errors import InternalError, UserError
from hw.spec.isa import ISA_VERSION
from sim.xrt.runtime import Buffer, Runtime

POLL_SECONDS = 0.0002
RESET = "xbutil reset, on V80 v80-smi reset"
_PAGE = 1 << BASE_ALIGNMENT_LOG2


class Card:
    """One kernel of a configuration, through any runtime."""

    def __init__(self, runtime: Runtime, config: Config, timeout_seconds: float):
        self.config, self.timeout_seconds, self._runtime = config, timeout_seconds, runtime
        self.buffers: list[Buffer] = []
        self.read_register, self.write_register = runtime.read_register, runtime.write_register
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
            buffer = self._runtime.allocate(port, max(-(-size // _PAGE), 1) * _PAGE)
            if buffer.address % _PAGE:
                raise InternalError(f"port {port}: buffer at 0x{buffer.address:x}, not on a page of {_PAGE} bytes")
            self.write_register(base_offset(port), buffer.address & 0xFFFFFFFF)
            self.write_register(base_offset(port) + 4, buffer.address >> 32)
            self.buffers.append(buffer)

    def start(self) -> None:
        if not self.read_register(CTRL) & CTRL_IDLE:
            raise InternalError(f"the kernel is not idle: another run has not ended; reset the card ({RESET})")
        self.write_register(CTRL, CTRL_START)

    def wait(self) -> None:
        """Until done; InternalError after the time limit. Reading clears done, so it is read by this alone."""
        limit = time.monotonic() + self.timeout_seconds
        while not self.read_register(CTRL) & CTRL_DONE:
            if time.monotonic() > limit:
                raise InternalError(f"not done within {self.timeout_seconds:g} s: reset the card ({RESET})")
            time.sleep(POLL_SECONDS)
