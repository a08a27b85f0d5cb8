"""The cocotb side of a run: control register accesses and waiting. Imported by the simulation's own Python only.

The same in every simulator. Reads `job.json` of the run's folder, writes `answer.json`. What happens cycle by cycle is
the test bench's: this wakes once for each register access and once when the run stops.
"""

import json
import os
from pathlib import Path

import cocotb
from cocotb.triggers import FallingEdge, First, RisingEdge, Timer, ValueChange

WAIT_LIMIT_NS = 2_000
"""A register access that takes this long (1,000 clock cycles) hangs."""
HALF_CYCLE_NS = 1
"""After a rising edge of the clock, when every register has its new value whatever the simulator's order of events."""


class ControlPort:
    """The AXI4-Lite master of the test bench: one access at a time."""

    def __init__(self, dut):
        self.dut = dut

    async def write(self, address: int, value: int) -> None:
        self.dut.csr_write.value = 1
        self.dut.csr_wdata.value = value
        await self._access(address)

    async def read(self, address: int) -> int:
        self.dut.csr_write.value = 0
        await self._access(address)
        return int(self.dut.csr_rdata.value)

    async def _access(self, address: int) -> None:
        dut = self.dut
        dut.csr_address.value = address
        dut.csr_request.value = 1 - int(dut.csr_acknowledge.value)
        acknowledged = ValueChange(dut.csr_acknowledge)
        if await First(acknowledged, Timer(WAIT_LIMIT_NS, "ns")) is not acknowledged:
            raise TimeoutError(f"control register 0x{address:03x}: no answer in {WAIT_LIMIT_NS // 2} cycles")
        await Timer(HALF_CYCLE_NS, "ns")
        if response := int(dut.csr_response.value):
            raise ValueError(f"control register 0x{address:03x}: response {response}")


async def _wait_for_stop(dut) -> None:
    """Until the interrupt, the cycle limit or a protocol error."""
    if not int(dut.stop.value):
        await RisingEdge(dut.stop)
        await Timer(HALF_CYCLE_NS, "ns")


@cocotb.test()
async def run_job(dut) -> None:
    """Plays the job's operations in order."""
    folder = Path(os.environ["ALULA_RUN_DIR"])
    job = json.loads((folder / "job.json").read_text())
    control = ControlPort(dut)
    answer: dict = {"reads": []}
    await FallingEdge(dut.rst)
    for operation, *arguments in job["operations"]:
        if operation == "write":
            await control.write(*arguments)
        elif operation == "read":
            answer["reads"].append(await control.read(*arguments))
        elif operation == "finish":
            dut.finish.value = 1
            await RisingEdge(dut.finished)
        else:
            await _wait_for_stop(dut)
            answer["stop_cycle"] = int(dut.cycle.value)
            answer["timeout"] = bool(int(dut.timeout.value))
            if answer["timeout"]:
                break
    (folder / "answer.json").write_text(json.dumps(answer))
