"""What kernels of one entry point share: builder, geometry, regions, records and the registers of the current tile."""

from dataclasses import dataclass, field
from typing import Any

from hw.spec.config import Config
from hw.spec.isa import LdKind, Op
from hw.spec.timing import accumulator_places
from hw.spec.weights import group_steps

from ..geometry import Geometry
from ..ir import Attention, Norm, linears
from ..layout import TABLE, Record, Streams, Table
from .builder import At, Builder, Reg, Rows, Value
from .expr import Expr, Reduction, run
from .regions import Region

POINTERS = ("params", "cache", "scales")
"""Records that pointers walk over, layer by layer."""


GROUPED_ROWS, ROWS_BESIDE_WRITES = 16, 32
"""Rows that a weight with sparse blocks multiplies at a time, for which it is read again and again: few, so that little
is left to drain behind the last; enough that a channel has time for it, a third of a beat a cycle at most. The second
number is for the projections beside which keys or values are written to the same channels."""


@dataclass(frozen=True)
class Turns:
    """A tile's rows, some at a time: `n` times `rows`, but `last` (0: as many) the last time."""

    rows: Value
    n: Value = 1
    last: Value = 0


def grouped_rows(config: Config, group: int, most: int) -> int:
    """Rows at a time, a power of two up to `most`: the accumulators hold those of two groups, or at least of one."""
    fitting = [(accumulator_places(1 << i, config.acc_rows), 1 << i) for i in range(most.bit_length())]
    for groups in (2, 1):
        found = [rows for places, rows in fitting if places >= groups * group]
        if found:
            return max(found)
    raise AssertionError(f"{config.name}: the accumulators hold no group of {group} steps")


