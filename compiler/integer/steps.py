"""Steps: the operators of the integer level, each with its meaning on NumPy arrays.

A value has rows, and every row has `groups` groups of `size` channels (the heads of an attention, mostly 1 group). Four
kinds of values:

    wide    int64[rows, groups, size] that hold int32; real value = integer / 2**16 / mult
    int8    int8[rows, groups, size]
    entry   (raw, fin), each int64[rows, groups or 1]: the row scalars of `hw.spec.vector`
    state   `Held`: keys or values in the form in which the matrix units stream them

Lane steps are what one slot of a vector pass does, in the words of `hw.spec.vector.lane`: rounding and saturation are
those of the slot, so that it makes no difference to any bit how steps are packed into passes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hw.spec import attention as at
from hw.spec import numerics as nm
from hw.spec import vector
from hw.spec.errors import InternalError
from hw.spec.isa import Fin, Func, Reduce, Row
from hw.spec.rows import matmul

from ..graph.ir import Dim, Length

Array = np.ndarray


@dataclass(frozen=True)
class Layout:
    """The channels of a row: lane i of a group holds its channel order[i] (None: channel i)."""

    groups: int
    size: int
    order: tuple[int, ...] | None = None

    @property
    def width(self) -> int:
        return self.groups * self.size

    def arrange(self, channels: Array) -> Array:
        """[..., groups * size] in the module's order -> [..., groups, size] in the machine's."""
        split = channels.reshape(*channels.shape[:-1], self.groups, self.size)
        return split if self.order is None else split[..., list(self.order)]

    def restore(self, lanes: Array) -> Array:
        """Inverse of `arrange`."""
        if self.order is not None:
            lanes = lanes[..., np.argsort(self.order)]
        return lanes.reshape(*lanes.shape[:-2], self.width)


@dataclass(frozen=True, eq=False)
class Param:
    """A constant of a step: scale words, fixed-point values (int64[groups, size]) or weights (int8[out, in])."""

    name: str
    array: Array


@dataclass(eq=False)
class Step:
    """One operation. operator: what people read in traces. mult: see the module; of wide values only."""

    name: str
    rows: Dim
    layout: Layout
    operator: str = field(default="", kw_only=True)
    mult: float = field(default=1.0, kw_only=True)

    @property
    def operands(self) -> tuple[str, ...]:
        """The values that it reads."""
        return tuple(v for k, v in vars(self).items() if k in OPERANDS and isinstance(v, str) and v)

    @property
    def nodes_brought(self) -> tuple[str, ...]:
        """Nodes of the graph whose values are in memory before the program starts."""
        return tuple(name for name in (*getattr(self, "nodes", ()), getattr(self, "node", "")) if name)

    def compute(self, values: Mapping[str, Any], lengths: Mapping[str, int]) -> Any:
        """The value, from those of the operands, where the symbolic lengths have these values."""
        raise NotImplementedError


OPERANDS = ("x", "y", "entry", "query", "keys", "values", "mask", "table", "past")
"""Fields of steps that name a value; `y` may be a `Param` instead."""


# --- what comes from outside ----------------------------------------------------------------------------


@dataclass(eq=False)
class Input(Step):
    """Wide rows that the host has packed: of the node's tensor, or of a literal.

    shape: what the tensor is broadcast to. order: of its axes, before it is flattened to rows. index:
    int64[rows, groups] rows of the tensor that come side by side, -1 for zeros. share: one over the number of the
    tensor's rows instead of its values. whole: the numbers of a list, one a row.
    """

    node: str = ""
    shape: tuple[Dim, ...] | None = None
    order: tuple[int, ...] | None = None
    index: Array | None = None
    literal: Array | None = None
    share: bool = False
    whole: bool = False

    @property
    def plain(self) -> bool:
        """Whether these are the node's rows as they are."""
        return self.shape is self.order is self.index is self.literal is None and not self.share and not self.whole


def nodes_read(step: Step) -> tuple[str, ...]:
    """Nodes whose values are brought; of a share only the number of rows counts."""
    return () if isinstance(step, Input) and step.share else step.nodes_brought


