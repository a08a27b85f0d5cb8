"""The vector unit against `hw.spec.vector`: values, row scalars, errors, and the cycle of `done`."""

import random

import numpy as np
import pytest

from hw.spec import numerics as nm
from hw.spec.isa import Dst, Error, Fin, Func, Mul1, Mul3, Reduce, Row, Src
from hw.spec.timing import VU_LATENCY
from tests.hw.vector_bench import CONFIG, binary, mismatch, simulate, verilog
from tests.hw.vector_oracle import descriptor, dump, parameters, random_pass, values

LANES = CONFIG.lanes


@pytest.fixture(scope="module")
def program():
    return binary(verilog())


def buffers(seed):
    rng = random.Random(seed)
    return values(rng, 256, LANES), parameters(rng, 256, LANES)


@pytest.mark.parametrize("seed", range(8))
def test_random_passes(program, seed):
    rng = random.Random(f"vector {seed}")
    passes = []
    for number in range(150):
        passes.append(random_pass(rng, number, LANES))
        passes += dump() if rng.random() < 0.5 else ()
    assert mismatch(program, *buffers(seed), passes) is None, f"seed {seed}"


@pytest.mark.parametrize("func", Func)
def test_functions_densely(program, func):
    """Every table segment, both sides of every boundary, and far outside."""
    if func == Func.EXP2:
        points = [x + e for x in range(-(24 << 16), 1 << 16, 1 << 8) for e in (-1, 0)]
    else:
        points = [x + e for x in range(-(17 << 16), 17 << 16, 1 << 10) for e in (-1, 0, 1)]
    points += [nm.INT32_MIN, nm.INT32_MAX]
    points = points[: len(points) // LANES * LANES] + [nm.INT32_MIN, nm.INT32_MAX] * (LANES // 2)
    points = np.array(points, np.int64).reshape(-1, LANES)
    n = min(len(points), 1000)
    d = descriptor({"src": Src.A, "func": func, "dst": Dst.SB}, n_words=n)
    rest = descriptor({"src": Src.A, "func": func, "dst": Dst.OBL}, n_words=n, a=len(points) - n)
    assert mismatch(program, points, points[:1], [d, rest]) is None


@pytest.mark.parametrize("fin", Fin)
def test_finaliser_on_every_magnitude(program, fin):
    """Rows of one word, back to back: a finalised total every cycle."""
    rng = random.Random(f"finaliser {fin}")
    totals = [0, nm.INT32_MIN, nm.INT32_MAX] + [(1 << k) + e for k in range(31) for e in (-1, 0, 1)]
    totals += [rng.getrandbits(31) >> rng.randrange(31) for _ in range(150)]
    totals = totals[:240]
    ab = np.zeros((256, LANES), np.int64)
    ab[: len(totals), 3] = totals
    passes = []
    for reduce in (Reduce.MAX, Reduce.SUM, Reduce.ABSMAX, Reduce.SUMSQ):
        for imm1 in (0, 1, 0xFFFFFFFF, nm.encode_scale(1 / 576), nm.pack_scale(65535, 1, 1)):
            control = {"src": Src.A, "reduce": reduce, "fin": fin}
            passes.append(descriptor(control, n_mid=len(totals), a_mid=1, w=0, w_mid=1, r0=300, r0_mid=1, imm1=imm1))
            for kind in (Row.RAW, Row.FIN):
                passes.append(
                    descriptor({"src": Src.R0, "dst": Dst.SB, "row0": kind}, n_mid=len(totals), r0_mid=1, d_mid=1)
                )
        # The next round squares by shifts of every size.
        passes.append(descriptor({"src": Src.A, "reduce": Reduce.ABSMAX}, n_mid=len(totals), a_mid=1, w=300, w_mid=1))
    assert mismatch(program, ab, ab[:1], passes) is None


@pytest.mark.parametrize("extreme", (nm.INT32_MIN, nm.INT32_MAX))
def test_largest_products_and_sums(program, extreme):
    ab = np.full((64, LANES), extreme, np.int64)
    passes = [descriptor({"src": Src.P, "dst": Dst.VB})]
    passes += [descriptor({"src": Src.A, "mul3": Mul3.V, "sh3": shift, "dst": Dst.SB}) for shift in range(62)]
    passes.append(
        descriptor(
            {"src": Src.A, "reduce": Reduce.SUM, "level": 1, "fin": Fin.MEAN},
            n_outer=2,
            n_mid=5000,
            n_words=1,
            w=1,
            w_out=1,
            imm1=nm.pack_scale(40000, 20),
        )
    )
    passes += dump()
    assert mismatch(program, ab, ab, passes) is None


def test_rows_without_valid_lanes(program):
    passes = []
    for number, reduce in enumerate(Reduce):
        for level in (0, 1):
            passes.append(
                descriptor(
                    {"src": Src.A, "reduce": reduce, "fin": Fin.QRECIP, "level": level, "dst": Dst.OB},
                    n_outer=3,
                    n_mid=2,
                    n_words=2,
                    len0=0,
                    len_step=17,
                    w=number * 6,
                    w_out=2,
                    w_mid=1,
                )
            )
            passes += dump()
    assert mismatch(program, *buffers(5), passes) is None


USES = [
    ("a", {"src": Src.A}, CONFIG.ab_granules),
    ("p", {"src": Src.P}, CONFIG.pb_granules),
    ("p", {"mul1": Mul1.ROPE, "src": Src.R0}, CONFIG.pb_granules),
    ("v", {"src": Src.V}, CONFIG.vb_granules),
    ("d", {"dst": Dst.VB}, CONFIG.vb_granules),
    ("d", {"dst": Dst.SB}, CONFIG.sb_granules),
    ("d", {"dst": Dst.OBH}, CONFIG.ob_blocks),
    ("r0", {"src": Src.R0}, CONFIG.rs_entries),
    ("r0", {"fin": Fin.RSQRT}, CONFIG.rs_entries),
    ("r1", {"mul3": Mul3.R1}, CONFIG.rs_entries),
    ("w", {"reduce": Reduce.SUM}, CONFIG.rs_entries),
]


@pytest.mark.parametrize("operand, control, size", USES)
def test_range(program, operand, control, size):
    """The last address is good, the next is not, however it is reached, and the pass stops writing there."""
    control = {"dst": Dst.SB} | control
    at = {"n_words": 2} if operand in "apvd" else {"n_mid": 2, f"{operand}_mid": 1}
    good = descriptor(control, **{operand: size - 2}, **at)
    bad = descriptor(control, **{operand: size - 1}, **at)
    backwards = descriptor(control, n_outer=2, **{operand: 1, f"{operand}_out": 0xFFFFFFFF})
    below = descriptor(control, n_outer=2, **{operand: 1, f"{operand}_out": 0xFFFFFFFE})
    unused = descriptor({"src": Src.A if operand != "a" else Src.P}, **{operand: size})
    results = simulate(program, *buffers(1), [good, bad, backwards, below, unused])
    beyond = (1, Error.BUFFER_RANGE)
    assert [r[2:] for r in results] == [(0, 0), beyond, (0, 0), beyond, (0, 0)]
    words = [2, 2, 2, 2, 1]
    assert [r[1] for r in results] == [n + VU_LATENCY for n in words]
    if control["dst"] != Dst.VB:
        assert [len(r[0]) for r in results] == [2, 1, 2, 1, 0]


@pytest.mark.parametrize(
    "fields",
    [
        {"n_outer": 0},
        {"n_mid": 0},
        {"n_words": 0},
        {"func": 6},
        {"mul3": 3},
        {"row0": 3},
        {"row1": 3},
        {"reduce": 5},
        {"fin": 5},
        {"dst": 6},
    ],
)
def test_illegal(program, fields):
    control = {k: v for k, v in fields.items() if not k.startswith("n_")}
    counts = {k: v for k, v in fields.items() if k.startswith("n_")}
    bad, good = descriptor({"dst": Dst.SB} | control, **counts), descriptor({"src": Src.A, "dst": Dst.SB})
    results = simulate(program, *buffers(1), [bad, good])
    assert results[0] == ([], VU_LATENCY, 1, Error.ILLEGAL_DESCRIPTOR)
    assert results[1][1:] == (1 + VU_LATENCY, 0, 0) and len(results[1][0]) == 1


@pytest.mark.slow
def test_the_comparison_notices_a_mutation(monkeypatch):
    """Rounding towards minus infinity instead of half up."""
    import hw.vector_arith as arith
    import hw.vector_lane as lane

    def truncating(m, product, shift, name):
        # 2 * floor(x / 2**s) << s: the fraction bit is lost
        return arith.delayed(m, arith.saturate(product >> shift, 32), arith.ROUND_SHIFT_LATENCY, name)

    monkeypatch.setattr(lane, "round_shift", truncating)
    rng = random.Random(3)
    passes = [random_pass(rng, number, LANES) for number in range(40)]
    assert mismatch(binary(verilog()), *buffers(3), passes) is not None
