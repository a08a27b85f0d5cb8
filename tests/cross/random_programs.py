"""Random legal programs of the whole machine for `tiny`: loops, branches, scalars from memory, tokens, every unit.

Instructions that have something to do with each other are ordered by tokens, and some others too, so a program has no
race: every executor must leave the same memory. Between blocks of work a window of every buffer is stored.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from hw.spec.config import BEAT_BYTES
from hw.spec.isa import ARGUMENT_REGISTERS, FIELDS, Dst, Fin, Instruction, Op, Reduce, Row, Src, StMode, Unit
from sim.memory_image import MemoryImage
from tests.cross.random_steps import (
    CACHE,
    IDENTITY,
    M32,
    RAW,
    RAW_BEATS,
    ROM,
    ROM_BEATS,
    SHARED,
    TINY,
    WINDOWS,
    Step,
    Steps,
    copy,
    rom,
    step,
)

FIRST_FREE, LAST_FREE = 16, 27
"""Registers of random scalar code; r28 .. r31 are the generator's."""
COUNT, VALUE = 28, 29
MAX_DEPTH = 3
"""Of loops in a block, which itself may be inside of one."""
ALL = (1 << len(Unit)) - 1
DUMP_BEATS = 2048
"""At most, of one program: `dumps` times a window of every buffer."""
SCALAR_OPS = (Op.ADDI, Op.ADD, Op.SUB, Op.MUL, Op.SHLI, Op.SHRI, Op.MIN, Op.MAX)
IMMEDIATE_OPS = (Op.ADDI, Op.SHLI, Op.SHRI)
BRANCHES = (Op.BEQ, Op.BNE, Op.BLTU, Op.BGEU)


