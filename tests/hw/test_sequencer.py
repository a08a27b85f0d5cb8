"""The sequencer alone, against an executable reading of `hw.spec.isa`, on random programs."""

import random

import pytest
from amaranth.sim import Simulator

from hw.sequencer import Sequencer
from hw.spec import config as configurations
from hw.spec.isa import FIELDS, LOOP_DEPTH, Error, Instruction, Op, Unit
from hw.spec.timing import SEQ_INTERVAL

CONFIG = configurations.get("tiny")
MASK = 0xFFFFFFFF


def interpret(words, arguments, limit=0, steps=3000):
    """What happens: a list of (event, ...) in order, one for each SET, ISSUE, HALT or error."""
    r, pc, stack, events, n = [0, *arguments] + [0] * 16, 0, [], [], 0
    for _ in range(steps):
        if pc >= len(words):
            return [*events, ("error", Error.PC_RANGE, pc)], n
        if limit and n == limit:
            return [*events, ("error", Error.INSTRUCTION_LIMIT, pc)], n
        try:
            i = Instruction.decode(words[pc])
        except ValueError:
            return [*events, ("error", Error.ILLEGAL_INSTRUCTION, pc)], n
        b, c, imm, after, value = r[i.b & 31], r[i.c & 31], i.imm, pc + 1, None
        match i.op:
            case Op.HALT:
                return [*events, ("halt", imm)], n + 1
            case Op.ADDI:
                value = b + imm
            case Op.ADD:
                value = b + c
            case Op.SUB:
                value = b - c
            case Op.MUL:
                value = b * c
            case Op.SHLI:
                value = b << (imm & 31)
            case Op.SHRI:
                value = b >> (imm & 31)
            case Op.MIN:
                value = min(b, c)
            case Op.MAX:
                value = max(b, c)
            case Op.BEQ:
                after = imm if b == c else after
            case Op.BNE:
                after = imm if b != c else after
            case Op.BLTU:
                after = imm if b < c else after
            case Op.BGEU:
                after = imm if b >= c else after
            case Op.LOOP:
                if b == 0:
                    after = imm + 1 & MASK
                elif len(stack) == LOOP_DEPTH:
                    return [*events, ("error", Error.LOOP_STACK, pc)], n
                else:
                    stack.append([pc + 1, b])
            case Op.ENDL:
                if not stack:
                    return [*events, ("error", Error.LOOP_STACK, pc)], n
                stack[-1][1] -= 1
                if stack[-1][1]:
                    after = stack[-1][0]
                else:
                    stack.pop()
            case Op.SET:
                events.append(("set", i.a, b + imm & MASK))
            case Op.ISSUE:
                events.append(("issue", i.a, i.b, i.c, pc))
        if value is not None and i.a:
            r[i.a] = value & MASK
        pc, n = after, n + 1
    raise AssertionError("the program does not end")


def random_program(seed):
    """Arithmetic, forward branches, small loops, sometimes an illegal word; always ends."""
    rng = random.Random(seed)
    words = []

    def add(op, a=0, b=0, c=0, imm=0):
        words.append(Instruction(op, a, b, c, imm).encode())

    def register():
        return rng.choice([0, 1, 2, 3, 15, 16, 31])

    for _ in range(rng.randint(5, 40)):
        kind = rng.random()
        if kind < 0.45:
            op = rng.choice([Op.ADDI, Op.ADD, Op.SUB, Op.MUL, Op.SHLI, Op.SHRI, Op.MIN, Op.MAX])
            immediate = op in (Op.ADDI, Op.SHLI, Op.SHRI)
            add(op, register(), register(), 0 if immediate else register(), rng.getrandbits(32))
        elif kind < 0.6:
            unit = rng.choice(list(Unit))
            add(Op.SET, unit << 5 | rng.randrange(len(FIELDS[unit])), register(), imm=rng.getrandbits(32))
        elif kind < 0.7:
            add(Op.ISSUE, rng.randrange(5), rng.getrandbits(5), rng.getrandbits(5))
        elif kind < 0.85:
            op = rng.choice([Op.BEQ, Op.BNE, Op.BLTU, Op.BGEU])
            add(op, 0, register(), register(), len(words) + rng.randint(1, 4))
        elif kind < 0.97:
            add(Op.ADDI, 30, 0, imm=rng.randint(0, 3))
            at, body = len(words), rng.randint(0, 3)
            add(Op.LOOP, 0, 30, 0, at + body + 1)
            for _ in range(body):
                add(Op.SET, rng.randrange(4), register(), imm=rng.getrandbits(32))
            add(Op.ENDL)
        else:
            words.append(rng.getrandbits(64))
    add(Op.HALT, imm=rng.choice([0, 5]))
    return words, [rng.getrandbits(32) >> rng.choice([0, 28]) for _ in range(15)]


