"""Tokens between units: one for every hazard, and none that is left over."""

import pytest

from compiler.kernels.regions import Region
from compiler.kernels.tokens import Access, place, verify
from hw.spec.errors import InternalError
from hw.spec.isa import Unit

VB, OB = Region("VB", "x", 0, 8), Region("OB", "q", 0, 8)
AB = Region("AB", "acc", 0, 8)


def _block():
    return [
        Access(0, Unit.VU, (VB,), (OB,)),
        Access(1, Unit.MX, (OB,), (AB,)),
        Access(2, Unit.VU, (AB,), (VB,)),
        Access(3, Unit.VU, (VB,), (OB,)),
        Access(4, Unit.MX, (OB,), (AB,)),
    ]


def test_every_hazard_gets_one_token():
    block = _block()
    place(block)
    verify(block)
    assert [(a.wait, a.signal) for a in block] == [
        (0, 1 << Unit.MX),
        (1 << Unit.VU, 1 << Unit.VU),
        (1 << Unit.MX, 0),
        (0, 1 << Unit.MX),
        (1 << Unit.VU, 0),
    ]


def test_the_verifier_finds_a_missing_and_a_stray_token():
    block = _block()
    with pytest.raises(InternalError, match="not ordered"):
        verify(block)
    place(block)
    block[4].signal |= 1 << Unit.ST
    with pytest.raises(InternalError, match="must end at 0"):
        verify(block)