@dataclass
class RandomProgram:
    """A program under construction. Its stores of windows go to aux beats from `dump` on."""

    seed: int
    blocks: int = 2
    steps: int = 12
    dump: int = 8192
    streams_at: int = 16384
    words: list[int] = field(default_factory=list)
    shadow: dict[tuple[Unit, str], int | None] = field(default_factory=dict)
    """What descriptor fields hold, None where loops and branches leave it open."""
    issued: int = 0

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.source = Steps(self.rng, self.streams_at)
        self.arguments = [self.rng.getrandbits(32) >> self.rng.choice([0, 16, 28]) for _ in range(ARGUMENT_REGISTERS)]
        self.shadow = {(unit, name): 0 for unit in Unit for name in FIELDS[unit]}
        self._fill_buffers()
        for _ in range(self.blocks):
            if self.rng.random() < 0.75:
                self._work()
            else:
                self._scalar_block()
            self.add(Op.FENCE, imm=ALL)
        self._dump()
        self.add(Op.HALT)

    # --- words

    def add(self, op: Op, a: int = 0, b: int = 0, c: int = 0, imm: int = 0) -> int:
        self.words.append(Instruction(op, int(a), int(b), int(c), int(imm) & M32).encode())
        return len(self.words) - 1

    def target(self, at: int) -> None:
        """The instruction at this address jumps to what comes next."""
        self.words[at] = (self.words[at] & M32) | len(self.words) << 32

    def issue(self, work: Step, wait: int = 0, signal: int = 0) -> None:
        """Sets the fields that are not what they should be, sometimes relative to an argument."""
        for name, value in work.fields.items():
            if self.shadow[work.unit, name] != value:
                self.shadow[work.unit, name] = value
                register = self.rng.randint(1, ARGUMENT_REGISTERS) if self.rng.random() < 0.3 else 0
                base = self.arguments[register - 1] if register else 0
                self.add(Op.SET, work.unit << 5 | FIELDS[work.unit].index(name), register, imm=value - base)
        self.issued += 1
        self.add(Op.ISSUE, work.unit, wait, signal)

    def one_after_the_other(self, steps: list[Step]) -> None:
        for each in steps:
            self.issue(each)
            if each.unit != Unit.RD:  # it may wait for its MX
                self.add(Op.FENCE, imm=ALL)

    # --- blocks

    def _fill_buffers(self) -> None:
        base = self.source.base
        granules, entries = WINDOWS["pb"], WINDOWS["rs"]
        absmax = copy(Src.P, Dst.NONE, base["pb"], 0, 1, reduce=Reduce.ABSMAX, fin=Fin.QRECIP)
        absmax.fields |= {"n_mid": entries, "p_mid": 1, "w": base["rs"], "w_mid": 1}
        self.one_after_the_other(
            [
                step(Unit.LD, {"addr": ROM, "n_outer": 1, "n_inner": granules, "dst": base["pb"]}),
                copy(Src.P, Dst.VB, base["pb"], base["vb"], granules),
                copy(Src.P, Dst.OB, base["pb"], base["ob"], granules),
                copy(Src.P, Dst.OBL, base["pb"], base["ob"] + granules, WINDOWS["ob"] - granules),
                absmax,
            ]
        )

    def _dump(self) -> None:
        """Stores the windows of all buffers, OB's through MX and blocks of ones on the diagonal."""
        base, steps = self.source.base, []
        sb = base["sb"]

        def stored(n: int) -> None:
            f = {"mode": StMode.LIN, "addr": self.dump, "src": sb, "n_tok": 1, "n_head": 1, "n_gran": n}
            steps.append(step(Unit.ST, f))
            self.dump += n

        stored(WINDOWS["sb"])
        for source, buffer in ((Src.A, "ab"), (Src.P, "pb"), (Src.V, "vb")):
            steps.append(copy(source, Dst.SB, base[buffer], sb, WINDOWS[buffer]))
            stored(WINDOWS[buffer])
        for kind in (Row.RAW, Row.FIN):
            steps.append(copy(Src.R0, Dst.SB, base["rs"], sb, WINDOWS["rs"], row0=kind))
            stored(WINDOWS["rs"])
        for part in range(0, WINDOWS["ob"], TINY.acc_rows):
            f = {
                "act": base["ob"] + part,
                "act_stride": 1,
                "n_rows": TINY.acc_rows,
                "kb": 1,
                "ob": 1,
                "n_outer": 1,
                "dst": base["ab"],
                "dst_stride": TINY.units,
            }
            granules = TINY.acc_rows * TINY.units
            steps += [
                step(Unit.RD, {"addr": IDENTITY, "n_outer": 1, "n_inner": 4}),
                step(Unit.MX, f),
                copy(Src.A, Dst.SB, base["ab"], sb, granules),
            ]
            stored(granules)
        self.one_after_the_other(steps)

    def _work(self) -> None:
        """Steps of all units; the instructions of one product stay in order, others come between them."""
        rng, source = self.rng, self.source
        items: list[Step | Callable[[], object]] = []
        pending: list[Step] = []
        while len(items) < self.steps:
            kind = rng.random()
            if pending and kind < 0.5:
                items.append(pending.pop(0))
                continue
            kind = rng.random()
            if kind < 0.18:
                items += source.load()
            elif kind < 0.36:
                items += source.store(channels=not pending)
            elif kind < 0.66:
                items += source.vector()
            elif kind < 0.9:
                pending += [] if pending else source.product()
            else:
                items.append(self._some_scalars if kind < 0.95 else self._load_scalar)
        self._ordered([*items, *pending])

    def _ordered(self, items: list) -> None:
        """Issues the steps with the tokens that they need, and a few that they do not."""
        tokens = Tokens([item for item in items if isinstance(item, Step)], self.rng)
        place = 0
        for item in items:
            if not isinstance(item, Step):
                item()
                continue
            self.issue(item, tokens.wait[place], tokens.signal[place])
            place += 1
            if self.rng.random() < 0.04:
                # While rounds are to be taken by an MX that comes later, RD and MX may not end.
                mask = self.rng.randrange(1 << len(Unit))
                open_mask = ~(1 << Unit.RD | 1 << Unit.MX) if tokens.open_after(place) else ALL
                self.add(Op.FENCE, imm=mask & open_mask)

    # --- scalar code

    def _free(self) -> int:
        return self.rng.randint(FIRST_FREE, LAST_FREE)

    def _some_scalars(self) -> None:
        for _ in range(self.rng.randint(1, 4)):
            op = self.rng.choice(SCALAR_OPS)
            c = 0 if op in IMMEDIATE_OPS else self.rng.randint(0, LAST_FREE)
            a, b = self.rng.choice([0, self._free()]), self.rng.randint(0, LAST_FREE)
            self.add(op, a, b, c, self.rng.getrandbits(32))

    def _load_scalar(self) -> None:
        self.add(Op.LDS, self._free(), imm=(ROM + self.rng.randrange(ROM_BEATS)) * 16 + self.rng.randrange(16))

    def _branch(self) -> None:
        at = self.add(self.rng.choice(BRANCHES), 0, self.rng.randint(0, LAST_FREE), self.rng.randint(0, LAST_FREE))
        self._some_scalars()
        self.target(at)

    def _loop(self, depth: int) -> None:
        """0 to 3 times, as a register has it."""
        self.add(Op.SHRI, COUNT, self._free(), imm=30)
        at = self.add(Op.LOOP, b=COUNT)
        self._piece(depth + 1)
        self.target(at)
        self.add(Op.ENDL)

    def _piece(self, depth: int) -> None:
        for _ in range(self.rng.randint(1, 3)):
            kind = self.rng.random()
            if kind < 0.35:
                self._some_scalars()
            elif kind < 0.5:
                self._branch()
            elif kind < 0.6:
                self._load_scalar()
            elif kind < 0.8 and depth < MAX_DEPTH:
                self._loop(depth)
            else:
                self._store_where_a_register_says()

    def _store_where_a_register_says(self) -> None:
        """An ST, of which registers choose the address; sometimes an LD fetches it again, through VU to another ST."""
        self._issue_store(self.rng.randint(1, 3), 0, 0)
        self.add(Op.FENCE, imm=ALL)
        if self.rng.random() < 0.5:
            granule = self.source.base["pb"] + self.rng.randrange(WINDOWS["pb"] - 4)
            self._issue_whole(step(Unit.LD, {"n_outer": 1, "n_inner": 2, "dst": granule, "kind": 1}), 0, 1 << Unit.VU)
            target = self.source.base["sb"] + self.rng.randrange(WINDOWS["sb"] - 4)
            self._issue_whole(copy(Src.P, Dst.SB, granule, target, 2), 1 << Unit.LD, 1 << Unit.ST)
            self._issue_store(1, 1 << Unit.VU, 0)
            self.add(Op.FENCE, imm=ALL)

    def _issue_store(self, granules: int, wait: int, signal: int) -> None:
        source = self.source.base["sb"] + self.rng.randrange(WINDOWS["sb"] - 4)
        f = {"mode": StMode.LIN, "src": source, "n_tok": 1, "n_head": 1, "n_gran": granules}
        self._issue_whole(step(Unit.ST, f), wait, signal)

    def _issue_whole(self, work: Step, wait: int, signal: int) -> None:
        """Sets every field, because nobody knows what loops left; the address is a register's and some more."""
        self.add(Op.SHRI, VALUE, self._free(), imm=self.rng.choice([25, 26, 27]))
        for name, value in work.fields.items():
            index = work.unit << 5 | FIELDS[work.unit].index(name)
            if name == "addr":
                self.add(Op.SET, index, VALUE, imm=SHARED + self.rng.randrange(300))
            else:
                self.add(Op.SET, index, imm=value)
            self.shadow[work.unit, name] = None
        self.issued += 1
        self.add(Op.ISSUE, work.unit, wait, signal)

    def _scalar_block(self) -> None:
        self._piece(0)
        for register in self.rng.sample(range(FIRST_FREE, LAST_FREE + 1), 4):
            self.add(Op.ADD, self._free(), register, self._free())
            self._store_where_a_register_says()


