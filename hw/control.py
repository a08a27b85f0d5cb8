"""Control registers: AXI4-Lite, start and done, status, counters, interrupt."""

from amaranth.hdl import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hw.interfaces import BASE_BITS, ERROR_BITS
from hw.pipeline import copies
from hw.spec.config import Config
from hw.spec.csr import (
    BASE_ALIGNMENT_LOG2,
    BASE_REGISTERS,
    COUNTER_BASE,
    COUNTERS,
    CTRL,
    CTRL_DONE,
    CTRL_IDLE,
    CTRL_READY,
    CTRL_START,
    GIER,
    IER,
    ISR,
    MAX_PORTS,
    REGISTERS,
    base_offset,
    counter_offset,
)
from hw.spec.isa import ARGUMENT_REGISTERS, ISA_VERSION, Error
from hw.spec.resources import MAX_FANOUT
from hw.spec.timing import RESET_CYCLES, SETTLE_CYCLES

REGISTER_ADDRESS_BITS = 12
READ_ONLY_BASE = 0x100
ARGUMENTS = [name for name, offset in REGISTERS.items() if offset < READ_ONLY_BASE]
READ_PARTS = 8
"""Parts of a register's 32 bits that are chosen by an address register of their own."""
DRAIN_LIMIT_CYCLES = 1 << 16
"""Longest wait for open bus transactions after the end."""
INCREMENT_BITS = 16


def AXI4Lite():
    """A 32-bit AXI4-Lite slave's port, as its master sees it."""
    return wiring.Signature(
        {
            "awaddr": Out(REGISTER_ADDRESS_BITS),
            "awvalid": Out(1),
            "awready": In(1),
            "wdata": Out(32),
            "wstrb": Out(4),
            "wvalid": Out(1),
            "wready": In(1),
            "bresp": In(2),
            "bvalid": In(1),
            "bready": Out(1),
            "araddr": Out(REGISTER_ADDRESS_BITS),
            "arvalid": Out(1),
            "arready": In(1),
            "rdata": In(32),
            "rresp": In(2),
            "rvalid": In(1),
            "rready": Out(1),
        }
    )


