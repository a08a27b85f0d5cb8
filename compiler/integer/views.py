"""Access maps: where the elements of a graph's tensor lie in the rows of a value of the integer level.

Every axis of the tensor is a list of atoms, outermost first. An atom of (size, part, stride) walks `size` places,
`stride` rows or channels apart. Queries after `view(n, heads, d).transpose(0, 1)`, for example, are

    axis 0   heads   channels, d apart
    axis 1   n       rows, 1 apart
    axis 2   d       channels, 1 apart

of the linear layer's rows: nothing has moved. Reshapes, permutations and slices only change the map (Shah et al. 2023,
CuTe, has the same idea).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from ..graph.ir import Dim, Length

Array = np.ndarray

ROW, CHANNEL = "row", "channel"


@dataclass(frozen=True)
class Atom:
    """See the module."""

    size: Dim
    part: str
    stride: int


@dataclass(frozen=True)
class View:
    """A tensor as a map of value `base`; the offsets are rows and channels."""

    base: str
    axes: tuple[tuple[Atom, ...], ...]
    row: int = 0
    channel: int = 0

    @property
    def shape(self) -> tuple[Dim, ...]:
        return tuple(_size(axis) for axis in self.axes)


def rows_view(base: str, shape: Sequence[Dim]) -> View:
    """A tensor whose last axis is the channels of `base`, and whose other axes are its rows."""
    *rows, width = shape
    axes = []
    for at, size in enumerate(rows):
        inner = rows[at + 1 :]
        stride = prod(d for d in inner if isinstance(d, int))
        axes.append((Atom(size, ROW, stride),))
    return View(base, (*axes, (Atom(width, CHANNEL, 1),)))


def heads_view(base: str, heads: int, rows: Dim, size: int) -> View:
    """[heads, rows, size]: heads are groups of channels."""
    return View(base, ((Atom(heads, CHANNEL, size),), (Atom(rows, ROW, 1),), (Atom(size, CHANNEL, 1),)))


def _size(atoms: Iterable[Atom]) -> Dim:
    total: Dim = 1
    for atom in atoms:
        total = atom.size if total == 1 else total if atom.size == 1 else _product(total, atom.size)
    return total


def _product(a: Dim, b: Dim) -> Dim:
    if isinstance(a, int) and isinstance(b, int):
        return a * b
    raise ValueError(f"{a} x {b} is no length of its own")


def merged(atoms: Iterable[Atom]) -> tuple[Atom, ...]:
    """The same walk in as few atoms as possible."""
    out: list[Atom] = []
    for atom in atoms:
        if atom.size == 1:
            continue
        last = out[-1] if out else None
        joins = last is not None and last.part == atom.part and isinstance(atom.size, int)
        if last is not None and joins and last.stride == atom.stride * atom.size:
            size = _product(last.size, atom.size) if isinstance(last.size, int) else None
            if size is not None:
                out[-1] = Atom(size, atom.part, atom.stride)
                continue
        out.append(atom)
    return tuple(out)


def permuted(view: View, order: Sequence[int]) -> View:
    return replace(view, axes=tuple(view.axes[i] for i in order))


def reshaped(view: View, shape: Sequence[Dim]) -> View | None:
    """The view in another shape; None where an atom would have to be cut at a place that is no divisor."""
    atoms = [a for axis in view.axes for a in axis if a.size != 1]
    axes: list[tuple[Atom, ...]] = []
    for size in shape:
        taken: list[Atom] = []
        left = size
        while left != 1:
            if not atoms:
                return None
            atom = atoms.pop(0)
            if atom.size == left:
                taken.append(atom)
                left = 1
            elif not isinstance(atom.size, int) or not isinstance(left, int):
                return None
            elif left % atom.size == 0:
                taken.append(atom)
                left //= atom.size
            elif atom.size % left == 0:
                taken.append(Atom(left, atom.part, atom.stride * (atom.size // left)))
                atoms.insert(0, Atom(atom.size // left, atom.part, atom.stride))
                left = 1
            else:
                return None
        axes.append(tuple(taken))
    return replace(view, axes=tuple(axes)) if not atoms else None


def sliced(view: View, axis: int, start: int, count: Dim) -> View | None:
    """`count` places of an axis from `start` on; None where the axis is more than one walk."""
    atoms = merged(view.axes[axis])
    if len(atoms) > 1 or (not atoms and start):
        return None
    if not atoms:
        return view
    (atom,) = atoms
    axes = list(view.axes)
    axes[axis] = (replace(atom, size=count),)
    offset = {ROW: "row", CHANNEL: "channel"}[atom.part]
    moved = {offset: getattr(view, offset) + start * atom.stride}
    return replace(view, axes=tuple(axes), **moved)


def is_rows(view: View, rows: Dim, width: int) -> bool:
    """Whether the last axis is all channels in order, and the others all rows in order."""
    *lead, last = view.axes
    walk = merged(a for axis in lead for a in axis)
    whole = walk == ((Atom(rows, ROW, 1),) if rows != 1 else ())
    channels = merged(last) == ((Atom(width, CHANNEL, 1),) if width != 1 else ())
    return whole and channels and not view.row and not view.channel


def is_heads(view: View, rows: Dim, heads: int, size: int) -> bool:
    """Whether the axes are [heads, rows, channels of a head] (axes of size 1 aside) of a value of that many rows."""
    if len(view.axes) < 3 or view.row or view.channel:
        return False
    *lead, row, last = view.axes
    wanted = merged([Atom(heads, CHANNEL, size)]), merged([Atom(rows, ROW, 1)]), merged([Atom(size, CHANNEL, 1)])
    return (merged(a for axis in lead for a in axis), merged(row), merged(last)) == wanted


def whole_groups(view: View, rows: Dim, groups: int, size: int) -> bool:
    """Whether the last axis is the channels of one group, and the others are all groups of all rows in some order."""
    *lead, last = view.axes
    if view.row or view.channel or merged(last) != merged([Atom(size, CHANNEL, 1)]):
        return False
    atoms = [atom for axis in lead for atom in merged(axis)]
    walks = {
        part: merged(sorted((a for a in atoms if a.part == part), key=lambda a: -a.stride)) for part in (ROW, CHANNEL)
    }
    return walks == {ROW: merged([Atom(rows, ROW, 1)]), CHANNEL: merged([Atom(groups, CHANNEL, size)])}


def tensor(view: View, rows: Array, lengths: Mapping[str, int]) -> Array:
    """The tensor that a view shows of a value's real rows."""
    shape = [int(np.prod([count(a.size, lengths) for a in axis], initial=1)) for axis in view.axes]
    numbers = {ROW: np.full([1] * len(shape), view.row), CHANNEL: np.full([1] * len(shape), view.channel)}
    for at, axis in enumerate(view.axes):
        walks = {ROW: np.zeros(1, np.int64), CHANNEL: np.zeros(1, np.int64)}
        for atom in axis:
            steps = np.arange(count(atom.size, lengths))
            for part, walk in walks.items():
                walks[part] = (walk[:, None] + steps * (atom.stride if part == atom.part else 0)).reshape(-1)
        for part, walk in walks.items():
            numbers[part] = numbers[part] + walk.reshape([-1 if i == at else 1 for i in range(len(shape))])
    return np.broadcast_to(rows[numbers[ROW], numbers[CHANNEL]], shape)


def count(size: Dim, lengths: Mapping[str, int]) -> int:
    """A length's value."""
    return size.at(lengths) if isinstance(size, Length) else int(size)
