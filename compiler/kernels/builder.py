"""The assembler that kernels write with: registers, loops, unit instructions, tokens."""

from collections import Counter
from collections.abc import Iterable
from contextlib import contextmanager
from dataclasses import dataclass

from hw.spec import isa
from hw.spec.config import Config
from hw.spec.errors import InternalError, UserError
from hw.spec.isa import Instruction, Op, Unit

from . import registers, tokens
from .bounds import Bounds, Most, reach, require_room
from .regions import Region

FENCED = isa.ALL_UNITS & ~(1 << Unit.RD)
"""RD may run ahead of a fence: only cache reads depend on stores, and those follow a fence or a token."""


@dataclass(frozen=True)
class Reg:
    """A virtual register, plus a constant: what SET and ADDI take. Up to 15 they are the program's arguments."""

    index: int
    plus: int = 0

    def __add__(self, constant: int) -> "Reg":
        return Reg(self.index, self.plus + constant)

    __radd__ = __add__


Value = int | Reg


@dataclass(frozen=True)
class At:
    """A vector operand: word (block in OB) `offset` of `region`, strides of an outer and a middle step."""

    region: Region
    out: Value = 0
    mid: Value = 0
    offset: Value = 0

    def address(self) -> Value:
        base = self.region.base if self.region.buffer == "OB" else self.region.word
        return self.offset + base


@dataclass(frozen=True)
class Rows:
    """Row-scalar entries: first entry and the strides."""

    region: Region
    out: Value = 0
    mid: Value = 0
    offset: Value = 0

    def address(self) -> Value:
        return self.offset + self.region.base

    @property
    def raw(self) -> "Scalar":
        return Scalar(self, isa.Row.RAW)

    @property
    def scale(self) -> "Scalar":
        return Scalar(self, isa.Row.SCALE)

    @property
    def fin(self) -> "Scalar":
        return Scalar(self, isa.Row.FIN)


@dataclass(frozen=True)
class Scalar:
    """One value a row: entries, and what is read of them."""

    entries: Rows
    kind: isa.Row


def _times(most: Most, factor: int) -> Most:
    return None if most is None else most * factor