class Control(wiring.Component):
    """The host's view of the machine: `hw.spec.csr`.

    Contract: START written while idle clears the core, the status and the counters (`clear`, in the cycle behind the
    write); `run` is high from cycle 0 on, RESET_CYCLES behind `clear`, to the one in which `halted` or the first error
    comes; open bus transactions then finish, and done is set. START while running is ignored. The counter `cycles` is
    the number of cycles of `run`; `cycle` is the current one's number. An error that comes between a good end and done
    counts, too. If transactions are still open after DRAIN_LIMIT_CYCLES the machine is done all the same, but poisoned
    until reset, because their late beats would reach the next program: START then ends at once with POISONED. Done is
    cleared by reading CTRL; ISR bits 0 (done) and 1 (ready) are set at done if IER has them, and toggled by writing 1.
    Base registers may be written while idle only.
    Latency and throughput: a write takes two cycles, a read three; counts are added a cycle late. Back-pressure: one
    access of each kind at a time, none in reset. Reset: idle, every register 0.

    Parameters: config.
    Members: axi; irq; clear, run, load (cycle 0), cycle; the argument registers (by name); bases: the upper bits of
    the memory ports' base addresses; halted; error,
    error_code, error_detail, error_pc; quiet: no bus transaction is open; counts: what each counter adds in this cycle
    (not `cycles`).
    """

    def __init__(self, config: Config):
        self.config = config
        super().__init__(
            {
                "axi": In(AXI4Lite()),
                "irq": Out(1),
                "clear": Out(1),
                "run": Out(1),
                "load": Out(1),
                "cycle": Out(64),
                **{name: Out(32) for name in ARGUMENTS},
                "bases": Out(data.ArrayLayout(BASE_BITS, config.units + 1)),
                "halted": In(1),
                "error": In(1),
                "error_code": In(ERROR_BITS),
                "error_detail": In(32),
                "error_pc": In(32),
                "quiet": In(1),
                "counts": In(data.StructLayout(dict.fromkeys(COUNTERS[1:], INCREMENT_BITS))),
            }
        )

    def elaborate(self, platform):
        m = Module()
        self.status, self.detail, self.status_pc = Signal(ERROR_BITS, name="status"), Signal(32), Signal(32)
        self.done, self.draining = Signal(), Signal()
        self.enable, self.isr, self.ier = Signal(), Signal(2), Signal(2)
        self.start, self.poisoned, refused = Signal(), Signal(), Signal()
        self.begin, self.starting = Signal(), Signal(RESET_CYCLES)
        """`starting`: a bit that moves on from `clear` to the cycle before cycle 0."""
        self.counters = {"cycles": self.cycle} | {
            name: Signal(64, name=f"count_{name}", reset_less=True) for name in COUNTERS[1:]
        }
        self.registers = {name: Signal(32, name=f"register_{name}", reset_less=True) for name in ARGUMENTS}
        self.base_registers = [
            Signal(BASE_BITS, name=f"base_{port}", reset_less=True) for port in range(self.config.units + 1)
        ]
        self.up = Signal()
        """Low in reset and in the cycle behind it, in which registers are still set to 0."""
        m.d.sync += self.up.eq(1)
        self.busy = self.starting.any() | self.run | self.draining
        idle = self.start & ~self.busy
        m.d.comb += [
            *(getattr(self, name).eq(register) for name, register in self.registers.items()),
            *(base.eq(register) for base, register in zip(self.bases, self.base_registers, strict=True)),
            self.irq.eq(self.enable & self.isr.any()),
            self.begin.eq(idle & ~self.poisoned),
            self.clear.eq(self.starting[0]),
            refused.eq(idle & self.poisoned),
        ]
        self._phases(m)
        self._writes(m)
        self._reads(m)
        with m.If(refused):
            m.d.sync += [self.status.eq(Error.POISONED), self.detail.eq(0), self.status_pc.eq(0), self.cycle.eq(0)]
            m.d.sync += [self.done.eq(1), self.isr.eq(self.isr | self.ier)]
        for name in COUNTERS[1:]:
            m.d.sync += self.counters[name].eq(self.counters[name] + self.counts[name])
        self._zero(m, self.clear | ResetSignal(), [self.counters[name] for name in COUNTERS[1:]], "zero_counters")
        self._zero(m, ResetSignal(), [*self.registers.values(), *self.base_registers], "zero_registers")
        return m

    def _zero(self, m, condition, registers, name):
        """Sets registers to 0 two cycles behind a condition, a group at a time that one register can drive."""
        groups, room = [[]], MAX_FANOUT
        for register in registers:
            if len(register) > room:
                groups.append([])
                room = MAX_FANOUT
            groups[-1].append(register)
            room -= len(register)
        for group, zero in zip(groups, copies(m, condition, len(groups), name), strict=True):
            with m.If(zero):
                m.d.sync += [register.eq(0) for register in group]

    def _phases(self, m):
        waited, settled = Signal(range(DRAIN_LIMIT_CYCLES + 1)), Signal(range(SETTLE_CYCLES + 1))
        m.d.sync += [self.starting.eq(Cat(self.begin, self.starting)), self.load.eq(self.starting[-1])]
        with m.If(self.starting[-1]):
            m.d.sync += self.run.eq(1)
        with m.If(self.run):
            m.d.sync += self.cycle.eq(self.cycle + 1)
            with m.If(self.error | self.halted):
                m.d.sync += [self.run.eq(0), self.draining.eq(1), waited.eq(0), settled.eq(0)]
            with m.If(self.error):
                m.d.sync += [
                    self.status.eq(self.error_code),
                    self.detail.eq(self.error_detail),
                    self.status_pc.eq(self.error_pc),
                ]
            with m.Elif(self.halted):
                m.d.sync += [self.detail.eq(0), self.status_pc.eq(self.error_pc)]
        with m.Elif(self.draining):
            m.d.sync += [waited.eq(waited + 1), settled.eq(Mux(self.quiet, settled + 1, 0))]
            # A beat that nobody waited for (RD runs ahead) may still fail.
            with m.If(self.error & (self.status == 0)):
                m.d.sync += [
                    self.status.eq(self.error_code),
                    self.detail.eq(self.error_detail),
                    self.status_pc.eq(self.error_pc),
                ]
            with m.If((waited == DRAIN_LIMIT_CYCLES) | (settled == SETTLE_CYCLES)):
                m.d.sync += [self.draining.eq(0), self.done.eq(1), self.isr.eq(self.isr | self.ier)]
                m.d.sync += self.poisoned.eq(~self.quiet)
        with m.Elif(self.begin):
            m.d.sync += [self.cycle.eq(0), self.status.eq(0), self.detail.eq(0), self.status_pc.eq(0), self.done.eq(0)]

    def _writes(self, m):
        axi, write = self.axi, Signal()
        m.d.comb += [
            # While the core is being reset its arguments are not taken yet.
            write.eq(axi.awvalid & axi.wvalid & ~axi.bvalid & self.up & ~self.starting.any() & ~self.load),
            axi.awready.eq(write),
            axi.wready.eq(write),
            self.start.eq(write & (axi.awaddr[2:] == CTRL >> 2) & axi.wstrb[0] & axi.wdata[0]),
        ]
        with m.If(write):
            m.d.sync += axi.bvalid.eq(1)
        with m.Elif(axi.bready):
            m.d.sync += axi.bvalid.eq(0)
        with m.If(write), m.Switch(axi.awaddr[2:]):
            with m.Case(GIER >> 2), m.If(axi.wstrb[0]):
                m.d.sync += self.enable.eq(axi.wdata[0])
            with m.Case(IER >> 2), m.If(axi.wstrb[0]):
                m.d.sync += self.ier.eq(axi.wdata[:2])
            with m.Case(ISR >> 2), m.If(axi.wstrb[0]):
                m.d.sync += self.isr.eq(self.isr ^ axi.wdata[:2])
            for name in ARGUMENTS:
                with m.Case(REGISTERS[name] >> 2):
                    for byte in range(4):
                        with m.If(axi.wstrb[byte]):
                            m.d.sync += self.registers[name].word_select(byte, 8).eq(axi.wdata.word_select(byte, 8))

            for port in range(self.config.units + 1):
                base = self.base_registers[port]
                with m.Case(base_offset(port) >> 2):
                    for byte in range(4):
                        with m.If(axi.wstrb[byte]):
                            low, high = max(8 * byte - BASE_ALIGNMENT_LOG2, 0), 8 * byte + 8 - BASE_ALIGNMENT_LOG2
                            if high > 0:
                                m.d.sync += base[low:high].eq(axi.wdata[low + BASE_ALIGNMENT_LOG2 : 8 * byte + 8])
                with m.Case(base_offset(port) + 4 >> 2):
                    for byte in range(4):
                        with m.If(axi.wstrb[byte]):
                            upper = base[32 - BASE_ALIGNMENT_LOG2 :]
                            m.d.sync += upper.word_select(byte, 8).eq(axi.wdata.word_select(byte, 8))

    def _reads(self, m):
        axi, read, answer = self.axi, Signal(), Signal(32)
        control = Mux(self.busy, CTRL_START, CTRL_IDLE) | Mux(self.done, CTRL_DONE | CTRL_READY, 0)
        values = {
            CTRL: control,
            GIER: self.enable,
            IER: self.ier,
            ISR: self.isr,
            **{REGISTERS[name]: register for name, register in self.registers.items()},
            REGISTERS["status"]: self.status,
            REGISTERS["status_detail"]: self.detail,
            REGISTERS["status_pc"]: self.status_pc,
            REGISTERS["isa_version"]: ISA_VERSION,
            REGISTERS["config_digest"]: int(self.config.digest()[:8], 16),
        }
        for name, counter in self.counters.items():
            values |= {counter_offset(name): counter[:32], counter_offset(name) + 4: counter[32:]}
        for port in range(self.config.units + 1):
            base = Cat(Const(0, BASE_ALIGNMENT_LOG2), self.base_registers[port])
            values |= {base_offset(port): base[:32], base_offset(port) + 4: base[32:]}
        asked = Signal()
        m.d.comb += [read.eq(axi.arvalid & ~asked & ~axi.rvalid & self.up), axi.arready.eq(read)]
        m.d.sync += asked.eq(read)
        # Every few bits of the answer have an address register of their own.
        addresses = copies(m, axi.araddr[2:], READ_PARTS, "read_address")
        size = 32 // READ_PARTS
        for part, address in enumerate(addresses):
            with m.Switch(address):
                for offset, value in values.items():
                    with m.Case(offset >> 2):
                        m.d.comb += answer.word_select(part, size).eq(
                            Value.cast(value)[part * size : (part + 1) * size]
                        )
        with m.If(asked):
            m.d.sync += [axi.rvalid.eq(1), axi.rdata.eq(answer)]
            with m.If((addresses[0] == CTRL >> 2) & self.done):
                m.d.sync += self.done.eq(0)
        with m.Elif(axi.rready):
            m.d.sync += axi.rvalid.eq(0)


assert len(ARGUMENTS) == 6 + ARGUMENT_REGISTERS and max(REGISTERS.values()) < COUNTER_BASE
assert COUNTER_BASE + 8 * len(COUNTERS) <= BASE_REGISTERS and base_offset(MAX_PORTS) == 1 << REGISTER_ADDRESS_BITS
