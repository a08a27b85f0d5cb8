"""Repeated layers as loops: the loop issues what the stretches issued, in a fraction of the instructions."""

import random
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import alula
from benchmarks.zoo.case import trained
from compiler.stages import program
from compiler.stages.roll import roll
from hw.spec.isa import Instruction, Op

TABLE = 5000
SEEDS = range(30)


class Tables:
    """Words that loops put into memory."""

    def __init__(self) -> None:
        self.words: list[int] = []

    def __call__(self, words: list[int]) -> int:
        self.words += words
        return TABLE + len(self.words) - len(words)


def trace(program: list[Instruction], words: list[int], start: int = 0) -> list[tuple]:
    """What SETs and ISSUEs the sequencer makes from an instruction on: (field, value) and (unit,)."""
    registers, at, found = [0] * 32, start, []
    loops: list[tuple[int, int]] = []
    """Of every loop that runs: its first instruction, and passes left."""
    while program[at].op != Op.HALT:
        one, at = program[at], at + 1
        total = registers[one.b] + one.imm
        match one.op:
            case Op.ADDI:
                registers[one.a] = total
            case Op.ADD:
                registers[one.a] = registers[one.b] + registers[one.c]
            case Op.LDS:
                registers[one.a] = words[total - TABLE] if total >= TABLE else total
            case Op.SET:
                found.append((one.a, total))
            case Op.ISSUE:
                found.append((one.a,))
            case Op.BNE:
                at = one.imm if registers[one.b] != registers[one.c] else at
            case Op.LOOP:
                loops.append((at, registers[one.b]))
            case Op.ENDL:
                first, left = loops.pop()
                if left > 1:
                    loops.append((first, left - 1))
                    at = first
        registers[0] = 0
    return found


def rolled(
    phases: list[list[Instruction]], room: int = 10**6
) -> tuple[list[Instruction], list[Instruction], list[int]]:
    """(the program of these phases, the same rolled, words of its tables). Jumps of a phase count from its start."""
    program: list[Instruction] = []
    starts = []
    for phase in phases:
        start = len(program)
        starts.append(start)
        program += [
            Instruction(one.op, one.a, one.b, one.c, one.imm + start) if one.op == Op.BNE else one for one in phase
        ]
    starts.append(len(program))
    program.append(Instruction(Op.HALT))
    tables = Tables()
    made = roll(program, [starts], tables, room)
    found, origin = made.program, made.origin
    assert all(found[new].op == program[old].op for new, old in origin.items() if found[new].op == Op.ISSUE)
    return program, found, tables.words


def layer(address: int, bits: int) -> list[Instruction]:
    """A loop of two passes that sets an address, one behind a register, and a number of bits."""
    return [
        Instruction(Op.ADDI, 1, 0, 0, 2),
        Instruction(Op.ADDI, 2, 0, 0, 7),
        Instruction(Op.SET, 3, 0, 0, address),
        Instruction(Op.SET, 4, 2, 0, 2 * address),
        Instruction(Op.SET, 5, 0, 0, bits),
        *[Instruction(Op.ISSUE, 4)] * 20,
        Instruction(Op.ADDI, 1, 1, 0, -1),
        Instruction(Op.BNE, 0, 1, 0, 2),
    ]


def test_layers_become_a_loop():
    program, found, words = rolled([layer(100 + 64 * n, 5) for n in range(6)])
    assert len(found) < len(program) / 3 and words == []
    assert trace(found, words) == trace(program, [])


def test_entries_begin_ahead_of_their_loops():
    """Two entries that are layers alone, and alike: each has a loop of its own, and starts with what the loop needs."""
    program: list[Instruction] = []
    entries: list[list[int]] = []
    for address in (100, 5_000):
        starts = []
        for n in range(4):
            starts.append(len(program))
            program += [
                replace(one, imm=one.imm + (one.op == Op.BNE) * len(program)) for one in layer(address + 64 * n, 5)
            ]
        entries.append([*starts, len(program)])
        program.append(Instruction(Op.HALT))
    made = roll(program, entries, Tables(), 10**6)
    assert len(made.program) < len(program) / 2
    for (start, *_), begins in zip(entries, made.entries, strict=True):
        assert trace(made.program, [], begins) == trace(program, [], start)