class Builder:
    """Collects a program. Blocks between fences get their tokens when they are closed."""

    def __init__(self, config: Config, groups: bool = False) -> None:
        """groups: some weights are sparse, so that their streams come in groups of output steps."""
        self.config, self.groups = config, groups
        self.program: list[Instruction] = []
        self.block: list[tokens.Access] = []
        self._next = registers.FIRST_VIRTUAL
        """The next virtual register."""
        self._entries = {0}
        self._versions = Counter[int]()
        self._epoch = 0
        """How often control flow made every register's value unknown."""
        self._known: dict[tuple, tuple] = {}
        self._bounds = Bounds()
        self.operator = "program"
        """Which operator the next instructions are for; kernels set it, it means nothing to the machine."""
        self.operators: dict[int, str] = {}
        """pc of every ISSUE -> operator."""
        self.layer_loops: list[tuple[int, int]] = []
        """First pc in, and first pc behind, the body of every loop over layers."""
        self.ahead: set[int] = set()
        """pcs of ISSUEs that work for the layer behind the one in whose pass of the loop they are."""
        self._ahead = False

    # --- registers -------------------------------------------------------------------------------------

    def argument(self, index: int) -> Reg:
        """The register of the program's argument number `index`, from 1 on."""
        return Reg(index)

    def reg(self) -> Reg:
        """A new virtual register."""
        self._next += 1
        return Reg(self._next - 1)

    def new_entry(self) -> int:
        """Start another entry point, at which nothing is known of any register; returns its place."""
        self._known = {}
        self._bounds.forget()
        self._entries.add(len(self.program))
        return len(self.program)

    def emit(self, op: Op, a: int = 0, b: int = 0, c: int = 0, imm: int = 0) -> int:
        self.program.append(Instruction(op, a, b, c, imm))
        return len(self.program) - 1

    def _write(self, target: Reg, most: Most = None) -> int:
        """The register's number; from here on its value is at most `most`."""
        self._versions[target.index] += 1
        self._bounds[target.index] = most
        return target.index

    def declare(self, register: Reg, most: int) -> Reg:
        """The register's present value is at most `most`: what the host keeps to."""
        known = self._bounds[register.index]
        self._bounds[register.index] = most if known is None else min(known, most)
        return register

    def walks(self, register: Reg, most: int) -> None:
        """At a loop's start: the register grows from iteration to iteration, up to `most`."""
        self._bounds[register.index] = most

    def most(self, value: Value) -> Most:
        """Upper bound of a value."""
        return self._bounds.plus(value.index, value.plus) if isinstance(value, Reg) else value

    def set(self, target: Reg, value: Value) -> Reg:
        """target = value (a constant, a register, or register + constant)."""
        source = value if isinstance(value, Reg) else Reg(0, value)
        if source != target:
            self.emit(Op.ADDI, self._write(target, self.most(source)), source.index, 0, source.plus)
        return target

    def _reg(self, value: Value) -> int:
        """The number of a register that holds the value."""
        if value == 0:
            return 0
        if isinstance(value, Reg) and value.plus == 0:
            return value.index
        return self.set(self.reg(), value).index

    def alu(self, op: Op, target: Reg, left: Value, right: Value) -> Reg:
        """target = left op right; constants pass through registers of their own."""
        b, c = self._reg(left), self._reg(right)
        self.emit(op, self._write(target, self._bounds.alu(op, b, c)), b, c)
        return target

    def shift(self, target: Reg, source: Reg, amount: int) -> Reg:
        """target = source << amount, or >> when negative."""
        op = Op.SHLI if amount >= 0 else Op.SHRI
        b = self._reg(source)
        self.emit(op, self._write(target, self._bounds.shifted(b, amount)), b, 0, abs(amount))
        return target

    def scaled(self, source: Reg, factor: int, target: Reg | None = None) -> Reg:
        """source * factor, in a new register if in no other."""
        target = target or self.reg()
        if factor & (factor - 1) == 0:
            return self.shift(target, source, factor.bit_length() - 1)
        return self.alu(Op.MUL, target, source, factor)

    def load_word(self, target: Reg, word_address: Reg) -> Reg:
        """target = the aux word at a 4-byte address (LDS)."""
        self.emit(Op.LDS, self._write(target), word_address.index, 0, word_address.plus)
        return target

    # --- control ---------------------------------------------------------------------------------------

    def fence(self, units: int = FENCED) -> None:
        """Wait for the units; ends a basic block."""
        self.close()
        self.emit(Op.FENCE, imm=units)

    def close(self) -> None:
        """Place and verify the tokens of the block."""
        tokens.place(self.block)
        tokens.verify(self.block)
        for access in self.block:
            old = self.program[access.pc]
            self.program[access.pc] = Instruction(old.op, old.a, access.wait, access.signal, old.imm)
        self.block = []

    def label(self) -> int:
        """A place to branch back to. Values of the descriptors are unknown there."""
        self.fence_if_needed()
        self._known = {}
        return len(self.program)

    def fence_if_needed(self) -> None:
        if self.block:
            self.fence()

    @contextmanager
    def loop(self, count: Reg, free_running: bool = False):
        """Repeat the body `count` times (0 skips it); fenced on both ends.

        free_running: no fence between iterations, only after the last one; for bodies of RD and MX, which order
        themselves through the FIFOs.
        """
        ahead = {access.unit for access in self.block} <= {Unit.LD, Unit.RD}
        if free_running and ahead:
            self.close()  # loads go on during the loop; the fence behind it waits for them
        self.fence_if_needed()
        with self.repeat(count):
            yield
            if free_running and {access.unit for access in self.block} <= {Unit.RD, Unit.MX}:
                self.close()
            self.fence_if_needed()
        if free_running:
            self.fence()

    @contextmanager
    def layer_loop(self, count: Reg):
        """As `loop`; every pass of the body is one layer of the model."""
        with self.loop(count):
            first = len(self.program)
            yield
        self.layer_loops.append((first, len(self.program)))

    @contextmanager
    def for_next_layer(self):
        """What is issued here works for the next layer, ahead of a loop over layers for its first one."""
        self._ahead = True
        yield
        self._ahead = False

    @contextmanager
    def repeat(self, count: Reg):
        """The bare loop, without fences: for `running_ahead` bodies."""
        start = self.emit(Op.LOOP, b=count.index)
        self._known = {}
        self._epoch += 1
        with self._bounds.repeated(self.most(count)):
            yield
        self.program[start] = Instruction(Op.LOOP, 0, count.index, 0, self.emit(Op.ENDL))
        self._known = {}

    @contextmanager
    def running_ahead(self):
        """RDs and LDs inside a basic block, in loops if need be: they take no tokens.

        Nothing before them in the block may conflict with them; what follows finds LD's work done, as the sequencer
        waits for it at the end.
        """
        outer, self.block = self.block, []
        known = {key: state for key, state in self._known.items() if key[0] not in (Unit.LD, Unit.RD)}
        yield
        inner, self.block, self._known = self.block, outer, known
        if not {access.unit for access in inner} <= {Unit.LD, Unit.RD} or any(
            i.conflicts(o) for i in inner for o in outer if i.unit != o.unit
        ):
            raise InternalError("what runs ahead is more than reads, or needs what comes before it")
        if any(access.unit == Unit.LD for access in inner):
            self.emit(Op.FENCE, imm=1 << Unit.LD)

    def branch(self, op: Op, left: Value, right: Value, target: int) -> None:
        self.fence_if_needed()
        self.emit(op, 0, self._reg(left), self._reg(right), target)

    @contextmanager
    def alternatives(self):
        """Yields a function that jumps behind the block: each alternative but the last ends with it."""
        jumps: list[int] = []

        def leave() -> None:
            self.fence_if_needed()
            jumps.append(self.emit(Op.BEQ))

        with self._bounds.repeated():
            yield leave
        self.fence_if_needed()
        for at in jumps:
            self.program[at] = Instruction(Op.BEQ, 0, 0, 0, len(self.program))
        self._known = {}
        self._epoch += 1

    @contextmanager
    def unless(self, op: Op, left: Value, right: Value):
        """The body runs unless `left op right`."""
        self.fence_if_needed()
        with self.skipping(op, left, right):
            yield
            self.fence_if_needed()

    @contextmanager
    def skipping(self, op: Op, left: Value, right: Value):
        """As `unless`, without fences: for `running_ahead` bodies."""
        b, c = self._reg(left), self._reg(right)
        at = self.emit(op, 0, b, c)
        self._known = {}
        with self._bounds.skipped():
            yield
        self.program[at] = Instruction(op, 0, b, c, len(self.program))
        self._known = {}
        self._epoch += 1

    def halt(self, code: int = 0) -> None:
        self.close()
        self.emit(Op.HALT, imm=code)

    # --- units -----------------------------------------------------------------------------------------

    def _fields(self, unit: Unit, fields: dict[str, Value]) -> None:
        for name, value in fields.items():
            source = value if isinstance(value, Reg) else Reg(0, value)
            version = (self._versions[source.index], self._epoch) if source.index else ()
            state = (source.index, source.plus, *version)
            if self._known.get((unit, name)) != state:
                self._known[unit, name] = state
                self.emit(Op.SET, isa.field_code(unit, name), source.index, 0, source.plus)

    def issue(self, unit: Unit, fields: dict[str, Value], reads: Iterable[Region], writes: Iterable[Region]) -> None:
        self._fields(unit, fields)
        pc = self.emit(Op.ISSUE, unit)
        self.operators[pc] = self.operator
        if self._ahead:
            self.ahead.add(pc)
        self.block.append(tokens.Access(pc, unit, tuple(reads), tuple(writes)))

    def prepare(self, unit: Unit, fields: dict[str, Value]) -> None:
        """Set descriptor fields that several `issue`s leave as they are."""
        self._fields(unit, fields)

    def _require(
        self, region: Region, offset: Value, run: Value, *steps: tuple[Value, Value], each: int = 1, wide: int = 1
    ) -> None:
        """The access lies in its region. each: elements of what offset and strides count; wide: of what run does."""
        if not self._bounds.dead:
            need = reach(_times(self.most(run), wide), *((self.most(n), _times(self.most(s), each)) for n, s in steps))
            require_room(self.operator, region, _times(self.most(offset), each), need)

    def load(
        self,
        address: Value,
        region: Region,
        beats: Value,
        rows: Value = 1,
        stride: Value = 0,
        offset: Value = 0,
        row_stride: Value = 0,
        source: Region | None = None,
        kind: Value = isa.LdKind.ACTIVATIONS,
    ) -> None:
        """LD aux beats into PB at granule `offset` of the region; kind for the traffic counters."""
        self._require(region, offset, beats, (rows, row_stride))
        self.issue(
            Unit.LD,
            {
                "addr": address,
                "n_outer": rows,
                "n_inner": beats,
                "stride": stride,
                "dst": offset + region.base,
                "dst_stride": row_stride,
                "kind": kind,
            },
            (source,) if source else (),
            (region,),
        )

    def store(self, mode: isa.StMode, region: Region, target: Region, **fields: Value) -> None:
        """ST from SB granules of the region; fields as in hw.spec.isa, src relative to the region."""
        values = {
            "mode": mode,
            "addr": 0,
            "src": 0,
            "src_tok": 0,
            "src_head": 0,
            "pos": 0,
            "n_tok": 1,
            "n_head": 1,
            "n_gran": 1,
            "stride_tok": 0,
            "stride_head": 0,
            "stride_slot": 0,
            "stride_gran": 0,
            "kind": isa.StKind.ACTIVATIONS,
        } | fields
        self._require(
            region,
            values["src"],
            values["n_gran"],
            (values["n_tok"], values["src_tok"]),
            (values["n_head"], values["src_head"]),
        )
        values["src"] = values["src"] + region.base
        self.issue(Unit.ST, values, (region,), (target,))

    def read(
        self,
        address: Value,
        beats: Value,
        rows: Value = 1,
        stride: Value = 0,
        fmt: isa.StreamFormat = isa.StreamFormat.STREAM,
        source: Region | None = None,
    ) -> None:
        """RD a channel stream into the matrix units' FIFOs."""
        self.issue(
            Unit.RD,
            {"addr": address, "n_outer": rows, "n_inner": beats, "stride": stride, "fmt": fmt},
            (source,) if source else (),
            (),
        )

    def matmul(
        self,
        act: Region,
        out: Region,
        *,
        rows: Value,
        kb: Value,
        ob: Value,
        act_stride: Value,
        out_stride: Value,
        mode: isa.MxMode = isa.MxMode.SPLIT_N,
        act_offset: Value = 0,
        out_offset: Value = 0,
        times: Value = 1,
        act_out: Value = 0,
        out_out: Value = 0,
        last_rows: Value = 0,
        group: Value = 0,
        total: Value | None = None,
    ) -> None:
        """MX over the stream's ob x kb blocks, `times` times; strides in blocks (act) and granules (out).

        last_rows: of the last time, 0: as many; total: rows of all times, if they lie one behind the other; group:
        output steps of a group of the stream, 0: it has none.
        """
        split_k, units = mode == isa.MxMode.SPLIT_K, self.config.units
        walks: list[tuple[tuple[Value, Value], ...]] = [((rows, act_stride), (times, act_out))]
        walks.append(((rows, out_stride), (times, out_out)))
        if total is not None:
            walks = [((total, act_stride),), ((total, out_stride),)]
        self._require(act, act_offset, kb, *walks[0], wide=units if split_k else 1)
        self._require(out, out_offset, ob, *walks[1], wide=1 if split_k else units)
        # The fields of groups stay 0 in programs that have none.
        groups = {"n_last": last_rows, "group": group} if self.groups else {}
        self.issue(
            Unit.MX,
            {
                "act": act_offset + act.base,
                "act_stride": act_stride,
                "n_rows": rows,
                "kb": kb,
                "ob": ob,
                "dst": out_offset + out.base,
                "dst_stride": out_stride,
                "mode": mode,
                "n_outer": times,
                "act_out": act_out,
                "dst_out": out_out,
                **groups,
            },
            (act,),
            (out,),
        )

    def vu_pass(
        self,
        n: tuple[Value, Value, Value],
        length: Value,
        *,
        step: Value = 0,
        a: At | None = None,
        p: At | None = None,
        v: At | None = None,
        d: At | None = None,
        r0: Rows | None = None,
        r1: Rows | None = None,
        w: Rows | None = None,
        imm0: Value | None = None,
        imm1: Value | None = None,
        ctl1: Value | None = None,
        **control,
    ) -> None:
        """One vector pass over n = (outer, mid, words); control holds the names of CTL0 and CTL1."""
        if d is not None and "dst" not in control:
            control["dst"] = {"VB": isa.Dst.VB, "SB": isa.Dst.SB, "OB": isa.Dst.OB}[d.region.buffer]
        shifts = {k: control.pop(k) for k in ("adj1", "adj2", "sh3") if k in control}
        fields: dict[str, Value] = {
            "ctl0": isa.pack_bits(isa.CTL0, control),
            "ctl1": isa.pack_bits(isa.CTL1, shifts) if ctl1 is None else ctl1,
            "n_outer": n[0],
            "n_mid": n[1],
            "n_words": n[2],
            "len0": length,
            "len_step": step,
        }
        if imm0 is not None:
            fields["imm0"] = imm0
        if imm1 is not None:
            fields["imm1"] = imm1
        for name, operand in (("a", a), ("p", p), ("v", v), ("d", d), ("r0", r0), ("r1", r1), ("w", w)):
            if operand is not None:
                self._require_pass(operand, n, level=name == "w" and bool(control.get("level")))
                fields |= {name: operand.address(), f"{name}_out": operand.out, f"{name}_mid": operand.mid}
        self.issue(
            Unit.VU, fields, (o.region for o in (a, p, v) if o is not None), (d.region,) if d is not None else ()
        )

    def _require_pass(self, operand: "At | Rows", n: tuple[Value, Value, Value], level: bool) -> None:
        """An operand's accesses lie in its region. level: one entry an outer row."""
        region = operand.region
        steps = ((n[0], operand.out), (1 if level else n[1], operand.mid))
        if isinstance(operand, Rows):
            self._require(region, operand.offset, 1, *steps)
        elif region.buffer == "OB":
            self._require(region, operand.offset, n[2], *steps, wide=self.config.granules_per_word)
        else:
            self._require(region, operand.offset, n[2], *steps, each=region.per_word, wide=region.per_word)

    # --- result ----------------------------------------------------------------------------------------

    def assigned(self) -> list[Instruction]:
        """The program with registers of the machine."""
        self.close()
        return registers.assign(self.program, sorted(self._entries))

    def words(self, program: list[Instruction] | None = None) -> list[int]:
        """The program, encoded; UserError when it does not fit the instruction memory. program: what became of
        `assigned`, if anything did."""
        program = self.assigned() if program is None else program
        if len(program) > self.config.imem_instructions:
            raise UserError(
                f"the program has {len(program)} instructions, configuration {self.config.name} "
                f"holds {self.config.imem_instructions}: choose a larger configuration"
            )
        return [instruction.encode() for instruction in program]
