"""Arithmetic of dimensions: numbers where both are known, expressions where one is symbolic."""

from collections.abc import Iterable

import sympy

from .ir import Dim, Length

FAR = 1 << 40
"""Ends of slices beyond this mean the end of the axis."""


def same(a: Dim, b: Dim) -> bool:
    """Whether two dimensions are equal at all lengths."""
    return a == b or sympy.simplify(sympy.sympify(f"({a}) - ({b})")) == 0


def plus(a: Dim, b: Dim) -> Dim:
    """The sum of two dimensions."""
    if isinstance(a, int) and isinstance(b, int):
        return a + b
    return b if a == 0 else a if b == 0 else Length(f"({a}) + ({b})")


def minus(a: Dim, b: Dim) -> Dim:
    """The difference of two dimensions."""
    if isinstance(a, int) and isinstance(b, int):
        return a - b
    return a if b == 0 else Length(f"({a}) - ({b})")


def times(sizes: Iterable[Dim]) -> Dim:
    """The product of dimensions, 1 of none."""
    number, symbols = 1, []
    for size in sizes:
        if isinstance(size, int):
            number *= size
        else:
            symbols.append(f"({size})")
    if not symbols:
        return number
    if number == 1 and len(symbols) == 1:
        return Length(symbols[0][1:-1])
    return Length(" * ".join([*([str(number)] if number != 1 else []), *symbols]))


def from_end(place: Dim, size: Dim) -> Dim:
    """A place on an axis of that size; negative ones count from its end."""
    if not isinstance(place, int) or place >= 0:
        return place
    return size + place if isinstance(size, int) else Length(f"({size}) - {-place}")


def bounds(start: Dim | None, stop: Dim | None, size: Dim) -> tuple[Dim, Dim]:
    """First place and the one behind the last of a slice as torch has it, within an axis of that size."""
    first = from_end(start or 0, size)
    last = size if stop is None or (isinstance(stop, int) and stop >= FAR) else from_end(stop, size)
    if isinstance(size, int):
        first, last = (min(max(d, 0), size) if isinstance(d, int) else d for d in (first, last))
    return first, last