@dataclass(eq=False)
class Table(Step):
    """Words of rotary tables, one a lane, that the host packs: int64[rows, 1, size]. nodes: cosines and sines."""

    nodes: tuple[str, str] = ("", "")
    style: str = "half"
    width: int = 0


@dataclass(eq=False)
class Mask(Step):
    """What the host adds to the scores of attention: int64[rows, heads, keys], 1 head where all share it. A key that
    may not be seen has a number far below every score."""

    node: str = ""
    keys_length: Dim = 0


@dataclass(eq=False)
class Kept(Step):
    """Wide rows that another entry has left in memory. place: the name under which it left them. node: the input."""

    node: str = ""
    place: str = ""


# --- moves through memory -------------------------------------------------------------------------------


@dataclass(eq=False)
class Move(Step):
    """A value that is put together in the auxiliary memory, of values that are there as a whole."""


@dataclass(eq=False)
class Rearranged(Move):
    """Pieces of rows in another order. index: int64[rows, groups] numbers of the operand's pieces of `size` channels,
    counted row by row; -1 for zeros."""

    x: str
    index: Array

    def compute(self, values, lengths):
        size = self.layout.size
        pieces = values[self.x].reshape(-1, size)
        pieces = np.concatenate([pieces, np.zeros((1, size), np.int64)])
        return pieces[self.index]


@dataclass(eq=False)
class Joined(Move):
    """Rows of several values behind each other; beside: the channels of each row side by side."""

    parts: tuple[str, ...]
    beside: bool = False

    @property
    def operands(self) -> tuple[str, ...]:
        return self.parts

    def compute(self, values, lengths):
        return np.concatenate([values[part] for part in self.parts], axis=2 if self.beside else 0)


@dataclass(eq=False)
class Part(Move):
    """The rows from row `start` on, where how many there are, or where they begin, depends on lengths."""

    x: str
    start: Dim

    def compute(self, values, lengths):
        start, count = (int(n.at(lengths)) if isinstance(n, Length) else n for n in (self.start, self.rows))
        found = values[self.x][start : start + count]
        if len(found) != count:
            raise InternalError(f"step {self.name}: rows {start} to {start + count} of {len(values[self.x])}")
        return found


@dataclass(eq=False)
class SumRows(Move):
    """One row: the sum of all rows, from the first to the last; every sum saturates."""

    x: str

    def compute(self, values, lengths):
        total = np.zeros_like(values[self.x][:1])
        for row in values[self.x]:
            total = nm.sat32(total + row)
        return total


@dataclass(eq=False)
class GatherRows(Move):
    """Rows by a list that the host brings; y: their numbers, one channel a row, as they are."""

    x: str
    y: str

    def compute(self, values, lengths):
        return values[self.x][values[self.y][:, 0, 0]]


@dataclass(eq=False)
class SelectRows(Move):
    """The rows with the largest scores, in their old order; y: scores of one channel. Equal ones: the earlier row."""

    x: str
    y: str

    def compute(self, values, lengths):
        scores = values[self.y][:, 0, 0]
        chosen = np.sort(np.argsort(-scores, kind="stable")[: self.rows])
        return values[self.x][chosen]


# --- matrix unit ----------------------------------------------------------------------------------------


@dataclass(eq=False)
class Product(Step):
    """int8 rows times a weight: int32 sums. weight: int8[out, in], in channels of the operand's layout."""

    x: str
    weight: Param

    def compute(self, values, lengths):
        x = values[self.x]
        return matmul(x.reshape(len(x), -1), self.weight.array).reshape(len(x), self.layout.groups, self.layout.size)


# --- slots of a vector pass -----------------------------------------------------------------------------


@dataclass(eq=False)
class ScaleChannels(Step):
    """Times a scale word a channel."""

    x: str
    words: Param
    adjust: int = 0

    def compute(self, values, lengths):
        return nm.mul_scale(values[self.x], self.words.array, self.adjust)


@dataclass(eq=False)
class ScaleAll(Step):
    """Times one scale word."""

    x: str
    word: int
    adjust: int = 0

    def compute(self, values, lengths):
        return nm.mul_scale(values[self.x], self.word, self.adjust)


