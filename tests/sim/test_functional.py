"""What instructions mean, against plain loops over the definitions in hw/spec."""

import random
from dataclasses import replace

import numpy as np
import pytest

from hw.spec import vector, weights
from hw.spec.assembly import assemble
from hw.spec.config import BLOCK, CONFIGS
from hw.spec.isa import (
    CTL0,
    CTL1,
    FIELDS,
    Add,
    Dst,
    Error,
    Fin,
    Func,
    Mul1,
    Mul2,
    Mul3,
    MxMode,
    Reduce,
    Row,
    Src,
    StMode,
    Tap,
    Unit,
    pack_bits,
)
from hw.spec.run import Invocation, MachineError
from sim import weight_stream
from sim.cycle import CycleBackend
from sim.functional import FunctionalBackend, Machine
from sim.functional_checks import control
from sim.functional_sequencer import Issued
from sim.functional_state import State, store
from sim.functional_vector import vector_pass
from sim.memory_image import MemoryImage
from tests.sim import streams

TINY = CONFIGS["tiny"]
PROGRAM = 65536


def issue(unit: str, wait: str = "none", signal: str = "none", **fields: int) -> str:
    """Text that sets every field of a unit (0 where not given) and issues."""
    values = dict.fromkeys(FIELDS[Unit[unit.upper()]], 0) | ({"n_outer": 1} if unit == "mx" else {}) | fields
    sets = [f"SET {unit}.{name}, r0 + {value}" for name, value in values.items()]
    return "\n".join([*sets, f"ISSUE {unit}, wait={wait}, signal={signal}"])