@dataclass
class Context:
    """`m` tokens are worked on; their residual rows start at word `x` of region X, their maxima at entry `a` of A."""

    b: Builder
    geo: Geometry
    regions: dict[str, Region]
    width: int
    m: Any = 1
    x: Any = 0
    a: Any = 0
    records: dict[str, Record] = field(default_factory=dict)
    pointers: dict[str, Any] = field(default_factory=dict)
    """Beat addresses of the current layer's params, cache and scales records, and of the next weight stream."""
    shifts: list[Reg] = field(default_factory=list)
    """The linear layers' G bytes, four a register; contexts of a layer's tiles share the list."""
    linears: list[str] = field(default_factory=list)
    """Linear layers in the order of the record's table."""
    streams: list[list[str]] = field(default_factory=list)
    """And by stream."""
    weights: Streams | None = None
    """How these streams are divided; None where the record is the head's."""
    beside_writes: set[str] = field(default_factory=set)
    """Linear layers that work while keys and values are written."""
    prefetched: str = ""
    """The linear layer whose stream is read and not used yet."""
    reads_ahead: bool = False
    """Whoever emits the operators reads their streams."""
    operand: str = "XQ"
    """OB region that holds what the next residual linear layer multiplies."""

    def __getitem__(self, name: str) -> Region:
        return self.regions[name]

    # --- operands --------------------------------------------------------------------------------------

    def residual(self) -> At:
        return At(self["X"], self.geo.words(self.width), 0, self.x)

    def maxima(self) -> Rows:
        """Entries of the residual rows' absolute maxima."""
        return Rows(self["A"], 1, 0, self.a)

    def rows(self, region: str, width: int) -> At:
        """Rows of `width` values in a VB region (or blocks in OB)."""
        step = self.geo.granules(width) if self[region].buffer == "OB" else self.geo.words(width)
        return At(self[region], step)

    def parameter(self, name: str) -> At:
        return At(self["P:" + name])

    # --- passes ----------------------------------------------------------------------------------------

    def run(
        self,
        width: int,
        value: Expr | Reduction,
        *,
        heads: int = 1,
        to: At | None = None,
        reduce: Reduction | None = None,
    ) -> None:
        """One pass over the tile's rows of `heads` times `width` values."""
        run(self.b, (self.m, heads, self.geo.words(width)), width, value, to=to, reduce=reduce)

    # --- loads -----------------------------------------------------------------------------------------

    def load_parameter(self, name: str) -> None:
        """A field of the parameter record into its PB region."""
        record = self.records["params"]
        self.b.operator = name.rpartition(".")[0]
        self.b.load(
            self.pointers["params"] + record[name], self["P:" + name], record.sizes[name], kind=LdKind.PARAMETERS
        )

    def load_parameters(self, op) -> None:
        """Everything the record holds for one fused operator."""
        names = [op.name] if isinstance(op, Norm) else [linear.name for linear in linears([op])]
        for name in names:
            for field_name in (f"{name}.words", f"{name}.bias"):
                if field_name in self.records["params"].sizes:
                    self.load_parameter(field_name)

    def table_address(self, word: int = 0) -> Reg:
        """4-byte address of a word of the record's table, in a register."""
        pointer, target = self.pointers["params"], self.b.reg()
        if isinstance(pointer, int):
            self.b.set(target, pointer * 16)
        else:
            self.b.shift(target, pointer, 4)
        return target + (16 * self.records["params"][TABLE] + word)

    @property
    def table(self) -> Table:
        return Table(len(self.linears), len(self.streams))

    def use_linears(self, ops: list, weights: Streams | None) -> None:
        """The operators that the record's table is about, and their streams."""
        self.linears = [op.name for op in linears(ops)]
        self.streams = [[op.name for op in stream] for stream in self.geo.streams(ops)]
        self.weights = weights
        attention = [op for op in ops if isinstance(op, Attention)]
        self.beside_writes = {linear.name for op in attention for linear in (op.q, op.v)}

    def stream_of(self, linear: str) -> int:
        """Number of the stream that holds its rows."""
        return next(i for i, names in enumerate(self.streams) if linear in names)

    def load_shifts(self) -> None:
        """The linear layers' G bytes into registers."""
        address = self.table_address()
        self.shifts[:] = (self.b.load_word(self.b.reg(), address + word) for word in range(self.table.shift_words))

    def adjust(self, linear: str) -> Reg:
        """G of a linear layer in a register, where ctl1 has adj2."""
        word, byte = self.table.shift(self.linears.index(linear))
        target = self.b.shift(self.b.reg(), self.shifts[word], 24 - 8 * byte)
        self.b.shift(target, target, -24)
        return self.b.shift(target, target, 8)

    # --- weights ---------------------------------------------------------------------------------------

    def seek(self, name: str) -> None:
        """Point at the stream of a linear layer; the following ones lie behind it in the table's order."""
        word = self.table.address(self.stream_of(name))
        self.b.load_word(self.pointers["weights"], self.table_address(word))

    def prefetch(self, op) -> None:
        """Read the first weight stream of an operator (which is the next one) ahead of its use."""
        name = linears([op])[0].name
        if self.prefetched != name:
            self.stream(name)
        self.prefetched = name

    def grouped(self, name: str) -> bool:
        """Whether the steps of a linear layer's stream come in groups."""
        return self.weights is not None and self.weights.grouped[self.stream_of(name)]

    def group(self, name: str, steps: int) -> int:
        """Steps of a group, where one matrix instruction multiplies so many of a linear layer; 0 without groups."""
        return group_steps(steps) if self.grouped(name) else 0

    def turns(self, name: str, steps: int) -> Turns:
        """How the tile's rows are multiplied by so many steps of a linear layer."""
        b, m, group = self.b, self.m, self.group(name, steps)
        if not group or m == 1:
            return Turns(m)
        most = ROWS_BESIDE_WRITES if name in self.beside_writes else GROUPED_ROWS
        rows = grouped_rows(self.geo.config, group, most)
        if isinstance(m, int):
            times = -(-m // rows)
            return Turns(min(rows, m), times, m - (times - 1) * rows if times > 1 else 0)
        log2, n, last = rows.bit_length() - 1, b.reg(), b.reg()
        b.shift(n, b.set(n, m + (rows - 1)), -log2)
        b.shift(last, b.set(last, n + -1), log2)
        return Turns(rows, n, b.alu(Op.SUB, last, m, last))

    def stream(self, name: str, section: int = 0) -> None:
        """Read a section of a linear layer's weight stream, which is the next one, unless that was done; a linear layer
        that comes behind another in its stream has further sections only."""
        number = self.stream_of(name)
        if self.reads_ahead or (section == 0 and name != self.streams[number][0]):
            return
        prefetched, self.prefetched = self.prefetched, ""
        if prefetched == name and section == 0:
            return
        assert self.weights is not None
        sections, pointer, beats = self.weights.steps[number], self.pointers["weights"], self.b.reg()
        turns = self.turns(name, sections[section])
        which = self.weights.length_of(number, section)
        self.b.load_word(beats, self.table_address(self.table.length(which)))
        self.b.operator = name
        self.b.read(pointer, beats, rows=turns.n)
        self.b.alu(Op.ADD, pointer, pointer, beats)


def advance_layer(ctx: Context) -> None:
    """Pointers to the next layer."""
    ctx.b.fence_if_needed()
    for name in POINTERS:
        ctx.b.set(ctx.pointers[name], ctx.pointers[name] + ctx.records[name].beats)
