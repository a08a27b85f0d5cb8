"""The sequencer: scalar registers, branches, loops, descriptor fields, issue."""

from amaranth.hdl import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hw.interfaces import ERROR_BITS, AXI4Read
from hw.pipeline import copies
from hw.spec.config import Config
from hw.spec.isa import ALL_UNITS, ARGUMENT_REGISTERS, FIELDS, LOOP_DEPTH, OPERANDS, REGISTERS, Error, Op, Unit

LOADS = 3
"""Registers of `load`, each for some of those that take an argument, and of the reset, for the others."""
INSTRUCTION = data.StructLayout({"op": 8, "a": 8, "b": 8, "c": 8, "imm": 32})


def illegal(instruction):
    """Whether the hardware refuses the instruction: `hw.spec.isa.Instruction.problem` on signals."""

    def wrong(operand, kind):
        return {
            "r": lambda: operand >= REGISTERS,
            "m": lambda: operand > ALL_UNITS,
            "u": lambda: operand >= len(Unit),
            "-": lambda: operand != 0,
            "f": lambda: ~Cat((operand[5:] == unit) & (operand[:5] < len(FIELDS[unit])) for unit in Unit).any(),
        }[kind]()

    refused = Const(1)
    for op, kinds in OPERANDS.items():
        bad = Cat(wrong(instruction[name], kind) for name, kind in zip("abc", kinds, strict=True)).any()
        if op == Op.FENCE:
            bad = bad | (instruction.imm > ALL_UNITS)
        refused = Mux(instruction.op == op, bad, refused)
    return refused


