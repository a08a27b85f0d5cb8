"""The emitter: a phase's instructions as words, with registers for what depends on lengths and on the tile."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from hw.spec.config import Config
from hw.spec.errors import InternalError
from hw.spec.isa import ARGUMENT_REGISTERS, Op
from hw.spec.weights import cache_slots

from ..graph.ir import Dim, Length, Range
from ..integer.steps import Layout
from ..kernels.builder import At, Builder, Reg, Rows, Value
from ..kernels.regions import Region
from .body import Body, Buffer, Home, Issue
from .place import places


@dataclass(frozen=True)
class Scores:
    """Lengths of a row of scores: keys, slots of the channels, granules and vector words."""

    keys: Value
    slots: Value
    granules: Value
    words: Value


class Arguments:
    """The lengths that a program is started with, one a register."""

    def __init__(self, ranges: Mapping[str, Range]) -> None:
        self.ranges = ranges
        self.names: list[Length] = []

    def index(self, length: Length) -> int:
        """The argument register of a length, from 1 on."""
        if length not in self.names:
            self.names.append(length)
        if len(self.names) > ARGUMENT_REGISTERS:
            raise InternalError(
                f"a program has {ARGUMENT_REGISTERS} arguments, {len(self.names)} lengths are asked for"
            )
        return self.names.index(length) + 1

    def most(self, dim: Dim) -> int:
        """The largest value of a length."""
        return dim.at({name: r.most for name, r in self.ranges.items()}) if isinstance(dim, Length) else int(dim)


class Emitter:
    """Writes phases into one builder. During a tile, `m` is its number of rows and `at` its first row."""

    def __init__(self, config: Config, arguments: Arguments, builder: Builder) -> None:
        self.config, self.arguments, self.b = config, arguments, builder
        self.m: Value = 1
        self.at: Value = 0
        self.rows: Dim = 1
        self.regions: dict[Buffer, Region] = {}
        self._scores: dict[int, Scores] = {}
        """Lengths of rows of scores that the tile has in registers, by the register of the keys."""

    # --- values ------------------------------------------------------------------------------------------

    def dim(self, dim: Dim) -> Value:
        """A length as a constant or in its argument register."""
        if not isinstance(dim, Length):
            return int(dim)
        return self.b.declare(self.b.argument(self.arguments.index(dim)), self.arguments.most(dim))

    def times(self, value: Value, factor: int) -> Value:
        """value * factor."""
        if factor == 0:
            return 0
        if isinstance(value, int):
            return value * factor
        return value if factor == 1 else self.b.scaled(value, factor)

    def product(self, left: Value, right: Value) -> Value:
        """left * right."""
        if isinstance(left, int) or isinstance(right, int):
            value, factor = (right, left) if isinstance(left, int) else (left, right)
            return self.times(value, factor)  # type: ignore[arg-type]
        return self.b.alu(Op.MUL, self.b.reg(), left, right)

    def sum(self, left: Value, right: Value) -> Value:
        if isinstance(left, int):
            return right + left
        if isinstance(right, int):
            return left + right
        return self.b.alu(Op.ADD, self.b.reg(), left, right)

    def row_address(self, base: int, beats: int) -> Value:
        """The beat of the tile's first row in rows of memory."""
        return self.times(self.at, beats) + base

    def score_lengths(self, keys: Reg, most: int) -> "Scores":
        """Registers with the slots of so many keys, and the granules and words of a row of their scores."""
        b, units, each = self.b, self.config.units, self.config.granules_per_word
        if keys.index not in self._scores:
            slots = b.set(b.reg(), keys + (16 * units - 1))
            b.shift(slots, slots, 1 - (16 * units).bit_length())
            granules = b.scaled(slots, units)
            words = b.shift(b.reg(), granules, 1 - each.bit_length())
            limit = cache_slots(most, units)
            for register, bound in ((slots, limit), (granules, limit * units), (words, limit * units // each)):
                b.declare(register, bound)
            self._scores[keys.index] = Scores(keys, slots, granules, words)
        return self._scores[keys.index]

    # --- operands ----------------------------------------------------------------------------------------

    def region(self, buffer: Buffer) -> Region:
        return self.regions[buffer]

    def operand(self, home: Home, heads: bool) -> At:
        """A value's rows; heads: with a step from group to group."""
        region = self.region(home.buffer)
        if home.heads_first:
            blocks = home.group
            return At(region, blocks, self.times(self.m, blocks))
        return At(region, home.row, home.group if heads else 0)

    def entries(self, home: Home) -> Rows:
        return Rows(self.region(home.buffer), home.row, home.group)

    def vector_pass(
        self,
        rows: Dim,
        layout: Layout,
        homes: Mapping[str, Home],
        to: Home | None,
        entry: Home | None,
        fields: dict[str, Any],
    ) -> None:
        """One pass over the tile's rows; see `Former.write`."""
        words = -(-layout.size // self.config.lanes)
        control, heads = dict(fields), layout.groups > 1
        operands: dict[str, Any] = {
            port: self.entries(home) if port in ("r0", "r1") else self.operand(home, heads)
            for port, home in homes.items()
        }
        if to is not None:
            operands["d"] = self.operand(to, heads)
        if entry is not None:
            operands["w"] = self.entries(entry)
        self.b.vu_pass((1 if rows == 1 else self.m, layout.groups, words), layout.size, **operands, **control)

    # --- phases ------------------------------------------------------------------------------------------

    def start_phase(self, repeated: bool) -> int:
        """The place of the next phase's first instruction. repeated: it does not build on fields that others have set,
        so that those of repeated layers are the same instructions."""
        return self.b.label() if repeated else len(self.b.program)

    def phase(self, rows: Dim, body: Body) -> None:
        """The loop over tiles, or the one tile where all rows fit in it."""
        self.regions, self.rows = places(body, self.config), rows
        count, b = self.dim(rows), self.b
        self._issue(body.before)
        self._tiles(count, rows, body)
        self._issue(body.behind)
        b.fence_if_needed()

    def straight(self, body: Body) -> None:
        """Instructions that know nothing of tiles."""
        self.regions, self.m, self.at = places(body, self.config), 1, 0
        self._issue(body.issues)
        self.b.fence_if_needed()

    def each_row(self, buffer: Buffer, words: int, emit: Callable[[Value], None]) -> None:
        """Code of the vector unit for every row of the tile, which lie in `buffer`; emit gets the row's word."""
        b = self.b
        row = b.set(b.reg(), 0)
        b.fence_if_needed()
        count = self.m if isinstance(self.m, Reg) else b.set(b.reg(), self.m)
        with b.repeat(count):
            b.walks(row, self.regions[buffer].size // self.config.granules_per_word - words)
            emit(row)
            b.close()
            b.set(row, row + words)

    def _tiles(self, count: Value, rows: Dim, body: Body) -> None:
        b = self.b
        if self.arguments.most(rows) <= body.tile:
            self.m, self.at = count, 0
            self._issue(body.issues)
            return
        left, at, m = b.set(b.reg(), count), b.set(b.reg(), 0), b.reg()
        start = b.label()
        self.m, self.at = b.alu(Op.MIN, m, left, body.tile), at
        self._issue(body.issues)
        b.fence_if_needed()
        b.set(at, self._plus(at, m))
        b.alu(Op.SUB, left, left, m)
        b.branch(Op.BNE, left, 0, start)

    def _plus(self, at: Reg, m: Reg) -> Reg:
        return self.b.alu(Op.ADD, at, at, m)

    def _issue(self, issues: list[Issue]) -> None:
        self._scores = {}
        for issue in issues:
            self.b.operator = issue.operator
            issue.emit(self)
