"""Base addresses of the memory ports: registers, and their effect on what leaves the machine."""

import numpy as np
import pytest
from amaranth.sim import Simulator

from hw.control import Control
from hw.spec import config as configurations
from hw.spec import csr
from hw.spec.isa import Error, StreamFormat, Unit
from hw.spec.memory import MemoryModel
from sim.rtl.accelerator import kernel_design
from sim.rtl.run import DumpRange, MemoryImage, run
from tests.hw.machine import PROGRAM_BEAT, START, Program, offsets
from tests.hw.test_accelerator import load_pass_store

CONFIG = configurations.get("tiny")


def access(operations):
    """Plays ("write", offset, value, strobes) and ("read", offset) on the control block; what was read, and `bases`."""
    dut, read = Control(CONFIG), []

    async def bench(ctx):
        for kind, offset, *rest in operations:
            port = dut.axi
            if kind == "write":
                for name, value in zip(("awaddr", "wdata", "wstrb"), (offset, *rest), strict=True):
                    ctx.set(getattr(port, name), value)
                ctx.set(port.awvalid, 1), ctx.set(port.wvalid, 1), ctx.set(port.bready, 1)
                await ctx.tick().until(port.awready)
                ctx.set(port.awvalid, 0), ctx.set(port.wvalid, 0)
            else:
                ctx.set(port.araddr, offset), ctx.set(port.arvalid, 1), ctx.set(port.rready, 1)
                await ctx.tick().until(port.arready)
                ctx.set(port.arvalid, 0)
                (value,) = await ctx.tick().sample(port.rdata).until(port.rvalid)
                read.append(value)
            await ctx.tick()
        read.append([ctx.get(dut.bases[port]) for port in range(CONFIG.units + 1)])

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    return read


def test_registers_keep_all_but_the_lowest_twelve_bits():
    at = csr.base_offset(2)
    writes = [("write", at, 0x89ABCDEF, 0b1111), ("write", at + 4, 0x01234567, 0b1111)]
    *read, bases = access([*writes, ("read", at), ("read", at + 4), ("read", csr.base_offset(0))])
    assert read == [0x89ABC000, 0x01234567, 0] and bases == [0, 0, 0x0123456789ABC]


def test_registers_honour_strobes():
    at = csr.base_offset(1)
    writes = [("write", at, 0xFFFFFFFF, 0b0110), ("write", at + 4, 0xFFFFFFFF, 0b1000)]
    *read, bases = access([*writes, ("read", at), ("read", at + 4)])
    assert read == [0x00FFF000, 0xFF000000] and bases == [0, 0xFF00000000FFF, 0]


@pytest.mark.slow
@pytest.mark.parametrize("stall_percent", [0, 40])
def test_a_program_runs_anywhere(stall_percent):
    """The packaged kernel, every port's memory far from 0: the same bytes, in cycles that do not change."""
    beats, source, target = 70, 100, 9000
    data = np.random.default_rng(1).integers(0, 256, 64 * beats, dtype=np.uint8)
    program = Program()
    load_pass_store(program, beats, source, target)
    program.halt()
    values = {"program_addr": PROGRAM_BEAT, "program_length": len(program.words)}
    writes = [(csr.REGISTERS[name], value) for name, value in values.items()]
    cycles = []
    for base in (0, 0x3_4000_5000):
        bases = [(csr.base_offset(CONFIG.aux_port) + 4 * i, base >> 32 * i & 0xFFFFFFFF) for i in (0, 1)]
        result = run(
            kernel_design("tiny"),
            sizes_bytes=[1 << 20] * CONFIG.units + [base + CONFIG.aux_bytes],
            memory=MemoryModel(CONFIG.read_latency, CONFIG.write_latency, seed=2),
            image=[
                MemoryImage(CONFIG.aux_port, base + 64 * PROGRAM_BEAT, program.image()),
                MemoryImage(CONFIG.aux_port, base + 64 * source, data),
            ],
            csr_writes=[*writes, *bases, *START],
            csr_reads=offsets(["status", "cycles"]),
            dump_ranges=[DumpRange(CONFIG.aux_port, base + 64 * target, 64 * beats)],
            max_cycles=100_000,
            stall_percent=stall_percent,
        )
        assert result.csr[0] == 0 and result.dumps[0] == data.tobytes()
        cycles.append(result.csr[1])
    assert stall_percent or cycles[0] == cycles[1]


@pytest.mark.slow
@pytest.mark.parametrize("missing", [0, 1])
def test_channels_are_read_behind_their_bases(missing):
    """The last beat that RD asks for is the last one of every channel's memory, or one behind the first channel's."""
    source, beats = 300, 40
    program = Program()
    program.issue(Unit.RD, addr=source, n_outer=1, n_inner=beats, fmt=StreamFormat.RAW)
    program.halt()
    bases = [0x3_4000_5000 + (channel << 33) for channel in range(CONFIG.units)]
    ends = [base + 64 * (source + beats - missing * (not channel)) for channel, base in enumerate(bases)]
    values = {"program_addr": PROGRAM_BEAT, "program_length": len(program.words)}
    result = run(
        kernel_design("tiny"),
        sizes_bytes=[*ends, CONFIG.aux_bytes],
        memory=MemoryModel(CONFIG.read_latency, CONFIG.write_latency, seed=2),
        image=[MemoryImage(CONFIG.aux_port, 64 * PROGRAM_BEAT, program.image())],
        csr_writes=[
            *((csr.REGISTERS[name], value) for name, value in values.items()),
            *(
                (csr.base_offset(channel) + 4 * i, base >> 32 * i & 0xFFFFFFFF)
                for channel, base in enumerate(bases)
                for i in (0, 1)
            ),
            *START,
        ],
        csr_reads=offsets(["status"]),
        max_cycles=100_000,
    )
    assert result.csr == [Error.BUS_READ if missing else Error.NONE]