def machine(memory: MemoryImage, *text: str, args=(), **options) -> Machine:
    code = assemble("\n".join(text))
    memory.write(TINY.aux_port, PROGRAM * 64, code)
    return Machine(TINY, memory, Invocation(PROGRAM, len(code) // 8, args=args, **options))


def status(*text: str, **options) -> Error:
    memory = MemoryImage(TINY)
    code = assemble("\n".join(text))
    memory.write(TINY.aux_port, PROGRAM * 64, code)
    call = Invocation(PROGRAM, len(code) // 8, **options)
    return FunctionalBackend().run(TINY, memory, call).status


def raw_stream(matrix: np.ndarray, units: int, unit: int, mode: MxMode) -> np.ndarray:
    """One unit's RAW blocks of int8[out, in]."""
    n_out, n_in = matrix.shape
    blocks = []
    rows = range(unit, n_out // BLOCK, units) if mode == MxMode.SPLIT_N else range(n_out // BLOCK)
    columns = range(n_in // BLOCK) if mode == MxMode.SPLIT_N else range(unit, n_in // BLOCK, units)
    for j in rows:
        blocks += [matrix[j * 16 : j * 16 + 16, k * 16 : k * 16 + 16].tobytes() for k in columns]
    return np.frombuffer(b"".join(blocks), np.uint8)


def blocks_of(matrix: np.ndarray, units: int, unit: int) -> np.ndarray:
    """The unit's output blocks of int[out, in]: int[steps * 16, in]."""
    return matrix.reshape(-1, units, BLOCK, matrix.shape[1])[:, unit].reshape(-1, matrix.shape[1])


def put(memory: MemoryImage, data: list[bytes], clean: bool = True) -> int:
    """Streams of all units at beat 16; beats of one."""
    for unit, bytes_of_unit in enumerate(data):
        if clean:
            memory.attach(unit, 1024, np.frombuffer(bytes_of_unit, np.uint8))
        else:
            memory.write(unit, 1024, bytes_of_unit)
    return len(data[0]) // 64


@pytest.mark.parametrize("mode", list(MxMode))
@pytest.mark.parametrize("header", [0, 1])
def test_product(mode, header):
    if header and mode == MxMode.SPLIT_K:
        return
    rng = np.random.default_rng(1)
    n_rows, units = 5, TINY.units
    ob, kb = 3, 40
    n_out = ob * BLOCK * (units if mode == MxMode.SPLIT_N else 1)
    n_in = kb * BLOCK * (1 if mode == MxMode.SPLIT_N else units)
    w = rng.integers(-127, 128, (n_out, n_in), np.int8)
    x = rng.integers(-127, 128, (n_rows, n_in), np.int8)
    memory = MemoryImage(TINY)
    if header:
        beats = put(memory, [streams.dense(blocks_of(w, units, u)) for u in range(units)])
        assert beats == weights.stream_beats(n_out, n_in, units)
    else:
        beats = put(memory, [raw_stream(w, units, u, mode).tobytes() for u in range(units)])
    m = machine(
        memory,
        issue("rd", addr=16, n_outer=1, n_inner=beats, fmt=header),
        issue(
            "mx", act=8, act_stride=n_in // 16, n_rows=n_rows, kb=kb, ob=ob, dst=7, dst_stride=n_out // 16, mode=mode
        ),
        "HALT 0",
    )
    m.executor.state.ob[8 : 8 + n_rows * n_in // 16] = x.reshape(-1, 16)
    m.run()
    got = m.executor.state.ab[7 : 7 + n_rows * n_out // 16].reshape(n_rows, n_out)
    np.testing.assert_array_equal(got, x.astype(np.int64) @ w.T.astype(np.int64))


@pytest.mark.parametrize("runs", [1, 2, 5, 16])
@pytest.mark.parametrize("nonzeros", weights.NONZEROS)
def test_every_format_reads_back(runs, nonzeros):
    """Encoded weights, and random payload bytes against the slow reader, over all numbers of rounds and precisions."""
    if runs > 1 and nonzeros == 16:
        return
    rng = random.Random(runs * 100 + nonzeros)
    for batches in range(1, 1 + weights.WINDOW // weights.round_blocks(nonzeros)):
        for bits in weights.BITS if runs == 1 else [rng.choice([3, *weights.BITS]) for _ in range(3)]:
            part = 1, nonzeros < 16, tuple(range(runs)), batches
            bundle = streams.random_bundle(rng, part, nonzeros, batches, True, bits if rng.random() < 0.5 else None)
            w = [streams.random_weights(rng, run) for run in bundle]
            data = streams.stream([(bundle, streams.encode_bundle(bundle, w))])
            np.testing.assert_array_equal(weight_stream.matrix(beats_of(data), 256)[:, :, 128:], w)
            noise = streams.stream([(bundle, rng.randbytes(64 * streams.bundle_beats(bundle)))])
            np.testing.assert_array_equal(weight_stream.matrix(beats_of(noise), 256), streams.decode(noise, 256))


def beats_of(data: bytes) -> np.ndarray:
    return np.frombuffer(data, np.uint8).reshape(-1, 64)


@pytest.mark.parametrize("seed", range(16))
def test_random_streams(seed):
    """Plans and weights of mixed streams, products that share reads, from attached and from written memory."""
    rng = random.Random(seed)
    units, windows, ob, n_rows = TINY.units, 3, rng.randint(3, 6), 3
    group, first = rng.choice([1, 2, 3, 8]), rng.randint(1, ob)
    kb = windows * 8 - rng.randrange(8)
    parts = [part for part in ((0, first), (first, ob)) if part[0] < part[1]]
    sizes = [size for low, high in parts for size in streams.group_sizes(high - low, group)]
    data = streams.random_streams(rng, units, streams.random_shape(rng, sizes, windows, most=3))
    for one in data:
        plan, _ = weight_stream.walk(beats_of(one))
        kinds = {i: kind for i, kind in enumerate(streams.beat_kinds(one)) if kind}
        assert plan.ends.tolist() == list(kinds)
        assert plan.info.tolist() == [
            window << 7 | step << 3 | last << 1 | more << 2 | sparse
            for window, step, sparse, more, last in kinds.values()
        ]
    dense = np.stack([streams.decode(one, windows * 128) for one in data], axis=1)  # [ob, units, 16, inputs]
    numbers = np.random.default_rng(seed)
    for clean in (True, False):
        memory = MemoryImage(TINY)
        n = put(memory, data, clean)
        fields = {"act": TINY.ob_blocks - 24, "act_stride": (1 << 32) - 100, "n_rows": n_rows, "kb": kb}
        products = [
            issue("mx", ob=high - low, group=group, dst=200 * i, dst_stride=ob * units, **fields)
            for i, (low, high) in enumerate(parts)
        ]
        m = machine(memory, issue("rd", addr=16, n_outer=1, n_inner=n, fmt=1), *products, "HALT 0")
        m.executor.state.ob[:] = numbers.integers(-128, 128, m.executor.state.ob.shape)
        at = (TINY.ob_blocks - 24 - 100 * np.arange(n_rows)[:, None] + np.arange(windows * 8)) % TINY.ob_blocks
        x = m.executor.state.ob[at].reshape(n_rows, -1).astype(np.int64)
        m.run()
        expected = np.einsum("ri,suoi->rsuo", x, dense).reshape(n_rows, ob * units, 16)
        for i, (low, high) in enumerate(parts):
            for r in range(n_rows):
                granules = m.executor.state.ab[200 * i + r * ob * units :][: (high - low) * units]
                np.testing.assert_array_equal(granules, expected[r, low * units : high * units])


def test_the_last_turn_may_have_fewer_rows():
    """Two turns of the outer loop over the same steps, of three rows and of one; the rows behind stay as they were."""
    rng = random.Random(1)
    data = streams.random_streams(rng, TINY.units, streams.random_shape(rng, [2, 2], 1))
    dense = np.stack([streams.decode(one, 128) for one in data], axis=1)  # [steps, units, 16, inputs]
    memory, units = MemoryImage(TINY), TINY.units
    n = put(memory, data)
    fields = {"n_rows": 3, "n_last": 1, "n_outer": 2, "kb": 8, "ob": 2, "group": 2, "act_stride": 8, "act_out": 24}
    product = issue("mx", dst_stride=2 * units, dst_out=6 * units, **fields)
    m = machine(memory, issue("rd", addr=16, n_outer=1, n_inner=n, fmt=1), product, "HALT 0")
    m.executor.state.ob[:] = np.random.default_rng(1).integers(-128, 128, m.executor.state.ob.shape)
    m.executor.state.ab[:] = -1
    x = m.executor.state.ob[:48].reshape(6, 128).astype(np.int64)
    m.run()
    for row, turn in [(0, 0), (1, 0), (2, 0), (3, 1)]:
        expected = np.einsum("i,suoi->suo", x[row], dense[2 * turn : 2 * turn + 2]).reshape(-1, 16)
        np.testing.assert_array_equal(m.executor.state.ab[row * 2 * units :][: 2 * units], expected)
    assert (m.executor.state.ab[4 * 2 * units :] == -1).all()


def test_repeated_indices_add_up_exactly():
    """Masks without bits: several weights of a row meet the same input, far beyond what an int8 weight can reach."""
    run = weights.Run(8, 8, 0, 0b11111111, True)
    body = b"".join(bytes(64) + b"\x7f" * 256 for _ in run.rounds())
    memory = MemoryImage(TINY)
    n = put(memory, [streams.stream([([run], body)])] * TINY.units)
    m = machine(memory, issue("rd", addr=16, n_outer=1, n_inner=n, fmt=1), issue("mx", n_rows=1, kb=8, ob=1), "HALT 0")
    m.executor.state.ob[:] = 127
    m.run()
    assert (m.executor.state.ab[: TINY.units] == 8 * 8 * 127 * 127).all()


def refusal(data: list[bytes], *text: str) -> tuple:
    """(status, detail, instructions before the one it names) of a program on these streams."""
    results = []
    for backend in (FunctionalBackend(), CycleBackend(), CycleBackend(with_data=True)):
        memory = MemoryImage(TINY)
        put(memory, data)
        code = assemble("\n".join(text))
        memory.write(TINY.aux_port, PROGRAM * 64, code)
        result = backend.run(TINY, memory, Invocation(PROGRAM, len(code) // 8))
        results.append((result.status, result.detail, result.pc))
    return results


def filler(window: int = 0, nonzeros: int = 16, last: bool = True, blocks: int = 1, steps=(0,), bits: int = 2) -> bytes:
    """A bundle of zeros, of a run for each of these steps."""
    zeros = (0,) * 16
    bundle = [weights.Run(bits, nonzeros, window, blocks, last, zeros, step, step != steps[-1]) for step in steps]
    return streams.stream([(bundle, bytes(streams.bundle_beats(bundle) * 64))])


def one_length(*data: bytes) -> tuple[bytes, ...]:
    """Filled up with padding."""
    return tuple(one.ljust(max(map(len, data)), b"\0") for one in data)


RD_PC = len(FIELDS[Unit.RD])
MX_PC = RD_PC + 1 + len(FIELDS[Unit.MX])


BOTH = filler(nonzeros=8, steps=(0, 1))


@pytest.mark.parametrize(
    "data, fields",
    [
        ((filler(), filler(window=1)), {}),
        ((filler(), filler(last=False)), {}),
        (one_length(filler(nonzeros=8), filler()), {}),
        (one_length(filler(blocks=3), filler()), {}),
        ((filler(), filler()), {"mode": 1}),
        ((filler(window=2), filler(window=2)), {"kb": 16}),
        # Groups: another step, another place in the batch, a step behind the group, one without a round.
        (one_length(filler(nonzeros=8), filler(nonzeros=8, steps=(1,))), {"ob": 2, "group": 2}),
        (one_length(BOTH, filler(nonzeros=8, last=False) + filler(nonzeros=8, steps=(1,))), {"ob": 2, "group": 2}),
        ((BOTH, BOTH), {"ob": 2}),
        ((filler(steps=(1,)), filler(steps=(1,))), {}),
        ((filler(nonzeros=4), filler(nonzeros=4)), {"ob": 2, "group": 2}),
        ((filler(steps=(1,)), filler(steps=(1,))), {"ob": 2, "group": 2}),
        ((filler() + BOTH, filler() + BOTH), {"ob": 3, "group": 3}),
        ((filler(nonzeros=8, steps=(1,)),) * 2, {"ob": 2, "group": 2, "n_rows": 5}),
    ],
)
def test_rounds_that_a_product_refuses(data, fields):
    product = {"n_rows": 1, "kb": 24, "ob": 1} | fields
    text = [issue("rd", addr=16, n_outer=1, n_inner=len(data[0]) // 64, fmt=1), issue("mx", **product), "HALT 0"]
    functional, timing, both = refusal(data, *text)
    assert functional == timing == both == (Error.STREAM_HEADER, Unit.MX, MX_PC)


def test_a_group_of_more_steps_than_the_accumulators_hold_is_refused():
    """Each of 17 to 32 rows takes 32 of 128 accumulator rows."""
    for group, expected in ((4, Error.NONE), (5, Error.ILLEGAL_DESCRIPTOR)):
        data = [filler(nonzeros=8, steps=tuple(range(group)))] * 2
        text = issue("rd", addr=16, n_outer=1, n_inner=len(data[0]) // 64, fmt=1)
        results = refusal(data, text, issue("mx", n_rows=17, kb=8, ob=group, group=group), "HALT 0")
        assert {r[0] for r in results} == {expected}


@pytest.mark.parametrize("field, value", [("window", 1), ("nonzeros", 4), ("blocks", 3), ("last", False), ("step", 0)])
def test_runs_that_break_their_bundle(field, value):
    first, second = (weights.Run(2, 8, 0, 1, True, step=step, more=not step) for step in (0, 1))
    data = (first.encode() + replace(second, **{field: value}).encode()).ljust(64 * 8, b"\0")
    read = issue("rd", addr=16, n_outer=1, n_inner=8, fmt=1)
    results = refusal([data] * 2, read, issue("mx", n_rows=1, kb=8, ob=2, group=2), "HALT 0")
    assert set(results) == {(Error.STREAM_HEADER, Unit.RD, RD_PC)}


def test_a_bundle_that_never_ends_and_one_that_stops_short():
    endless = b"".join(weights.Run(2, 8, 0, 1, step=step, more=True).encode() for step in range(16))
    short = weights.Run(2, 8, 0, 1, more=True).encode().ljust(128, b"\0")
    for data in (endless, short):
        read = issue("rd", addr=16, n_outer=1, n_inner=len(data) // 64, fmt=1)
        assert {r[:2] for r in refusal([data] * 2, read, "HALT 0")} == {(Error.STREAM_HEADER, Unit.RD)}


@pytest.mark.parametrize("place, value", [(0, 0xB), (2, 0x40), (3, 0x80)])
def test_slots_that_are_no_runs(place, value):
    """Magic, N beyond the list, a dense run that goes on."""
    data = bytearray(filler())
    if place == 2:
        word = int.from_bytes(data[:4], "little") | 7 << 6
        data[:4] = word.to_bytes(4, "little")
    else:
        data[place] |= value
    read = issue("rd", addr=16, n_outer=1, n_inner=len(data) // 64, fmt=1)
    for unit in range(TINY.units):
        both = [filler()] * TINY.units
        both[unit] = bytes(data)
        results = refusal(both, read, issue("mx", n_rows=1, kb=8, ob=1), "HALT 0")
        assert set(results) == {(Error.STREAM_HEADER, Unit.RD, RD_PC)}


@pytest.mark.parametrize("fmt", [0, 1])
def test_a_run_that_its_read_cuts_off_waits_for_more_and_gets_a_wrong_beat(fmt):
    data = filler(blocks=255)
    n = len(data) // 64
    cut, product = issue("rd", addr=16, n_outer=1, n_inner=n - 1, fmt=1), issue("mx", n_rows=1, kb=8, ob=1)
    results = refusal([data] * 2, cut, product, "HALT 0")
    assert set(results) == {(Error.WATCHDOG, 5, MX_PC + 1)}
    following = issue("rd", addr=16, n_outer=1, n_inner=4, fmt=fmt)
    results = refusal([data] * 2, cut, following, product, "HALT 0")
    assert set(results) == {(Error.STREAM_HEADER, Unit.RD, 2 * RD_PC + 1)}


def test_a_stream_inside_a_raw_block_and_a_step_of_two_formats():
    two = issue("rd", addr=16, n_outer=1, n_inner=2, fmt=1)
    inside = refusal([filler()] * 2, issue("rd", addr=16, n_outer=1, n_inner=2), two, "HALT 0")
    assert {r[:2] for r in inside} == {(Error.STREAM_HEADER, Unit.RD)}
    raw = issue("rd", addr=16, n_outer=1, n_inner=4)
    mixed = refusal([filler()] * 2, raw, two, issue("mx", n_rows=1, kb=2, ob=1), "HALT 0")
    assert {r[:2] for r in mixed} == {(Error.STREAM_HEADER, Unit.MX)}
    whole = refusal([filler()] * 2, raw, two, issue("mx", n_rows=1, kb=1, ob=2), "HALT 0")
    assert {r[0] for r in whole} == {Error.NONE}


@pytest.mark.parametrize(
    "window, act, expected",
    [(0, 4095, Error.NONE), (1, 4095, Error.BUFFER_RANGE), (1, 4087, Error.NONE), (1, 4088, Error.BUFFER_RANGE)],
)
def test_windows_wrap_at_the_end_of_the_operand_buffer(window, act, expected):
    text = issue("rd", addr=16, n_outer=1, n_inner=2, fmt=1), issue("mx", act=act, n_rows=1, kb=16, ob=1), "HALT 0"
    assert refusal([filler(window)] * 2, *text)[0][0] == expected


def test_load_vector_store_and_loops():
    """r1 times: load a beat, double it (x + x), store it."""
    memory = MemoryImage(TINY)
    data = np.arange(64, dtype=np.int32) - 30
    memory.attach(TINY.aux_port, 0, data)
    copy = pack_bits(CTL0, {"src": Src.P, "add": Add.P, "dst": Dst.SB})
    text = "\n".join(
        [
            "ADDI r2, r0, 0",
            "LOOP r1, @",
            issue("ld", n_outer=1, n_inner=1, signal="vu", wait="none").replace(
                "SET ld.addr, r0 + 0", "SET ld.addr, r2 + 0"
            ),
            issue("vu", wait="ld", signal="st", ctl0=copy, n_outer=1, n_mid=1, n_words=1, len0=16),
            issue("st", wait="vu", n_tok=1, n_head=1, n_gran=1).replace("SET st.addr, r0 + 0", "SET st.addr, r2 + 100"),
            "FENCE st",
            "ADDI r2, r2, 1",
            "ENDL",
            "HALT 0",
        ]
    )
    endl = next(i for i, line in enumerate(text.splitlines()) if line == "ENDL")
    machine(memory, text.replace("@", str(endl)), args=(4,)).run()
    np.testing.assert_array_equal(memory.read(TINY.aux_port, 6400, 256).view(np.int32), 2 * data)


def test_scalar_load_and_branches():
    memory = MemoryImage(TINY)
    memory.write(TINY.aux_port, 40, np.array([3], np.int32))
    m = machine(memory, "LDS r1, r0 + 10", "ADDI r2, r2, 5", "ADDI r1, r1, -1", "BNE r1, r0, 1", "HALT 0")
    m.run()
    assert m.sequencer.registers[1:3] == [0, 15]


@pytest.mark.parametrize("mode", list(StMode))
def test_store_modes(mode):
    rng = np.random.default_rng(int(mode))
    memory = MemoryImage(TINY)
    state = State(TINY, memory)
    state.sb[:] = rng.integers(-128, 128, state.sb.shape)
    f = dict.fromkeys(FIELDS[Unit.ST], 0) | {
        "mode": mode,
        "addr": 128,
        "src": 3,
        "src_tok": 8,
        "src_head": 4,
        "pos": 13,
        "n_tok": 40,
        "n_head": 2,
        "n_gran": 3,
        "stride_tok": 6,
        "stride_head": 400,
        "stride_slot": 16,
        "stride_gran": 4,
    }
    store(state, Issued(Unit.ST, 0, f, 0, 0))
    expected = {}
    for t in range(40):
        key = 13 + t
        block, k = key >> 4, key & 15
        unit, slot = block % TINY.units, block // TINY.units
        for h in range(2):
            for g in range(3):
                granule = state.sb[3 + t * 8 + h * 4 + g]
                place(expected, mode, f, granule, (t, h, g, key, unit, slot, k))
    for port in range(TINY.units + 1):
        image = np.zeros(1 << 16, np.uint8)
        for (its, at), value in expected.items():
            if its == port:
                image[at] = value
        np.testing.assert_array_equal(memory.read(port, 0, 1 << 16), image)


def place(expected, mode, f, granule, where):
    t, h, g, key, unit, slot, k = where
    aux = TINY.aux_port
    if mode == StMode.LIN:
        at = (128 + t * 6 + h * 400 + g) * 64
        expected.update({(aux, at + i): b for i, b in enumerate(granule.tobytes())})
    elif mode == StMode.SC:
        at = (128 + h * 400 + (key >> 4)) * 64 + (key & 15) * 4
        expected.update({(aux, at + i): b for i, b in enumerate(granule[:1].tobytes())})
    else:
        beat = 128 + h * 400 + slot * 16 + g * 4
        for lane, value in enumerate(granule.astype(np.int8).view(np.uint8)):
            if mode == StMode.K:
                expected[unit, (beat + (k >> 2)) * 64 + (k & 3) * 16 + lane] = value
            else:
                expected[unit, (beat + lane // 4) * 64 + lane % 4 * 16 + k] = value


def naive_pass(state: State, f: dict) -> None:
    """hw.spec.vector on Python integers, a lane at a time."""
    ctl, lanes = control(f), TINY.lanes
    ab, pb, vb, sb = (state.words(b) for b in (state.ab, state.pb, state.vb, state.sb))

    def entry(name, o, m):
        at = f[name] + o * f[f"{name}_out"] + m * f[f"{name}_mid"]
        return int(state.raw[at]), int(state.fin[at])

    for o in range(f["n_outer"]):
        for m in range(f["n_mid"]):
            if m == 0 or not ctl["level"]:
                offered = []
            (raw0, fin0), (raw1, fin1) = entry("r0", o, m), entry("r1", o, m)
            r0, r1 = vector.row_value(ctl["row0"], raw0, fin0), vector.row_value(ctl["row1"], raw1, fin1)
            at = {n: f[n] + o * f[f"{n}_out"] + m * f[f"{n}_mid"] for n in "apvd"}
            for i in range(f["n_words"]):
                a, p, v = ([int(x) for x in b[at[n] + i]] for n, b in (("a", ab), ("p", pb), ("v", vb)))
                source = {Src.A: a, Src.V: v, Src.P: p, Src.R0: [r0] * lanes}[ctl["src"]]
                for lane in range(lanes):
                    out, tapped = vector.lane(ctl, a[lane], p[lane], v[lane], source[lane ^ 1], r0, r1, f["imm0"])
                    valid = i * lanes + lane < f["len0"] + o * f["len_step"]
                    if valid:
                        offered.append(vector.contribution(ctl["reduce"], tapped, raw0))
                    naive_write(state, ctl, at["d"], i, lane, out * valid, vb, sb)
            if ctl["reduce"] and (not ctl["level"] or m == f["n_mid"] - 1):
                total = max([vector.identity(ctl["reduce"]), *offered]) if ctl["reduce"] in (2, 3) else sum(offered)
                w = f["w"] + o * f["w_out"] + (0 if ctl["level"] else m * f["w_mid"])
                state.raw[w], state.fin[w] = vector.finish(ctl, total, raw0, f["imm1"])


def naive_write(state, ctl, d, i, lane, out, vb, sb):
    if ctl["dst"] == Dst.VB:
        vb[d + i, lane] = out
    elif ctl["dst"] == Dst.SB:
        sb[d + i, lane] = out
    elif ctl["dst"] != Dst.NONE:
        state.ob[d + i * (TINY.lanes // 16) + lane // 16, lane % 16] = out


def random_pass(rng: random.Random) -> dict:
    ctl0 = {
        "src": rng.choice(list(Src)),
        "mul1": rng.choice(list(Mul1)),
        "mul2": rng.choice(list(Mul2)),
        "add": rng.choice(list(Add)),
        "func": rng.choice(list(Func)),
        "mul3": rng.choice(list(Mul3)),
        "row0": rng.choice(list(Row)),
        "row1": rng.choice(list(Row)),
        "tap": rng.choice(list(Tap)),
        "reduce": rng.choice(list(Reduce)),
        "fin": rng.choice(list(Fin)),
        "dst": rng.choice(list(Dst)),
        "clip8": rng.randrange(2),
        "level": rng.randrange(2),
    }
    ctl1 = {"adj1": rng.randint(-20, 20), "adj2": rng.randint(-20, 20), "sh3": rng.randint(0, 20)}
    f = dict.fromkeys(FIELDS[Unit.VU], 0) | {
        "ctl0": pack_bits(CTL0, ctl0),
        "ctl1": pack_bits(CTL1, ctl1),
        "imm0": rng.getrandbits(25),
        "imm1": rng.getrandbits(25),
        "n_outer": rng.randint(1, 3),
        "n_mid": rng.randint(1, 3),
        "n_words": rng.randint(1, 3),
        "len0": rng.randint(1, 48),
        "len_step": rng.randint(0, 5),
    }
    for name, base in (("a", 0), ("p", 5), ("v", 7), ("d", 200), ("r0", 0), ("r1", 20), ("w", 100)):
        f |= {name: base, f"{name}_out": 9, f"{name}_mid": 3}
    return f


@pytest.mark.parametrize("seed", range(60))
def test_vector_pass(seed):
    rng, numbers = random.Random(seed), np.random.default_rng(seed)
    states = [State(TINY, MemoryImage(TINY)) for _ in range(2)]
    bits = numbers.integers(4, 32)
    for name in ("ab", "pb", "vb"):
        values = numbers.integers(-(1 << bits - 1), 1 << bits - 1, getattr(states[0], name).shape)
        for s in states:
            getattr(s, name)[:] = values
    raw, fin = numbers.integers(0, 1 << 20, 1024), numbers.integers(0, 1 << 25, 1024)
    for s in states:
        s.raw[:], s.fin[:] = raw, fin
    f = random_pass(rng)
    vector_pass(states[0], Issued(Unit.VU, 0, f, 0, 0))
    naive_pass(states[1], f)
    for name in ("ab", "vb", "sb", "ob", "raw", "fin"):
        np.testing.assert_array_equal(
            getattr(states[0], name), getattr(states[1], name), err_msg=f"{name} {control(f)}"
        )


@pytest.mark.parametrize(
    "text, expected",
    [
        ("HALT 3", Error.HALT_CODE),
        (".word 0xff", Error.ILLEGAL_INSTRUCTION),
        ("ADDI r1, r0, 1", Error.PC_RANGE),
        ("ENDL", Error.LOOP_STACK),
        ("ADDI r1, r0, 1\nBEQ r0, r0, 0", Error.INSTRUCTION_LIMIT),
        ("ISSUE vu, wait=ld, signal=none\nHALT 0", Error.WATCHDOG),
        (issue("vu") + "\nHALT 0", Error.ILLEGAL_DESCRIPTOR),
        (issue("ld", n_outer=1, n_inner=1, kind=5) + "\nHALT 0", Error.ILLEGAL_DESCRIPTOR),
        (issue("st", n_tok=1, n_head=1, n_gran=1, kind=4) + "\nHALT 0", Error.ILLEGAL_DESCRIPTOR),
        (issue("ld", addr=1 << 30, n_outer=1, n_inner=1) + "\nHALT 0", Error.BUS_READ),
        (issue("ld", n_outer=1, n_inner=1, dst=2048) + "\nHALT 0", Error.BUFFER_RANGE),
        (issue("st", addr=1 << 30, n_tok=1, n_head=1, n_gran=1) + "\nHALT 0", Error.BUS_WRITE),
        ("\n".join(f"ADDI r1, r0, 1\nLOOP r1, {2 * i + 1}" for i in range(5)), Error.LOOP_STACK),
    ],
)
def test_statuses(text, expected):
    assert status(text, instruction_limit=1000) == expected


@pytest.mark.parametrize("blocks", [49, 48])
def test_reads_beyond_the_fifo_wait_for_the_product(blocks):
    """A product that waits for the end of a read which waits for space: nothing can move. The weight buffer holds 32
    rounds of 4 beats, the FIFO 64."""
    read = issue("rd", n_outer=1, n_inner=4 * blocks, signal="mx")
    product = issue("mx", wait="rd", n_rows=1, kb=blocks, ob=1)
    if blocks == 48:
        assert status(read, product, "HALT 0") == Error.NONE
        return
    assert status(read, product, "HALT 0") == Error.WATCHDOG
    assert status(read, product.replace("wait=rd", "wait=none"), "HALT 0") == Error.NONE


def test_machine_error_says_where():
    with pytest.raises(MachineError) as caught:
        machine(MemoryImage(TINY), issue("vu"), "HALT 0").run()
    assert caught.value.detail == Unit.VU and caught.value.pc == len(FIELDS[Unit.VU])