class Sequencer(wiring.Component):
    """Executes the program.

    Contract: `hw.spec.isa`, on 32-bit registers mod 2**32. The checks of an instruction, in order: PC_RANGE,
    INSTRUCTION_LIMIT, ILLEGAL_INSTRUCTION, LOOP_STACK. LOOP with count 0 jumps behind its ENDL and pushes nothing.
    WATCHDOG is raised in the cycle that follows `watchdog` cycles without a retired instruction. An error before the
    first instruction has the entry as its pc.
    Latency and throughput: first execution two cycles after `go`, then every SEQ_INTERVAL = 2 cycles: executed in t
    (operands registered, the next pc addresses the program), decoded in t + 1. LDS puts its address on the bus in its
    first cycle with LD idle and retires LDS_RETURN = 2 cycles after its beat is on the port. After HALT, and after an
    error of its own, nothing executes any more.
    Back-pressure: ISSUE waits while the unit's queue is full, FENCE and HALT for idle units, LDS for LD and the bus.
    Reset: stopped, registers 0 but r1 .. r15, which take the arguments with `load`; loop stack empty.

    Parameters: config.
    Members: load (cycle 0), run, go; length, limit, watchdog, arguments; pc -> words (instruction memory, next cycle:
    the same word for each half of the operands); bus (LDS; `lds_active`: beats on it are this unit's); full, idle (a
    bit a unit); set_en, set_field, set_value; push (a bit a unit), wait, signal, tag; halted (pulse in t_halt),
    halt_code; error (pulse), error_code, error_pc; retire, stall_queue, stall_fence, stall_lds (for the counters).
    """

    def __init__(self, config: Config):
        units = len(Unit)
        super().__init__(
            {
                "load": In(1),
                "run": In(1),
                "go": In(1),
                "entry": In(32),
                "length": In(32),
                "limit": In(32),
                "watchdog": In(32),
                "arguments": In(data.ArrayLayout(32, ARGUMENT_REGISTERS)),
                "pc": Out(32),
                "words": In(data.ArrayLayout(64, 2)),
                "bus": Out(AXI4Read()),
                "lds_active": Out(1),
                "full": In(units),
                "idle": In(units),
                "set_en": Out(1),
                "set_field": Out(8),
                "set_value": Out(32),
                "push": Out(units),
                "wait": Out(units),
                "signal": Out(units),
                "tag": Out(32),
                "halted": Out(1),
                "halt_code": Out(32),
                "error": Out(1),
                "error_code": Out(ERROR_BITS),
                "error_pc": Out(32),
                "retire": Out(1),
                "stall_queue": Out(1),
                "stall_fence": Out(1),
                "stall_lds": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        self.at, self.next_pc = Signal(32), Signal(32)
        self.instruction = Signal(INSTRUCTION, reset_less=True)
        self.b, self.c = (Signal(32, name=name, reset_less=True) for name in "bc")
        self.refused, self.beyond, self.spent = Signal(), Signal(), Signal()
        self.retired, self.target = Signal(32), Signal(len(Unit))
        """`target`: the unit of an ISSUE, a bit each; 0 for what is none."""
        self.result, self.writes = Signal(32), Signal()
        self.lds_word = Signal(32, reset_less=True)
        registers = Array(Signal(32, name=f"r{i}", reset_less=True) for i in range(REGISTERS))
        fetched = data.View(INSTRUCTION, self.words[0])
        execute, ready = Signal(), Signal()
        instruction = self.instruction
        m.d.comb += [
            self.tag.eq(self.at),
            self.error_pc.eq(self.at),
            self.pc.eq(self.entry),
            # What these mean is said by `set_en`, `push` and `halted`.
            self.set_field.eq(instruction.a),
            self.set_value.eq(self.b + instruction.imm),
            self.wait.eq(instruction.b),
            self.signal.eq(instruction.c),
            self.halt_code.eq(instruction.imm),
        ]
        # In every state: an address that waits for arready must stay.
        address = self.b + self.instruction.imm
        m.d.comb += [self.bus.araddr.eq(address[4:32] << 6), self.bus.arlen.eq(0), self.bus.rready.eq(1)]
        with m.FSM():
            with m.State("WAIT"):
                m.d.comb += self.error_pc.eq(self.entry)
                with m.If(self.go & self.run):
                    m.d.sync += self.at.eq(self.entry)
                    m.next = "DECODE"
            with m.State("DECODE"):
                m.d.sync += [
                    self.instruction.eq(fetched),
                    self.refused.eq(illegal(fetched)),
                    self.target.eq(Cat((fetched.op == Op.ISSUE) & (fetched.a[:3] == unit) for unit in Unit)),
                    self.beyond.eq(self.at >= self.length),
                    self.spent.eq((self.limit != 0) & (self.retired == self.limit)),
                ]
                for half, word in enumerate(self.words):
                    part, names = slice(16 * half, 16 * half + 16), data.View(INSTRUCTION, word)
                    values = Array(register[part] for register in registers)
                    m.d.sync += [self.b[part].eq(values[names.b[:5]]), self.c[part].eq(values[names.c[:5]])]
                m.next = "EXECUTE"
            with m.State("EXECUTE"):
                m.d.comb += [execute.eq(self.run), self.pc.eq(self.next_pc)]
                self._lds_request(m, execute & ready)
                with m.If(self.halted):
                    m.next = "STOP"
                with m.Elif(self.retire):
                    m.next = "DECODE"
            for state in ("ADDRESS", "BEAT"):
                with m.State(state):
                    m.d.comb += [self.lds_active.eq(1), self.stall_lds.eq(1)]
                    if state == "ADDRESS":
                        m.d.comb += self.bus.arvalid.eq(1)
                        with m.If(self.bus.arready):
                            m.next = "BEAT"
                    else:
                        self._lds_beat(m)
            with m.State("LOADED"):
                m.d.comb += [
                    self.retire.eq(self.run),
                    self.pc.eq(self.at + 1),
                    self.result.eq(self.lds_word),
                    self.writes.eq(1),
                ]
                m.d.sync += self.at.eq(self.at + 1)
                m.next = "DECODE"
            with m.State("STOP"):
                pass
        self._checks(m, execute, ready)
        m.d.comb += self.push.eq(Mux(execute & ready, self.target & ~self.full, 0))
        with m.If(execute & ready):
            self._execute(m)
        with m.If(self.retire & self.writes & (self.instruction.a[:5] != 0)):
            m.d.sync += registers[self.instruction.a[:5]].eq(self.result)
        # Registers are set a group at a time, two cycles behind the reset, or before the first instruction is decoded.
        others = list(registers)[1 + ARGUMENT_REGISTERS :]
        for number, zero in enumerate(copies(m, ResetSignal(), LOADS, "zero")):
            with m.If(zero):
                m.d.sync += [register.eq(0) for register in others[number::LOADS]]
        taken = list(zip(list(registers)[1:], self.arguments, strict=False))
        for number, load in enumerate(copies(m, self.load, LOADS, "load", resets=True)):
            with m.If(load):
                m.d.sync += [register.eq(value) for register, value in taken[number::LOADS]]
        return m

    def _checks(self, m, execute, ready):
        """Errors before execution, the limit, the watchdog."""
        quiet, overdue = Signal(32, name="quiet", init=1), Signal()
        """`overdue`: the next cycle without a retired instruction is one too many."""

        def fail(code):
            m.d.comb += [self.error.eq(1), self.error_code.eq(code)]

        with m.If(execute):
            with m.If(self.beyond):
                fail(Error.PC_RANGE)
            with m.Elif(self.spent):
                fail(Error.INSTRUCTION_LIMIT)
            with m.Elif(self.refused):
                fail(Error.ILLEGAL_INSTRUCTION)
            with m.Else():
                m.d.comb += ready.eq(1)
        m.d.sync += self.retired.eq(self.retired + self.retire)
        with m.If(self.retire):
            m.d.sync += [quiet.eq(1), overdue.eq(0)]
        with m.Elif(self.run):
            m.d.sync += [quiet.eq(quiet + 1), overdue.eq((self.watchdog != 0) & (quiet == self.watchdog))]
        with m.If(self.run & overdue & ~self.retire):
            fail(Error.WATCHDOG)

    def _lds_request(self, m, ready):
        """The request goes out in the first cycle with LD idle."""
        with m.If(ready & (self.instruction.op == Op.LDS)):
            m.d.comb += self.stall_lds.eq(1)
            with m.If(self.idle[Unit.LD]):
                m.d.comb += self.bus.arvalid.eq(1)
                with m.If(self.bus.arready):
                    m.next = "BEAT"
                with m.Else():
                    m.next = "ADDRESS"

    def _lds_beat(self, m):
        lane = (self.b + self.instruction.imm)[:4]
        m.d.sync += self.lds_word.eq(self.bus.rdata.word_select(lane, 32))
        with m.If(self.bus.rvalid & self.bus.rresp[1]):
            m.d.comb += [self.error.eq(1), self.error_code.eq(Error.BUS_READ)]
        with m.Elif(self.bus.rvalid):
            m.next = "LOADED"

    def _execute(self, m):
        i, b, c = self.instruction, self.b, self.c
        results = {
            Op.ADDI: b + i.imm,
            Op.ADD: b + c,
            Op.SUB: b - c,
            Op.MUL: b * c,
            Op.SHLI: b << i.imm[:5],
            Op.SHRI: b >> i.imm[:5],
            Op.MIN: Mux(b < c, b, c),
            Op.MAX: Mux(b < c, c, b),
        }
        branches = {Op.BEQ: b == c, Op.BNE: b != c, Op.BLTU: b < c, Op.BGEU: b >= c}
        m.d.comb += self.next_pc.eq(self.at + 1)
        with m.Switch(i.op):
            for op, value in results.items():
                with m.Case(op):
                    m.d.comb += [self.retire.eq(1), self.writes.eq(1), self.result.eq(value)]
            for op, taken in branches.items():
                with m.Case(op):
                    m.d.comb += self.retire.eq(1)
                    with m.If(taken):
                        m.d.comb += self.next_pc.eq(i.imm)
            with m.Case(Op.SET):
                m.d.comb += [self.retire.eq(1), self.set_en.eq(1)]
            with m.Case(Op.ISSUE):
                blocked = (self.full & self.target).any()
                m.d.comb += [self.stall_queue.eq(blocked), self.retire.eq(~blocked)]
            with m.Case(Op.FENCE):
                m.d.comb += self.retire.eq((i.imm[: len(Unit)] & ~self.idle) == 0)
                m.d.comb += self.stall_fence.eq(~self.retire)
            with m.Case(Op.HALT):
                m.d.comb += [
                    self.retire.eq(self.idle.all()),
                    self.halted.eq(self.retire),
                    self.stall_fence.eq(~self.retire),
                ]
        self._loops(m)
        with m.If(self.retire):
            m.d.sync += self.at.eq(self.next_pc)

    def _loops(self, m):
        depth = Signal(range(LOOP_DEPTH + 1))
        starts, left = (
            Array(Signal(32, name=f"loop_{name}{k}", reset_less=True) for k in range(LOOP_DEPTH))
            for name in ("start", "left")
        )
        top = (depth - 1)[: depth.shape().width]

        def overflow():
            m.d.comb += [self.error.eq(1), self.error_code.eq(Error.LOOP_STACK)]

        with m.If(self.instruction.op == Op.LOOP):
            with m.If(self.b == 0):
                m.d.comb += [self.retire.eq(1), self.next_pc.eq(self.instruction.imm + 1)]
            with m.Elif(depth == LOOP_DEPTH):
                overflow()
            with m.Else():
                m.d.comb += self.retire.eq(1)
                m.d.sync += [depth.eq(depth + 1), starts[depth].eq(self.at + 1), left[depth].eq(self.b)]
        with m.If(self.instruction.op == Op.ENDL):
            with m.If(depth == 0):
                overflow()
            with m.Elif(left[top] == 1):
                m.d.comb += self.retire.eq(1)
                m.d.sync += depth.eq(depth - 1)
            with m.Else():
                m.d.comb += [self.retire.eq(1), self.next_pc.eq(starts[top])]
                m.d.sync += left[top].eq(left[top] - 1)
