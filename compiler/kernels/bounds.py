"""How far an instruction reaches: the largest value of registers, and footprints inside regions.

Counts and strides in registers have an upper bound where it follows from what was emitted (constants, MIN, sums,
products, shifts) or a kernel declares it (`Builder.declare`: what the host keeps to). An instruction in a loop is
checked as its first iteration finds the registers, except for those of which the kernel says how far they walk
(`Builder.walks`). What has no bound is not checked here; what is really touched is measured by the tests of hazards.
"""

from collections.abc import Callable
from contextlib import contextmanager

from hw.spec.errors import UserError
from hw.spec.isa import Op

from .regions import Region

Most = int | None
"""An upper bound, None where there is none."""


def _both(compute: Callable[[int, int], int]) -> Callable[[Most, Most], Most]:
    return lambda a, b: None if a is None or b is None else compute(a, b)


_ALU: dict[Op, Callable[[Most, Most], Most]] = {
    Op.ADD: _both(lambda a, b: a + b),
    Op.MUL: _both(lambda a, b: a * b),
    Op.MAX: _both(max),
    Op.SUB: lambda a, b: a,
    Op.MIN: lambda a, b: min((x for x in (a, b) if x is not None), default=None),
}


class Bounds:
    """Upper bounds of registers at the place where the program has grown to."""

    def __init__(self) -> None:
        self._most: dict[int, Most] = {}
        self._dead = 0

    @property
    def dead(self) -> bool:
        """Whether this place is in a loop that runs no time at all."""
        return self._dead > 0

    def __getitem__(self, register: int) -> Most:
        return self._most.get(register) if register else 0

    def __setitem__(self, register: int, most: Most) -> None:
        self._most[register] = most

    def plus(self, register: int, constant: int) -> Most:
        most = self[register]
        return None if most is None else most + constant

    def alu(self, op: Op, left: int, right: int) -> Most:
        return _ALU[op](self[left], self[right])

    def shifted(self, register: int, amount: int) -> Most:
        most = self[register]
        return None if most is None else most << amount if amount >= 0 else most >> -amount

    def forget(self) -> None:
        self._most = {}

    @contextmanager
    def repeated(self, count: Most = None):
        """A body that runs `count` times: behind it nothing is known of what it changes."""
        before = dict(self._most)
        self._dead += count == 0
        yield
        self._dead -= count == 0
        self._most = {
            register: most for register, most in self._most.items() if register in before and before[register] == most
        }

    @contextmanager
    def skipped(self):
        """A body that runs or does not: behind it the larger bound holds."""
        before = dict(self._most)
        yield
        after, self._most = self._most, {}
        for register in before.keys() & after.keys():
            self._most[register] = _ALU[Op.MAX](before[register], after[register])


def reach(run: Most, *steps: tuple[Most, Most]) -> Most:
    """Elements from the first to the last of `run` elements at every step; steps: (count, stride)."""
    total = run
    for count, stride in steps:
        if count == 1 or stride == 0:
            continue
        if total is None or count is None or stride is None:
            return None
        total += (count - 1) * stride
    return total


def require_room(operator: str, region: Region, offset: Most, need: Most) -> None:
    """UserError where `need` elements from `offset` on go beyond the region."""
    if need is None:
        return
    end = need + max(0, offset or 0)
    if end > region.room:
        raise UserError(
            f"operator {operator}: an instruction reaches {end} {region.unit} of region {region.name} in "
            f"{region.buffer}, which has room for {region.room}: make the operator narrower, or its region "
            "in compiler/kernels/allocate.py larger"
        )