def simulate(words, arguments, limit=0):
    """Events as `interpret`, and the cycles of retirement."""
    dut = Sequencer(CONFIG)
    events, retired = [], []

    async def drive(ctx):
        for name, value in {"load": 1, "length": len(words), "limit": limit, "run": 1, "idle": 31}.items():
            ctx.set(getattr(dut, name), value)
        for i, value in enumerate(arguments):
            ctx.set(dut.arguments[i], value)
        await ctx.tick()
        ctx.set(dut.load, 0)
        ctx.set(dut.go, 1)
        for cycle in range(20_000):
            pc = ctx.get(dut.pc)
            if ctx.get(dut.error):
                events.append(("error", Error(ctx.get(dut.error_code)), ctx.get(dut.error_pc)))
                return
            if ctx.get(dut.set_en):
                events.append(("set", ctx.get(dut.set_field), ctx.get(dut.set_value)))
            if push := ctx.get(dut.push):
                unit = push.bit_length() - 1
                events.append(("issue", unit, ctx.get(dut.wait), ctx.get(dut.signal), ctx.get(dut.tag)))
            if ctx.get(dut.retire):
                retired.append(cycle)
            if ctx.get(dut.halted):
                events.append(("halt", ctx.get(dut.halt_code)))
                return
            await ctx.tick()
            ctx.set(dut.go, 0)
            ctx.set(dut.words, [words[pc] if pc < len(words) else 0] * 2)
        raise AssertionError("no end")

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(drive)
    simulator.run()
    return events, retired


@pytest.mark.parametrize("seed", range(60))
def test_random_programs(seed):
    words, arguments = random_program(seed)
    limit = 25 if seed % 7 == 6 else 0
    expected, n = interpret(words, arguments, limit)
    events, retired = simulate(words, arguments, limit)
    assert events == expected
    assert retired == [2 + SEQ_INTERVAL * i for i in range(n)]


@pytest.mark.parametrize("stall", [0, 1, 5])
def test_a_scalar_load_keeps_its_address_until_it_is_taken(stall):
    """An LDS whose request waits: valid and address stay, whatever the number of cycles."""
    dut, seen = Sequencer(CONFIG), []
    words = [Instruction(Op.ADDI, 1, 0, 0, 0x234).encode(), Instruction(Op.LDS, 2, 1, 0, 0x1000).encode()]

    async def bench(ctx):
        for name, value in {"run": 1, "go": 1, "length": len(words), "idle": -1}.items():
            ctx.set(getattr(dut, name), value)
        for _ in range(40):
            pc = ctx.get(dut.pc)
            valid = ctx.get(dut.bus.arvalid)
            if valid:
                seen.append(ctx.get(dut.bus.araddr))
            ctx.set(dut.bus.arready, len(seen) > stall)
            await ctx.tick()
            ctx.set(dut.words, [words[pc] if pc < len(words) else 0] * 2)

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    assert seen == [0x1234 // 16 * 64] * (stall + 1)
