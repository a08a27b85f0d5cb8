"""Virtual registers: where values are live, which of them share a register, and what is refused."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.kernels import registers
from compiler.kernels.builder import Builder, Reg
from compiler.kernels.registers import FIRST_VIRTUAL, Liveness, assign
from hw.spec import config, isa
from hw.spec.errors import InternalError
from hw.spec.isa import Instruction, Op, Unit

TINY = config.get("tiny")
FIELD = isa.field_code(Unit.LD, "addr")
V, W, X = range(FIRST_VIRTUAL, FIRST_VIRTUAL + 3)


def set_to(target: int, source: int, constant: int = 0) -> Instruction:
    return Instruction(Op.ADDI, target, source, 0, constant)


def use(register: int) -> Instruction:
    return Instruction(Op.SET, FIELD, register)


def behind(program: list[Instruction]) -> list[set[int]]:
    """The values that are live behind every instruction."""
    liveness = Liveness(program)
    return [{n for n in range(64) if liveness.behind(pc) >> n & 1} for pc in range(len(program))]


# --- liveness --------------------------------------------------------------------------------------------


def test_a_value_is_live_up_to_its_last_read():
    program = [set_to(V, 0, 1), set_to(W, V), use(V), use(W), Instruction(Op.HALT)]
    assert behind(program) == [{V}, {V, W}, {W}, set(), set()]


def test_a_loop_keeps_what_its_next_iteration_reads():
    """V walks, W is written anew every time, and the count X is read at the start only."""
    program = [
        set_to(V, 0),
        set_to(X, 0, 3),
        Instruction(Op.LOOP, 0, X, 0, 6),
        set_to(W, V, 1),
        use(W),
        set_to(V, V, 1),
        Instruction(Op.ENDL),
        Instruction(Op.HALT),
    ]
    assert behind(program) == [{V}, {V, X}, {V}, {V, W}, {V}, {V}, {V}, set()]


def test_the_example_of_the_documentation():
    program = [
        set_to(V, 0, 3),
        Instruction(Op.LOOP, 0, V, 0, 6),
        set_to(W, 0, 5),
        Instruction(Op.SHLI, X, W, 0, 1),
        use(X),
        use(W),
        Instruction(Op.ENDL),
    ]
    found = assign(program)
    assert [found[0].a, found[2].a, found[3].a] == [1, 1, 2]


def test_a_branch_keeps_what_either_path_reads():
    program = [
        set_to(V, 0, 1),
        set_to(W, 0, 2),
        Instruction(Op.BNE, 0, 1, 0, 5),
        use(V),
        Instruction(Op.BEQ, 0, 0, 0, 6),
        use(W),
        Instruction(Op.HALT),
    ]
    assert behind(program) == [{1, V}, {1, V, W}, {V, W}, set(), set(), set(), set()]


def test_a_branch_back_keeps_what_it_leads_to():
    program = [set_to(V, 0, 5), use(V), Instruction(Op.BNE, 0, 1, 0, 1), Instruction(Op.HALT)]
    assert behind(program) == [{1, V}, {1, V}, {1, V}, set()]


# --- registers -------------------------------------------------------------------------------------------


def test_arguments_keep_their_registers():
    """Argument 2 is live from the entry on, argument 1 is not read: its register is free."""
    b = Builder(TINY)
    value = b.set(b.reg(), 7)
    b.alu(Op.ADD, b.reg(), value, b.argument(2))
    found = assign(b.program)
    assert [(each.a, each.b, each.c) for each in found] == [(1, 0, 0), (1, 1, 2)]


def test_an_argument_that_is_written_keeps_its_register():
    b = Builder(TINY)
    b.set(b.argument(3), b.argument(3) + 1)
    assert assign(b.program) == [set_to(3, 3, 1)]


def test_values_that_are_not_live_together_share_a_register():
    b = Builder(TINY)
    for number in range(100):
        b.prepare(Unit.LD, {"addr": b.set(b.reg(), number)})
    assert {each.a for each in assign(b.program) if each.op == Op.ADDI} == {1}


def test_a_result_that_nobody_reads_destroys_nothing():
    program = [set_to(V, 0, 1), set_to(W, 0, 2), use(V)]
    found = assign(program)
    assert found[0].a == found[2].b != found[1].a != 0


def all_live(count: int) -> Builder:
    """So many values, all of which are read at the end."""
    b = Builder(TINY)
    values = [b.set(b.reg(), number) for number in range(count)]
    for value in values:
        b.prepare(Unit.LD, {"addr": value})
    b.halt()
    return b


def test_every_register_but_r0_is_used():
    assert {each.a for each in assign(all_live(31).program) if each.op == Op.ADDI} == set(range(1, 32))


def test_too_many_live_values_are_refused_where_they_are():
    with pytest.raises(InternalError, match=r"32 values are live behind instruction 31 \(ADDI\), .* has 31 registers"):
        all_live(32).words()


def test_a_value_that_nothing_wrote_is_refused():
    b = Builder(TINY)
    b.set(b.reg(), 1)
    b.alu(Op.ADD, b.reg(), b.reg(), 3)
    with pytest.raises(InternalError, match=r"instruction 2 \(ADD\) reads v34, which a path to it does not write"):
        b.words()


def test_a_value_that_one_path_does_not_write_is_refused():
    b = Builder(TINY)
    value = b.reg()
    with b.unless(Op.BEQ, b.argument(1), 0):
        b.set(value, 1)
    b.prepare(Unit.LD, {"addr": value})
    with pytest.raises(InternalError, match=r"instruction 2 \(SET\) reads v32"):
        b.words()


def test_a_value_that_both_alternatives_write_is_taken():
    b = Builder(TINY)
    value = b.reg()
    with b.alternatives() as leave:
        with b.unless(Op.BEQ, b.argument(1), 0):
            b.set(value, 1)
            leave()
        b.set(value, 2)
    b.prepare(Unit.LD, {"addr": value})
    assert {each.a for each in assign(b.program) if each.op == Op.ADDI} == {1}


def test_no_value_comes_from_another_entry():
    b = Builder(TINY)
    value = b.set(b.reg(), 1)
    b.halt()
    assert b.new_entry() == 2
    b.prepare(Unit.LD, {"addr": value})
    b.halt()
    with pytest.raises(InternalError, match=r"instruction 2 \(SET\) reads v32"):
        b.words()


# --- meaning ---------------------------------------------------------------------------------------------

ALU = {
    Op.ADD: lambda a, b: a + b,
    Op.SUB: lambda a, b: a - b,
    Op.MUL: lambda a, b: a * b,
    Op.MIN: min,
    Op.MAX: max,
}
TAKEN = {
    Op.BEQ: lambda a, b: a == b,
    Op.BNE: lambda a, b: a != b,
    Op.BLTU: lambda a, b: a < b,
    Op.BGEU: lambda a, b: a >= b,
}
ARGUMENTS = (3, 0, 5)


def interpreted(program: list[Instruction]) -> list[int]:
    """The values that SET gives to a field, one after the other; registers begin with other values than 0."""
    state = {number: 1000 + number for number in range(1 << 12)} | {0: 0} | dict(enumerate(ARGUMENTS, 1))
    loops: list[list[int]] = []
    seen, pc = [], 0
    while pc < len(program):
        each, at = program[pc], pc
        left, right = state[each.b], state[each.c]
        pc += 1
        match each.op:
            case Op.ADDI:
                state[each.a] = (left + each.imm) & isa.WORD_MASK
            case op if op in ALU:
                state[each.a] = ALU[op](left, right) & isa.WORD_MASK
            case op if op in TAKEN:
                pc = each.imm if TAKEN[op](left, right) else pc
            case Op.LOOP if left:
                loops.append([at, left])
            case Op.LOOP:
                pc = each.imm + 1
            case Op.ENDL:
                loops[-1][1] -= 1
                pc = loops[-1][0] + 1 if loops[-1][1] else pc
                if not loops[-1][1]:
                    loops.pop()
            case Op.SET:
                seen.append((left + each.imm) & isa.WORD_MASK)
    return seen


class Writer:
    """A random program of ALU operations, loops and branches, which reads nothing that it did not write."""

    def __init__(self, data: st.DataObject) -> None:
        self.b, self.data = Builder(TINY), data
        self.known = [self.b.argument(number) for number in range(1, len(ARGUMENTS) + 1)]
        self.body(3)
        for value in self.known:
            self.use(value)

    def draw(self, strategy):
        return self.data.draw(strategy)

    def value(self) -> Reg:
        return self.draw(st.sampled_from(self.known))

    def use(self, value: Reg) -> None:
        self.b.emit(Op.SET, FIELD, value.index)

    def body(self, depth: int) -> None:
        kinds = [self.compute, self.compute, self.again, lambda _: self.use(self.value())]
        for _ in range(self.draw(st.integers(1, 6))):
            self.draw(st.sampled_from([*kinds, *([self.loop, self.branch] if depth else [])]))(depth)

    def compute(self, _: int) -> None:
        """A new value, which takes the place of an old one if there are many."""
        value = self.b.alu(self.draw(st.sampled_from(list(ALU))), self.b.reg(), self.value(), self.value())
        if len(self.known) > 24:
            self.known.remove(self.value())
        self.known.append(value)

    def again(self, _: int) -> None:
        """A new value in the register of an old one."""
        self.b.alu(self.draw(st.sampled_from(list(ALU))), self.value(), self.value(), self.draw(st.integers(1, 9)))

    def loop(self, depth: int) -> None:
        count = self.b.set(self.b.reg(), self.draw(st.integers(0, 3)))
        self.inside(self.b.repeat(count), depth)

    def branch(self, depth: int) -> None:
        self.inside(self.b.skipping(self.draw(st.sampled_from(list(TAKEN))), self.value(), self.value()), depth)

    def inside(self, block, depth: int) -> None:
        """What is first written in a block that may be skipped is not known behind it."""
        known = list(self.known)
        with block:
            self.body(depth - 1)
        self.known = known


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_program_means_the_same_behind_assignment(data):
    program = Writer(data).b.program
    found = assign(program)
    assert all(each.problem() is None for each in found)
    assert interpreted(found) == interpreted(program)
    assert [(each.op, each.imm) for each in found] == [(each.op, each.imm) for each in program]


def test_assignment_changes_nothing_but_registers():
    program = all_live(5).program
    assert [registers.read(each) == set() for each in program] == [each.op != Op.SET for each in program]
    found = assign(program)
    assert [(each.op, each.imm) for each in found] == [(each.op, each.imm) for each in program]
    assert found == assign(program)
