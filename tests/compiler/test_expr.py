"""Expressions of kernels: each form gives the fields of a pass that it stands for, and what is not one pass is refused.

The fields were written out by hand in the kernels before there were expressions.
"""

from collections.abc import Callable
from dataclasses import FrozenInstanceError

import pytest

from compiler.kernels.attention_math import Scores, softmax
from compiler.kernels.builder import At, Builder, Reg, Rows
from compiler.kernels.expr import run, vec, zero
from compiler.kernels.regions import Region
from hw.spec import config
from hw.spec.errors import InternalError
from hw.spec.isa import Add, Dst, Fin, Func, Mul1, Mul2, Mul3, Op, Reduce, Row, Src, Tap, Unit, field_code

TINY = config.get("tiny")
SHAPE = (4, 3, 2)


def place(buffer: str, name: str = "place") -> At:
    """Rows of two words in a buffer."""
    return At(Region(buffer, name, 64, 1024, 1 if buffer == "OB" else TINY.granules_per_word), 6, 2, 1)


A, P, V, SB, OB = (place(buffer) for buffer in ("AB", "PB", "VB", "SB", "OB"))
OTHER_P, OTHER_V = place("PB", "other"), place("VB", "other")
E, F, G = (Rows(Region("RS", name, base, 64), 3, 1) for name, base in (("E", 0), ("F", 64), ("G", 128)))


def program(issue: Callable[[Builder], None]) -> list[int]:
    """The instructions that `issue` emits."""
    b = Builder(TINY)
    issue(b)
    return b.words()