@dataclass(eq=False)
class Rotate(Step):
    """Lane pairs rotated by a table's words."""

    x: str
    table: str

    def compute(self, values, lengths):
        x = values[self.x]
        partner = x.reshape(*x.shape[:-1], -1, 2)[..., ::-1].reshape(x.shape)
        return nm.rope(x, partner, values[self.table])


@dataclass(eq=False)
class ScaleRows(Step):
    """Times what `read` makes of the row's entry."""

    x: str
    entry: str
    read: Row = Row.FIN
    adjust: int = 0

    def compute(self, values, lengths):
        raw, fin = (part[..., None] for part in values[self.entry])
        return nm.mul_scale(values[self.x], vector.row_value(self.read, raw, fin), self.adjust)


@dataclass(eq=False)
class Add(Step):
    """Plus another value, or plus a constant a channel; saturates."""

    x: str
    y: str | Param

    def compute(self, values, lengths):
        return nm.sat32(values[self.x] + _second(self.y, values))


@dataclass(eq=False)
class FromEntry(Step):
    """The raw number of the row's entry, as a channel."""

    entry: str

    def compute(self, values, lengths):
        return values[self.entry][0][..., None]


@dataclass(eq=False)
class SubtractRows(Step):
    """Minus the row's entry; saturates."""

    x: str
    entry: str

    def compute(self, values, lengths):
        return nm.sat32(values[self.x] - values[self.entry][0][..., None])


@dataclass(eq=False)
class Function(Step):
    """A table function of every lane."""

    x: str
    func: Func

    def compute(self, values, lengths):
        x = values[self.x]
        if self.func == Func.EXP2:
            return nm.exp2_prob(x)
        return nm.gate_factor(x, nm.SILU_TABLE) if self.func == Func.SIGMOID else nm.gate(x, vector.GATES[self.func])


@dataclass(eq=False)
class Multiply(Step):
    """Times another value, shifted right; saturates."""

    x: str
    y: str
    shift: int

    def compute(self, values, lengths):
        return nm.multiply_shift(values[self.x], _second(self.y, values), self.shift)


@dataclass(eq=False)
class Same(Step):
    """The same integers, standing for other real values: a multiplier changes."""

    x: str

    def compute(self, values, lengths):
        return values[self.x]


@dataclass(eq=False)
class Regrouped(Step):
    """The same channels in other groups."""

    x: str

    def compute(self, values, lengths):
        return values[self.x].reshape(-1, self.layout.groups, self.layout.size)


@dataclass(eq=False)
class SumGroups(Step):
    """The sum of a row's groups, from the first to the last; every sum saturates."""

    x: str

    def compute(self, values, lengths):
        x = values[self.x]
        total = x[:, :1]
        for group in range(1, x.shape[1]):
            total = nm.sat32(total + x[:, group : group + 1])
        return total


@dataclass(eq=False)
class ToInt8(Step):
    """Clipped to -127..127."""

    x: str

    def compute(self, values, lengths):
        return nm.to_int8(values[self.x]).astype(np.int8)


@dataclass(eq=False)
class Reduction(Step):
    """A row's entry. whole: over all groups of the row, else one a group. constant: imm1 of the pass."""

    x: str
    kind: Reduce
    fin: Fin = Fin.NONE
    entry: str = ""
    constant: int = 0
    whole: bool = True

    def compute(self, values, lengths):
        raw0 = values[self.entry][0][..., None] if self.entry else 0
        offered = vector.contribution(self.kind, values[self.x], raw0)
        axes = (1, 2) if self.whole else (2,)
        total = offered.max(axis=axes) if self.kind in (Reduce.MAX, Reduce.ABSMAX) else offered.sum(axis=axes)
        total = total.reshape(len(total), -1).clip(-(1 << 47), (1 << 47) - 1)
        first = values[self.entry][0] if self.entry else np.zeros_like(total)
        return vector.finish({"fin": self.fin}, total, first, self.constant)


def _second(y: str | Param, values: Mapping[str, Any]) -> Array:
    return y.array if isinstance(y, Param) else values[y]


# --- keys and values ------------------------------------------------------------------------------------