def test_constants_that_follow_no_rule_come_from_a_table():
    program, found, words = rolled([layer(100 + 64 * n, bits) for n, bits in enumerate((5, 9, 5, 6))])
    assert len(found) < len(program) / 2 and words == [0, 4, 0, 1]
    assert trace(found, words) == trace(program, [])


def test_a_jump_to_an_instruction_that_needs_a_sum_of_registers():
    """The sum comes ahead of the instruction, and the jump leads to the sum."""

    def jumping(n: int) -> list[Instruction]:
        return [
            Instruction(Op.ADDI, 1, 0, 0, 3),
            Instruction(Op.ADDI, 2, 0, 0, 7),
            Instruction(Op.SET, 4, 2, 0, 64 * n),
            Instruction(Op.ADDI, 2, 2, 0, 5),
            *[Instruction(Op.ISSUE, 4)] * 20,
            Instruction(Op.SET, 5, 1, 0, 8 * n),
            Instruction(Op.ADDI, 1, 1, 0, -1),
            Instruction(Op.BNE, 0, 1, 0, 2),
        ]

    program, found, words = rolled([jumping(n) for n in range(5)])
    assert len(found) < len(program) / 2
    assert trace(found, words) == trace(program, [])


def leaving(phase: list[Instruction]) -> list[Instruction]:
    """A phase that jumps over the others' work to its own end, which is where the next phase begins."""
    return [Instruction(Op.ADDI, 1, 0, 0, 1), Instruction(Op.BNE, 0, 1, 0, len(phase) + 2), *phase]


def test_stretches_that_a_jump_leaves_stay_as_they_are():
    program, found, _ = rolled([leaving(layer(100 + 64 * n, 5)) for n in range(4)])
    assert found == program


def test_a_jump_to_the_first_stretch_does_not_miss_what_the_loop_needs():
    entered = leaving([Instruction(Op.ISSUE, 3)] * 3)
    program, found, words = rolled([entered, *(layer(100 + 64 * n, 5) for n in range(4))])
    assert trace(found, words) == trace(program, [])


def test_other_stretches_stay_as_they_are():
    first, second = layer(100, 5), layer(200, 5)
    second[6] = Instruction(Op.ISSUE, 3)
    program, found, _ = rolled([first, second])
    assert found == program


def test_constants_beyond_the_registers_come_from_the_table_where_they_are_used():
    def wide(n: int) -> list[Instruction]:
        sets = [Instruction(Op.SET, field, 0, 0, n * (field + 1)) for field in range(20)]
        return sets + [Instruction(Op.SET, 4, 2, 0, n * n)] + [Instruction(Op.ISSUE, 4)] * 60

    program, found, words = rolled([wide(n) for n in range(4)])
    assert len(found) < len(program) / 2 and words
    assert trace(found, words) == trace(program, [])


# --- heads ------------------------------------------------------------------------------------------------


def heads(count: int, rng: random.Random) -> list[Instruction]:
    """A phase with a period: buffers in turn, addresses that grow, one constant without a rule."""
    made = []
    for n in range(count):
        made += [
            Instruction(Op.SET, 3, 0, 0, 100 + 64 * n),
            Instruction(Op.SET, 4, 2, 0, n % 3 * 32),
            *[Instruction(Op.ISSUE, 4)] * 6,
            Instruction(Op.SET, 5, 0, 0, rng.randint(0, 99)),
        ]
    return made


@pytest.mark.parametrize("seed", SEEDS)
def test_heads_become_a_loop_where_instructions_do_not_fit(seed):
    """Alone, in several phases, and within a loop over layers; every phase also has a loop of its own."""
    rng = random.Random(seed)
    phase = [*layer(100, 5), *heads(rng.randint(4, 20), rng), Instruction(Op.ISSUE, 3)]
    phases = [phase] * rng.randint(1, 4) + [heads(rng.randint(1, 9), rng)]
    program, large, words = rolled(phases)
    assert trace(large, words) == trace(program, [])
    assert rolled(phases, room=len(large))[1] == large
    sizes = [len(large)]
    for room in (len(large) - 1, 0):
        program, small, words = rolled(phases, room)
        assert trace(small, words) == trace(program, []), f"seed {seed}"
        sizes.append(len(small))
    assert sizes[2] <= sizes[1] < sizes[0] and sizes[2] < sizes[0] * 0.8