SCORE = vec(A).scaled(P, 14).scaled(E.scale, 16)
POWER = (SCORE - F.raw).exp2()
FORMS = {
    "accumulators": (vec(A), {"src": Src.A, "a": A}),
    "parameters": (vec(P), {"src": Src.P, "p": P}),
    "vector": (vec(V), {"src": Src.V, "v": V}),
    "row scalar": (vec(E.scale), {"src": Src.R0, "r0": E, "row0": Row.SCALE}),
    "zero": (zero(E), {"src": Src.R0, "r0": E, "mul1": Mul1.IMM, "imm0": 0}),
    "times parameters": (vec(V).scaled(P, -3), {"src": Src.V, "v": V, "p": P, "mul1": Mul1.P, "adj1": -3}),
    "times itself": (vec(V).times(V, 9), {"src": Src.V, "v": V, "mul3": Mul3.V, "sh3": 9}),
    "times a constant": (vec(A).scaled(77, 5), {"src": Src.A, "a": A, "mul1": Mul1.IMM, "imm0": 77, "adj1": 5}),
    "times a register": (vec(A).scaled(Reg(3, 8)), {"src": Src.A, "a": A, "mul1": Mul1.IMM, "imm0": Reg(3, 8)}),
    "rotated": (vec(V).rotated(P), {"src": Src.V, "v": V, "p": P, "mul1": Mul1.ROPE}),
    "times a row scalar": (
        vec(V).scaled(E.fin, -22),
        {"src": Src.V, "v": V, "mul2": Mul2.R0, "r0": E, "row0": Row.FIN, "adj2": -22},
    ),
    "score": (
        SCORE,
        {"src": Src.A, "a": A, "mul1": Mul1.P, "p": P, "adj1": 14}
        | {"mul2": Mul2.R0, "r0": E, "row0": Row.SCALE, "adj2": 16},
    ),
    "plus a vector": (vec(A) + V, {"src": Src.A, "a": A, "add": Add.V, "v": V}),
    "plus parameters": (vec(V) + P, {"src": Src.V, "v": V, "add": Add.P, "p": P}),
    "minus a row scalar": (vec(E.raw) - F.raw, {"src": Src.R0, "r0": E, "add": Add.SUB_R1, "r1": F}),
    "gate": (vec(V).apply(Func.SILU), {"src": Src.V, "v": V, "func": Func.SILU}),
    "times a vector": (
        vec(A).scaled(P).times(V, 14),
        {"src": Src.A, "a": A, "mul1": Mul1.P, "p": P, "mul3": Mul3.V, "v": V, "sh3": 14},
    ),
    "times a second row scalar": (
        (vec(A).scaled(77) + V).scaled(F.fin, -22),
        {"src": Src.A, "a": A, "mul1": Mul1.IMM, "imm0": 77, "add": Add.V, "v": V}
        | {"mul3": Mul3.R1, "r1": F, "row1": Row.FIN, "adj2": -22},
    ),
    "clipped": (
        vec(V).scaled(E.fin).int8(),
        {"src": Src.V, "v": V, "mul2": Mul2.R0, "r0": E, "row0": Row.FIN, "clip8": 1},
    ),
    "probability": (
        POWER,
        {"src": Src.A, "a": A, "mul1": Mul1.P, "p": P, "adj1": 14, "mul2": Mul2.R0, "r0": E, "row0": Row.SCALE}
        | {"adj2": 16, "add": Add.SUB_R1, "r1": F, "row1": Row.RAW, "func": Func.EXP2},
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_form_is_the_pass_written_out(name):
    value, fields = FORMS[name]
    assert program(lambda b: run(b, SHAPE, 20, value, to=SB)) == program(lambda b: b.vu_pass(SHAPE, 20, d=SB, **fields))


REDUCTIONS = {
    "max": (vec(V).max(G), {"reduce": Reduce.MAX}),
    "max of all heads": (vec(V).max(G, level=1), {"reduce": Reduce.MAX, "level": 1}),
    "absmax": (vec(V).absmax(G), {"reduce": Reduce.ABSMAX, "fin": Fin.QRECIP}),
    "sum": (vec(V).sum(G), {"reduce": Reduce.SUM}),
    "total": (vec(V).sum(G, Fin.RECIP), {"reduce": Reduce.SUM, "fin": Fin.RECIP}),
    "mean": (vec(V).mean(G, 5), {"reduce": Reduce.SUM, "fin": Fin.MEAN, "imm1": 5}),
    "norm": (vec(V).inverse_norm(G, E, 7), {"reduce": Reduce.SUMSQ, "fin": Fin.RSQRT, "imm1": 7, "r0": E}),
}


@pytest.mark.parametrize("name", REDUCTIONS)
def test_a_reduction_is_the_pass_written_out(name):
    """Alone, and beside the values that it reduces."""
    value, fields = REDUCTIONS[name]
    fields = {"src": Src.V, "v": V, "w": G} | fields
    assert program(lambda b: run(b, SHAPE, 20, value)) == program(lambda b: b.vu_pass(SHAPE, 20, **fields))
    beside = program(lambda b: run(b, SHAPE, 20, vec(V), to=SB, reduce=value, step=3))
    assert beside == program(lambda b: b.vu_pass(SHAPE, 20, step=3, d=SB, **fields))


def test_a_register_with_an_adjust_leaves_room_for_the_shift():
    """A linear layer's G comes from memory, in its place within ctl1; the shift of MUL3 is added to it."""
    b = Builder(TINY)
    run(b, SHAPE, 20, vec(A).scaled(E.scale, Reg(9)).times(V, 14), to=SB)
    code = field_code(Unit.VU, "ctl1")
    found = next(each for each in b.program if each.op == Op.SET and each.a == code)
    assert (found.b, found.imm) == (9, 14 << 16)


ROWS = Scores(A, P, E, F, G)
SCORE_FIELDS, POWER_FIELDS = FORMS["score"][1], FORMS["probability"][1]


def test_softmax_is_three_passes():
    """The planes of a weight, and in the first of them the sum of what the function gave."""
    weight = POWER_FIELDS | {"mul3": Mul3.V, "v": V, "sh3": 15, "d": OB}

    def written_out(b):
        b.vu_pass(SHAPE, 20, step=1, w=F, reduce=Reduce.MAX, **SCORE_FIELDS)
        sums = {"w": G, "tap": Tap.FUNC, "reduce": Reduce.SUM, "fin": Fin.RECIP}
        b.vu_pass(SHAPE, 20, step=1, dst=Dst.OBH, **weight, **sums)
        b.vu_pass(SHAPE, 20, step=1, dst=Dst.OBL, **weight)

    assert program(lambda b: softmax(b, SHAPE, 20, ROWS, V, (OB, OB), step=1)) == program(written_out)


def test_the_second_plane_is_asked_for_when_the_first_is_written():
    """The caller may compute its place in a register that the pass before needs."""
    b, passes = Builder(TINY), []

    def planes():
        for _ in range(2):
            passes.append(sum(each.op == Op.ISSUE for each in b.program))
            yield OB

    softmax(b, SHAPE, 20, ROWS, V, planes())
    assert passes == [1, 2]


def test_an_expression_does_not_change():
    before = dict(SCORE.fields)
    assert SCORE - F.raw != SCORE and SCORE.fields == before
    with pytest.raises(FrozenInstanceError):
        SCORE.slot = None


X = vec(A)
CONFLICTS = {
    "MUL1 after MUL1": (lambda: X.scaled(P).scaled(77), "slot MUL1 .* is taken, MUL1 does not"),
    "rotation after MUL1": (lambda: X.scaled(77).rotated(P), "slot MUL1 .* is taken, MUL1 does not"),
    "MUL1 after MUL2": (lambda: X.scaled(E.fin).scaled(P), "slot MUL2 .* is taken, MUL1 does not"),
    "a third row scalar": (
        lambda: X.scaled(E.fin).scaled(F.fin).scaled(G.fin),
        "slot MUL3 .* is taken, MUL3 does not",
    ),
    "ADD after ADD": (lambda: X + V + P, "slot ADD .* is taken, ADD does not"),
    "minus after ADD": (lambda: X + V - E.raw, "slot ADD .* is taken, ADD does not"),
    "ADD after FUNC": (lambda: X.exp2() + V, "slot FUNC .* is taken, ADD does not"),
    "FUNC after FUNC": (lambda: X.exp2().apply(Func.SILU), "slot FUNC .* is taken, FUNC does not"),
    "FUNC after MUL3": (lambda: X.times(V, 3).exp2(), "slot MUL3 .* is taken, FUNC does not"),
    "MUL3 after MUL3": (lambda: X.times(V, 3).times(V, 3), "slot MUL3 .* is taken, MUL3 does not"),
    "CLIP after CLIP": (lambda: X.int8().high(), "slot CLIP .* is taken, CLIP does not"),
    "anything after CLIP": (lambda: X.low().times(V), "slot CLIP .* is taken, MUL3 does not"),
    "two places in PB": (lambda: vec(P).scaled(OTHER_P), "field p .* is taken by .*, slot MUL1"),
    "a third use of PB": (lambda: X.scaled(P) + OTHER_P, "field p .* is taken by .*, slot ADD"),
    "two places in VB": (lambda: vec(V) + OTHER_V, "field v .* is taken by .*, slot ADD"),
    "two factors in VB": (lambda: (X + V).times(OTHER_V), "field v .* is taken by .*, slot MUL3"),
    "two entries r0": (lambda: vec(E.raw).scaled(F.scale), "field r0 .* is taken by .*, slot MUL2"),
    "r0 read twice": (lambda: vec(E.raw).scaled(E.scale), "field row0 .* is taken by .*, slot MUL2"),
    "two entries r1": (lambda: (X - E.raw).apply(Func.GELU).scaled(F.raw), "field r1 .* is taken by .*, slot MUL3"),
    "r1 read twice": (lambda: (X - E.raw).scaled(E.fin), "field row1 .* is taken by .*, slot MUL3"),
    "two adjusts": (lambda: SCORE.scaled(F.fin, -22), "field adj2 .* is taken by .*, slot MUL3"),
    "r0 of a norm": (
        lambda: run(Builder(TINY), SHAPE, 20, X.scaled(E.fin).inverse_norm(G, F, 1)),
        "field r0 .* is taken by .*, slot REDUCE",
    ),
    "a source in SB": (lambda: vec(SB), "reads AB or PB or VB here, place lies in SB"),
    "a scale in VB": (lambda: X.scaled(V), "reads PB here, place lies in VB"),
    "a table in VB": (lambda: X.rotated(V), "reads PB here, place lies in VB"),
    "a term in AB": (lambda: vec(V) + A, "reads VB or PB here, place lies in AB"),
    "a factor in PB": (lambda: X.times(P), "reads VB here, place lies in PB"),
}


@pytest.mark.parametrize("name", CONFLICTS)
def test_what_is_not_one_pass_is_refused(name):
    make, message = CONFLICTS[name]
    with pytest.raises(InternalError, match=message):
        make()


WEIGHT = POWER.times(V, 15)
TAPS = {
    "what is written": (WEIGHT, WEIGHT, Tap.OUT),
    "what is clipped": (WEIGHT.high(), WEIGHT, Tap.OUT),
    "what the function gave": (WEIGHT.high(), POWER, Tap.FUNC),
    "what there is without MUL3": (POWER, (SCORE - F.raw).exp2(), Tap.OUT),
    "what the function got": (WEIGHT, SCORE - F.raw, None),
    "what FUNC got without MUL3": (POWER, SCORE - F.raw, None),
    "what a plane holds": (WEIGHT.high(), WEIGHT.high(), None),
    "something else": (WEIGHT, vec(V), None),
}


@pytest.mark.parametrize("name", TAPS)
def test_a_reduction_is_of_what_is_written_or_of_what_the_function_gave(name):
    value, reduced, tap = TAPS[name]
    if tap is None:
        with pytest.raises(InternalError, match="slot REDUCE"):
            run(Builder(TINY), SHAPE, 20, value, to=OB, reduce=reduced.sum(G))
    else:
        assert reduced.sum(G).tap(value) == tap