@dataclass
class Held:
    """Keys or values: int8[m, heads, d]; words int64[m, heads], scale words of keys or raw maxima of values."""

    rows: Array
    words: Array


@dataclass(eq=False)
class Past(Step):
    """Keys or values of earlier runs, which stay in the machine. key: keys, else values. node: the input. reader: the
    node that appends to them; empty where nothing does, and attention reads them alone."""

    node: str = ""
    key: bool = True
    reader: str = ""


@dataclass(eq=False)
class Hold(Step):
    """int8 rows with their entries, behind what is held already (past, or nothing): rows are all of them together."""

    x: str
    entry: str
    key: bool
    past: str = ""

    def compute(self, values, lengths):
        raw = values[self.entry][0]
        held = Held(values[self.x], nm.to_scale(raw) if self.key else raw)
        if not self.past:
            return held
        past: Held = values[self.past]
        return Held(np.concatenate([past.rows, held.rows]), np.concatenate([past.words, held.words]))


PRESENT = "present"
"""A value besides those of steps: keys that exist for a query at all, bool[n, m], where the host leaves keys out."""


@dataclass(eq=False)
class Attend(Step):
    """Attention of int8 queries over keys and values (operators 6 to 8 of docs/machine.md): wide rows.

    causal: row i of n sees keys up to i + (keys - n). mask: a `Mask`'s value, added to the scores. cap: a scale word;
    the sigmoid of the scores times it takes their place (a soft cap c tanh(s / c) is 2 c sigmoid(2 s / c), less a
    constant that softmax does not see).
    """

    query: str
    entry: str
    keys: str
    values: str
    mask: str = ""
    causal: bool = False
    n_keys: Dim = 0
    cap: int = 0

    def compute(self, values, lengths):
        q8, (q_raw, _) = values[self.query], values[self.entry]
        keys, held = values[self.keys], values[self.values]
        masks = values[self.mask] if self.mask else np.zeros((1, 1, 1), np.int64)
        seen = np.ones((len(q8), len(keys.rows)), bool)
        if self.causal:
            seen = np.tril(seen, len(keys.rows) - len(q8))
        seen &= values.get(PRESENT, True)
        group = q8.shape[1] // keys.rows.shape[1]
        heads = []
        for h in range(q8.shape[1]):
            k, v, mask = _head(keys, h // group), _head(held, h // group), masks[:, h % masks.shape[1]]
            heads.append(_attend(q8[:, h], q_raw[:, h, None], k, v, seen, mask, self.cap))
        return np.stack(heads, axis=1)


def _head(held: Held, head: int) -> tuple[Array, Array]:
    return held.rows[:, head], held.words[:, head]


def _attend(q8: Array, q_raw: Array, keys, values, seen: Array, mask: Array, cap: int) -> Array:
    """One head: int64[n, d]. seen: bool[n, m]; mask: int64[n, m], or one number."""
    k8, k_words = keys
    v8, v_raw = values
    scores = nm.mul_scale(nm.mul_scale(matmul(q8, k8), k_words, at.KEY_ADJUST), nm.to_scale(q_raw), at.QUERY_ADJUST)
    if cap:
        scores = nm.mul_scale(nm.gate_factor(scores, nm.SILU_TABLE), cap)
    scores = nm.sat32(scores + mask)
    top = np.where(seen, scores, nm.INT32_MIN).max(axis=1, keepdims=True)
    p = np.where(seen, nm.exp2_prob(nm.sat32(scores - top)), 0)
    inverse = nm.recip_scale(p.sum(axis=1, keepdims=True))
    weighted = nm.multiply_shift(p, nm.mul_scale(v_raw, at.VALUE_REFERENCE, at.VALUE_ADJUST), at.VALUE_SHIFT)
    high, low = nm.split_planes(nm.clip(weighted, 0, nm.PROB_MAX))
    v = np.ascontiguousarray(v8.T)
    out = nm.mul_scale(matmul(high.astype(np.int8), v), at.HIGH_PLANE)
    out = nm.sat32(nm.mul_scale(matmul(low.astype(np.int8), v), at.LOW_PLANE) + out)
    return nm.mul_scale(out, inverse, at.OUT_ADJUST)