@pytest.mark.parametrize("seed", SEEDS)
def test_random_programs(seed):
    """Phases of several kinds, in repeats of one or two of them, with even and uneven constants."""
    rng = random.Random(seed)
    phases: list[list[Instruction]] = []
    for _ in range(rng.randint(1, 4)):
        kinds = [
            [(rng.choice((3, 4, 5)), rng.choice((0, 0, 2)), rng.randint(0, 99), rng.choice((0, 3, 8, None)))]
            * rng.randint(1, 4)
            for _ in range(rng.randint(1, 2))
        ]
        for time in range(rng.randint(1, 5)):
            for sets in kinds:
                phase = [Instruction(Op.ADDI, 2, 0, 0, 7)]
                for field, register, constant, step in sets:
                    value = constant + (rng.randint(0, 9) if step is None else step * time)
                    phase.append(Instruction(Op.SET, field, register, 0, value))
                phases.append(phase + [Instruction(Op.ISSUE, 4)] * rng.choice((1, 15)))
    program, found, words = rolled(phases)
    assert trace(found, words) == trace(program, []), f"seed {seed}"
    assert len(found) <= len(program)


# --- modules --------------------------------------------------------------------------------------------


class Block(nn.Module):
    """A layer of a vision transformer, float[rows, 48] -> float[rows, 48]."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(48), nn.LayerNorm(48)
        self.qkv, self.out = nn.Linear(48, 144), nn.Linear(48, 48)
        self.up, self.down = nn.Linear(48, 96), nn.Linear(96, 48)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.view(-1, 3, 16).transpose(0, 1) for part in self.qkv(self.norm1(x)).chunk(3, -1))
        heads = functional.scaled_dot_product_attention(q, k, v)
        x = x + self.out(heads.transpose(0, 1).reshape(-1, 48))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class Tower(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block() for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.layers:
            x = block(x)
        return x


def tower(depth: int) -> "alula.Program":
    return alula.compile(trained(Tower(depth)), {"x": torch.randn(9, 48)}, {"x": {0: "seq"}}, {"seq": (1, 40)})


def test_a_tower_of_layers_is_little_longer_than_three():
    """The first layer reads the input and the last one gives the result: they stay outside of the loop."""
    three, eight = tower(3), tower(8)
    assert len(eight.words) < len(three.words) + 10
    result = eight.verify("cycle", seq=[1, 9, 40])
    assert result["bit_exact"]
    assert eight.simulate(seq=9).cycles == next(c["cycles_simulated"] for c in result["cases"] if "9" in c["name"])


@pytest.mark.slow
def test_a_tower_in_rtl():
    result = tower(5).verify("rtl", seq=[1, 9, 40])
    assert result["bit_exact"] and result["cycle_exact"]


def test_heads_in_rtl(monkeypatch):
    """Two layers of twelve heads with caches, made for a machine that holds fewer instructions than it takes."""

    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv = nn.ModuleList(nn.Linear(48, 3 * 192) for _ in range(2))
            self.out = nn.ModuleList(nn.Linear(192, 48) for _ in range(2))

        def forward(self, x: Tensor, k0: Tensor, v0: Tensor, k1: Tensor, v1: Tensor):
            state = []
            for qkv, out, past_k, past_v in zip(self.qkv, self.out, (k0, k1), (v0, v1), strict=True):
                q, k, v = (part.view(-1, 12, 16).transpose(0, 1) for part in qkv(x).chunk(3, -1))
                k, v = torch.cat((past_k, k), 1), torch.cat((past_v, v), 1)
                heads = functional.scaled_dot_product_attention(q, k, v)
                x = x + out(heads.transpose(0, 1).reshape(-1, 192))
                state += [k, v]
            return x, *state

    caches = {name: torch.randn(12, 3, 16) for name in ("k0", "v0", "k1", "v1")}
    dynamic = {"x": {0: "seq"}} | {name: {1: "cache"} for name in caches}

    def made() -> "alula.Program":
        torch.manual_seed(0)
        inputs = {"x": torch.randn(5, 48)} | caches
        return alula.compile(trained(Heads()), inputs, dynamic, {"seq": (1, 40), "cache": (0, 40)})

    large = made()
    monkeypatch.setattr(program, "roll", lambda *arguments: roll(*arguments[:3], len(large.words) * 85 // 100))
    small = made()
    assert len(small.words) <= len(large.words) * 85 // 100
    result = small.verify("rtl", seq=[1, 33], cache=[0, 20])
    assert result["bit_exact"] and result["cycle_exact"]