class Tokens:
    """Wait and signal masks of steps in order, so that each starts when what it needs has ended."""

    def __init__(self, steps: list[Step], rng: random.Random):
        self.steps, self.rng = steps, rng
        self.wait, self.signal = [0] * len(steps), [0] * len(steps)
        self.last_product = {each.group: i for i, each in enumerate(steps) if each.unit == Unit.MX}
        self._before: dict[Unit, list[int]] = {unit: [] for unit in Unit}
        self._awaited: dict[tuple[Unit, Unit], int] = {}
        """The last step of a producer that a consumer has waited for."""
        for i, each in enumerate(steps):
            for producer in Unit:
                if producer != each.unit:
                    self._join(producer, i)
            self._before[each.unit].append(i)

    def open_after(self, n: int) -> bool:
        """Whether behind the first n steps rounds are read that an MX among the others takes."""
        reads = (each.group for each in self.steps[:n] if each.unit == Unit.RD)
        return any(self.last_product[group] >= n for group in reads)

    def _join(self, producer: Unit, i: int) -> None:
        consumer = self.steps[i].unit
        done = self._awaited.get((producer, consumer), -1)
        needed = self._superfluous(producer, i, done) if producer == Unit.RD else self._needed(producer, i)
        later = [j for j in self._before[producer] if j > done]
        if needed <= done and producer != Unit.RD and later and self.rng.random() < 0.12:
            needed = self.rng.choice(later)
        if needed > done:
            self.wait[i] |= 1 << producer
            self.signal[needed] |= 1 << consumer
            self._awaited[producer, consumer] = needed

    def _needed(self, producer: Unit, i: int) -> int:
        """The last step of the producer that touches the same, -1 if none does."""
        mine = self.steps[i]
        for j in reversed(self._before[producer]):
            its = self.steps[j]
            if mine.writes & (its.reads | its.writes) or mine.reads & its.writes:
                return j
        return -1

    def _superfluous(self, producer: Unit, i: int, done: int) -> int:
        """What a reader reads is its products' (they read it, too), so nobody need wait for one; but some do."""
        if self.rng.random() >= 0.1:
            return -1
        ended = [j for j in self._before[producer] if j > done and not self.open_after(i)]
        return self.rng.choice(ended) if ended else -1


def put_data(memory: MemoryImage, seed: int) -> None:
    """What every program reads: numbers in aux, random blocks and the diagonal in the channels."""
    generator = np.random.default_rng(seed)
    memory.write(TINY.aux_port, ROM * BEAT_BYTES, rom(seed))
    for unit in range(TINY.units):
        memory.write(unit, RAW * BEAT_BYTES, generator.integers(0, 256, RAW_BEATS * BEAT_BYTES, dtype=np.uint8))
        memory.write(unit, IDENTITY * BEAT_BYTES, np.eye(16, dtype=np.uint8))
        memory.write(unit, CACHE * BEAT_BYTES, generator.integers(0, 256, 700 * BEAT_BYTES, dtype=np.uint8))


def put_streams(memory: MemoryImage, program: RandomProgram) -> None:
    for f, data in program.source.streams:
        for unit in range(TINY.units):
            for row, beats in enumerate(np.frombuffer(data[unit], np.uint8).reshape(f["n_outer"], -1)):
                memory.write(unit, (f["addr"] + row * f["stride"]) * BEAT_BYTES, beats)
