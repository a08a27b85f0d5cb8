"""The whole machine in Verilator: hand-written programs against the cycle contract, numbers and errors."""

import numpy as np
import pytest

from hw.emit import TOP
from hw.spec import config as configurations
from hw.spec import csr
from hw.spec.isa import CTL0, FIELDS, Dst, Error, LdKind, Op, Src, StKind, StMode, StreamFormat, Unit, pack_bits
from hw.spec.timing import (
    ADDRESS_PIPE,
    AUX_BEAT,
    END_LATENCY,
    LDS_RETURN,
    MX_ACC_LATENCY,
    MX_DRAIN_LATENCY,
    SEQ_AFTER_FETCH,
    SEQ_FIRST,
    SEQ_INTERVAL,
    ST_END,
    ST_PIPE,
    UNIT_START,
    VU_LATENCY,
)
from sim.rtl import accelerator
from sim.rtl.lint import lint
from sim.rtl.run import Fault, MemoryImage
from tests.hw.machine import PROGRAM_BEAT, Program, execute

CONFIG = configurations.get("tiny")
AUX = CONFIG.aux_port
LD, ST, RD, MX, VU = Unit
pytestmark = pytest.mark.slow  # the first run after a change of hw/ builds for minutes
RNG = np.random.default_rng(11)


def ctl0(**fields):
    return pack_bits(CTL0, fields)


def vu_copy(src, dst, words, **fields):
    counts = {"n_outer": 1, "n_mid": 1, "n_words": words, "len0": words * CONFIG.lanes}
    return {"ctl0": ctl0(src=src, dst=dst)} | counts | fields


def test_halt_at_once():
    program = Program()
    program.halt()
    got = execute(program)
    fetch = got.raw.axi[0]
    latency = CONFIG.read_latency
    assert (got.status, got.status_detail, got.instructions) == (Error.NONE, 0, 1)
    assert got.cycles == 1 + ADDRESS_PIPE + latency + SEQ_AFTER_FETCH + END_LATENCY + 1 and fetch.n_beats == 1


def test_interval_and_second_start_without_fetch():
    program = Program()
    for _ in range(40):
        program.add(Op.ADDI, 1, 1, imm=1)
    program.halt()
    first = execute(program)
    fetched = 1 + ADDRESS_PIPE + CONFIG.read_latency + 5
    assert first.cycles == fetched + SEQ_AFTER_FETCH + SEQ_INTERVAL * 40 + END_LATENCY + 1
    # A first run without interrupt, register writes while it runs (START again is ignored), a second without fetch.
    busy = [(csr.CTRL, csr.CTRL_START)] + [(csr.REGISTERS["arg3"], i) for i in range(60)]
    before = [
        (csr.REGISTERS["program_addr"], PROGRAM_BEAT),
        (csr.REGISTERS["program_length"], 41),
        (csr.CTRL, 1),
        *busy,
    ]
    second = execute(program, before=before, flags=1)
    assert (second.status, second.instructions) == (0, 41)
    assert second.cycles == SEQ_FIRST + SEQ_INTERVAL * 40 + END_LATENCY + 1
    assert second.read_beats_aux == 0


def load_pass_store(program, beats, source, target, stride=None):
    rows = {} if stride is None else stride
    ld = program.issue(LD, signal=[VU], addr=source, n_outer=1, n_inner=beats, dst=0, **rows)
    vu = program.issue(VU, wait=[LD], signal=[ST], **vu_copy(Src.P, Dst.SB, beats))
    st = program.issue(ST, wait=[VU], mode=StMode.LIN, addr=target, src=0, n_tok=1, n_head=1, n_gran=beats)
    return ld, vu, st


@pytest.mark.parametrize("jitter", [0, 17])
def test_load_pass_store(jitter):
    beats, source, target = 70, 100, 9000
    data = RNG.integers(0, 256, 64 * beats, dtype=np.uint8)
    program = Program()
    ld, vu, st = load_pass_store(program, beats, source, target)
    program.halt()
    got = execute(
        program, image=[MemoryImage(AUX, source * 64, data)], dumps=[(AUX, target * 64, 64 * beats)], jitter=jitter
    )
    assert got.status == 0
    np.testing.assert_array_equal(np.frombuffer(got.raw.dumps[0], np.uint8), data)
    load, passed, store = (got.event(tag) for tag in (ld, vu, st))
    assert passed.done_cycle - passed.start_cycle == beats + VU_LATENCY
    assert passed.start_cycle == max(load.done_cycle + 1, load.start_cycle)
    assert store.start_cycle == passed.done_cycle + 1
    presented = UNIT_START + (beats - 1) + ST_PIPE
    assert store.done_cycle - store.start_cycle == presented + CONFIG.write_latency + ST_END
    if not jitter:
        arrives = UNIT_START + ADDRESS_PIPE + CONFIG.read_latency + (beats - 1)
        assert load.done_cycle - load.start_cycle == arrives + AUX_BEAT + 1
    assert got.read_beats_aux == beats + -(-len(program.words) // 8) and got.write_bytes_aux == 64 * beats
    assert got.busy_ld == load.done_cycle - load.start_cycle and got.cycles == store.done_cycle + 1 + END_LATENCY + 1


def store_cases():
    rng = np.random.default_rng(5)
    for mode in StMode:
        for pos in (0, 13, 37):
            yield mode, pos, int(rng.integers(1, 4)), 1 if mode == StMode.SC else int(rng.integers(1, 4))


@pytest.mark.parametrize(("mode", "pos", "n_head", "n_gran"), list(store_cases()))
def test_store_modes(mode, pos, n_head, n_gran):
    n_tok, units = 6, CONFIG.units
    strides = {"stride_tok": 32, "stride_head": 512, "stride_slot": 4, "stride_gran": 64}
    if mode == StMode.SC:
        strides["stride_head"] = 16
    granules = n_tok * n_head * n_gran
    target, size = 2048, 64 * 2048
    data = RNG.integers(-(2**31), 2**31, (granules, 16)).astype("<i4")
    program = Program()
    program.issue(LD, signal=[VU], addr=0, n_outer=1, n_inner=granules, dst=0)
    program.issue(VU, wait=[LD], signal=[ST], **vu_copy(Src.P, Dst.SB, granules))
    program.issue(
        ST,
        wait=[VU],
        mode=mode,
        addr=target,
        src=0,
        src_tok=n_head * n_gran,
        src_head=n_gran,
        pos=pos,
        n_tok=n_tok,
        n_head=n_head,
        n_gran=n_gran,
        **strides,
    )
    program.halt()
    noise = np.full(size, 0xA5, np.uint8)
    got = execute(
        program,
        image=[
            MemoryImage(AUX, 0, data.view(np.uint8)),
            *(MemoryImage(p, target * 64, noise) for p in range(units + 1)),
        ],
        dumps=[(p, target * 64, size) for p in range(units + 1)],
    )
    expected = [noise.copy() for _ in range(units + 1)]
    n_bytes = 0
    for t in range(n_tok):
        for h in range(n_head):
            for g in range(n_gran):
                row, key = data[(t * n_head + h) * n_gran + g], pos + t
                block, k = key >> 4, key & 15
                unit, slot = block % units, block // units
                if mode == StMode.LIN:
                    at = 64 * (t * strides["stride_tok"] + h * strides["stride_head"] + g)
                    expected[AUX][at : at + 64] = row.view(np.uint8)
                elif mode == StMode.SC:
                    at = 64 * (h * strides["stride_head"] + (key >> 4)) + 4 * k
                    expected[AUX][at : at + 4] = row[:1].view(np.uint8)
                else:
                    low = (row & 255).astype(np.uint8)
                    base = 64 * (
                        h * strides["stride_head"] + slot * strides["stride_slot"] + g * strides["stride_gran"]
                    )
                    if mode == StMode.K:
                        expected[unit][base + 16 * k : base + 16 * k + 16] = low
                    else:
                        expected[unit][base + k : base + 256 : 16] = low
                n_bytes += {StMode.LIN: 64, StMode.SC: 4}.get(mode, 16)
    assert got.status == 0
    for port in range(units + 1):
        np.testing.assert_array_equal(np.frombuffer(got.raw.dumps[port], np.uint8), expected[port], f"port {port}")
    assert got.write_bytes_aux + got.write_bytes_channels == n_bytes
    assert (got.write_bytes_aux == n_bytes) == (mode in (StMode.LIN, StMode.SC))


N_ROWS, K = 3, 64
"""Of `product`: rows of activations, inputs."""


def product():
    """(program, image, address of the results, the results int[N_ROWS, 16 * units], tag of MX): activations times
    weights by RD, MX, AB, VU, SB and ST."""
    units, kb = CONFIG.units, K // 16
    acts = RNG.integers(-127, 128, (N_ROWS, K)).astype(np.int8)
    weights = RNG.integers(-127, 128, (16 * units, K)).astype(np.int8)
    image = [MemoryImage(AUX, 0, acts.reshape(-1, 16).astype("<i4").view(np.uint8))]
    for unit in range(units):
        rows = weights[16 * unit : 16 * unit + 16].reshape(16, kb, 16).transpose(1, 0, 2)
        image.append(MemoryImage(unit, 64 * 10, np.ascontiguousarray(rows).view(np.uint8)))
    program, blocks, granules = Program(), N_ROWS * kb, N_ROWS * units
    program.issue(LD, signal=[VU], addr=0, n_outer=1, n_inner=blocks, dst=0)
    program.issue(RD, addr=10, n_outer=1, n_inner=4 * kb, fmt=0)
    program.issue(VU, wait=[LD], signal=[MX], **vu_copy(Src.P, Dst.OB, blocks))
    mx = program.issue(
        MX, wait=[VU], signal=[VU], act=0, act_stride=kb, n_rows=N_ROWS, kb=kb, ob=1, n_outer=1, dst=0, dst_stride=units
    )
    program.issue(VU, wait=[MX], signal=[ST], **vu_copy(Src.A, Dst.SB, granules))
    program.issue(ST, wait=[VU], mode=StMode.LIN, addr=9000, src=0, n_tok=1, n_head=1, n_gran=granules)
    program.halt()
    return program, image, 9000 * 64, acts.astype(int) @ weights.astype(int).T, mx


def run_product(**options):
    program, image, target, expected, mx = product()
    got = execute(program, image=image + options.pop("image", []), dumps=[(AUX, target, 4 * expected.size)], **options)
    assert got.status == 0
    np.testing.assert_array_equal(np.frombuffer(got.raw.dumps[0], "<i4").reshape(expected.shape), expected)
    return got, mx


def test_matmul():
    got, mx = run_product()
    event, kb = got.event(mx), K // 16
    cost, drain = N_ROWS * CONFIG.passes, N_ROWS * CONFIG.drain_cycles_a_row
    takes = event.start_cycle + UNIT_START + 1 + (kb - 1) * max(cost, 4)  # behind the cycle of the first order
    assert event.done_cycle == takes + cost + MX_ACC_LATENCY + drain - 1 + MX_DRAIN_LATENCY
    assert got.read_beats_channels == 4 * kb * CONFIG.units


def test_traffic_by_purpose():
    """A counter for every purpose; together they are what the ports count."""
    program, beats = Program(), {kind: 3 + 2 * kind for kind in LdKind}
    for kind, n in beats.items():
        program.issue(LD, addr=64, n_outer=1, n_inner=n, dst=0, kind=kind)
    for _ in range(7):
        program.add(Op.LDS, 1)
    stores = {kind: 2 + kind for kind in StKind}
    program.set(ST, addr=9000, src=0, n_tok=1, n_head=1)
    for kind, n in stores.items():
        program.issue(ST, mode=StMode.LIN, kind=kind, n_gran=n)
    for mode in (StMode.SC, StMode.K, StMode.V):
        program.issue(ST, mode=mode, kind=StKind.KV_SCALES, n_gran=1)
    rounds = 3
    program.issue(RD, addr=0, n_outer=1, n_inner=4 * rounds, fmt=StreamFormat.RAW)
    program.issue(MX, n_rows=1, kb=rounds, ob=1, n_outer=1)
    program.issue(RD, addr=64, n_outer=1, n_inner=1, fmt=StreamFormat.STREAM)  # nobody takes them: zeros
    program.halt()
    got, units = execute(program).values, CONFIG.units
    assert got["status"] == 0
    assert {kind: got[name] for kind, name in csr.LD_BEATS.items()} == beats
    assert got["read_beats_scalars"] == 7 and got["read_beats_fetch"] == -(-len(program.words) // 8)
    assert (got["read_beats_kv"], got["read_beats_weights"]) == (units * 4 * rounds, units)
    written = {kind: 64 * n for kind, n in stores.items()}
    written[StKind.KV_SCALES] += 4
    assert {kind: got[name] for kind, name in csr.ST_BYTES.items()} == written and got["write_bytes_kv"] == 32
    assert got["read_beats_aux"] == sum(beats.values()) + got["read_beats_scalars"] + got["read_beats_fetch"]
    assert got["read_beats_channels"] == got["read_beats_kv"] + got["read_beats_weights"]
    assert got["write_bytes_aux"] == sum(written.values()) and got["write_bytes_channels"] == 32


def test_loops_registers_and_lds():
    """A nested loop of stores whose addresses the program computes; values read back by LDS and stored again."""
    program = Program()
    program.issue(LD, signal=[VU], addr=0, n_outer=1, n_inner=4, dst=0)
    program.issue(VU, wait=[LD], signal=[ST], **vu_copy(Src.P, Dst.SB, 4))
    lds = program.add(Op.LDS, 5, 0, imm=19)  # word 3 of beat 1: a count
    program.set(ST, mode=StMode.LIN, src=0, n_tok=1, n_head=1, n_gran=1)
    program.add(Op.ADDI, 2, 0, imm=9000)
    program.add(Op.LOOP, 0, 0, 0, imm=len(program.words) + 1)  # r0: zero times, skipped
    program.add(Op.ENDL)
    outer = program.add(Op.LOOP, 0, 1)  # r1 from the argument
    inner = program.add(Op.LOOP, 0, 5)
    program.set(ST, 2, addr=0)
    program.add(Op.ISSUE, ST, 0, 0)
    program.add(Op.ADDI, 2, 2, imm=2)
    program.add(Op.ENDL)
    end = program.add(Op.ENDL)
    program.add(Op.MUL, 6, 5, 1)
    program.add(Op.SHLI, 6, 6, imm=1)
    program.add(Op.ADDI, 6, 6, imm=9000)
    program.add(Op.BEQ, 0, 6, 2, imm=len(program.words) + 2)
    program.halt(77)
    program.halt()
    data = RNG.integers(0, 256, (4, 64), dtype=np.uint8)
    data.reshape(-1).view("<u4")[19] = 3
    got = execute(program, image=[MemoryImage(AUX, 0, data)], arg1=8, dumps=[(AUX, 9000 * 64, 64 * 50)])
    assert (got.status, got.status_detail) == (0, 0) and outer < inner < end and lds
    written = np.frombuffer(got.raw.dumps[0], np.uint8).reshape(50, 64)
    np.testing.assert_array_equal(written[0:48:2], np.tile(data[0], (24, 1)))
    assert not written[1::2].any() and not written[48:].any()
    stalled = ADDRESS_PIPE + CONFIG.read_latency + LDS_RETURN
    assert got.stall_lds >= stalled and got.stall_queue > 0


def failing():
    """name -> (program, options, expected status, detail, pc or None)."""

    def one(*instructions, **options):
        program = Program()
        for instruction in instructions:
            program.add(*instruction) if isinstance(instruction, tuple) else instruction(program)
        return program, options

    loops = [(Op.ADDI, 1, 0, 0, 5)] + [(Op.LOOP, 0, 1, 0, 9)] * 5
    halt = (Op.HALT,)
    raw = Program([0x77])
    load = {"addr": 0, "n_outer": 1, "n_inner": 8, "dst": 0}
    yield "opcode", (raw, {}), Error.ILLEGAL_INSTRUCTION, 5, 0
    yield "register", one((Op.ADDI, 32, 0, 0, 1)), Error.ILLEGAL_INSTRUCTION, 5, 0
    yield "field", one((Op.SET, len(FIELDS[LD]))), Error.ILLEGAL_INSTRUCTION, 5, 0
    yield "too long", one(halt, length=CONFIG.imem_instructions + 1), Error.ILLEGAL_INSTRUCTION, 5, None
    yield "pc", one((Op.BEQ, 0, 0, 0, 9), halt), Error.PC_RANGE, 5, 9
    yield "end", one((Op.ADDI, 1, 0, 0, 1)), Error.PC_RANGE, 5, 1
    yield "loops", one(*loops, halt), Error.LOOP_STACK, 5, 5
    yield "endl", one((Op.ENDL,), halt), Error.LOOP_STACK, 5, 0
    yield "code", one((Op.HALT, 0, 0, 0, 42)), Error.HALT_CODE, 42, 0
    yield "limit", one((Op.BEQ, 0, 0, 0, 0), instruction_limit=100), Error.INSTRUCTION_LIMIT, 5, 0
    yield "watchdog", one(lambda p: p.issue(LD, wait=[VU], **load), halt, watchdog=200), Error.WATCHDOG, 5, 5
    yield "zero", one(lambda p: p.issue(LD, **load | {"n_inner": 0}), halt), Error.ILLEGAL_DESCRIPTOR, LD, 4
    yield "mode", one(lambda p: p.issue(ST, mode=4, n_tok=1, n_head=1, n_gran=1), halt), Error.ILLEGAL_DESCRIPTOR, ST, 4
    kind = {"n_outer": 1, "n_inner": 8, "kind": len(LdKind)}
    yield "kind", one(lambda p: p.issue(LD, **kind), halt), Error.ILLEGAL_DESCRIPTOR, LD, 3
    far = load | {"dst": CONFIG.pb_granules - 3}
    yield "load range", one(lambda p: p.issue(LD, **far), halt), Error.BUFFER_RANGE, LD, 4
    store = {"mode": 0, "addr": 0, "n_tok": 1, "n_head": 1, "n_gran": 9}
    far_store = store | {"src": CONFIG.sb_granules - 4}
    yield "store range", one(lambda p: p.issue(ST, **far_store), halt), Error.BUFFER_RANGE, ST, 6
    yield "read", one(lambda p: p.issue(LD, **load), halt, faults=[Fault(AUX, "read", 1)]), Error.BUS_READ, LD, 4
    yield "fetch", one(halt, faults=[Fault(AUX, "read", 0)]), Error.BUS_READ, 5, None
    yield "lds", one((Op.LDS, 1, 0, 0, 0), halt, faults=[Fault(AUX, "read", 1)]), Error.BUS_READ, 5, 0
    yield "write", one(lambda p: p.issue(ST, **store), halt, faults=[Fault(AUX, "write", 3)]), Error.BUS_WRITE, ST, 5
    stream = {"addr": 0, "n_outer": 1, "n_inner": 64, "fmt": 0}
    yield "weights", one(lambda p: p.issue(RD, **stream), halt, faults=[Fault(0, "read", 1)]), Error.BUS_READ, RD, None
    header, unknown = stream | {"fmt": 1}, MemoryImage(0, 0, np.full(64, 0xFF, np.uint8))
    yield (
        "header",
        one(
            lambda p: p.issue(RD, **header),
            lambda p: p.issue(MX, n_rows=1, kb=1, ob=1, n_outer=1),
            halt,
            image=[unknown],
        ),
        Error.STREAM_HEADER,
        RD,
        4,
    )


@pytest.mark.parametrize(
    ("case", "status", "detail", "pc"), [pytest.param(case, *rest, id=name) for name, case, *rest in failing()]
)
def test_errors_end_the_run(case, status, detail, pc):
    program, options = case
    got = execute(program, max_cycles=20_000, **options)
    assert Error(got.status) == status and got.status_detail == detail
    assert pc is None or got.status_pc == pc
    assert got.raw.cycles < 5_000


def test_rerun_after_error_starts_clean():
    """The first run fails with a semaphore set and a queue filled; the second sees none of it."""
    bad = Program()
    bad.issue(LD, signal=[VU], addr=0, n_outer=1, n_inner=2, dst=0)
    bad.issue(VU, wait=[LD, MX], **vu_copy(Src.P, Dst.SB, 2))
    for _ in range(30):
        bad.add(Op.ADDI, 4, 4, imm=1)
    bad.add(Op.ENDL)
    good = Program()
    good.add(Op.BNE, 0, 4, 0, imm=len(good.words) + 2)
    good.halt()
    good.halt(9)
    before = [(0x10, 8000), (0x18, len(bad.words)), (csr.CTRL, 1)] + [(0x40, 0)] * 400
    got = execute(good, before=before, image=[MemoryImage(AUX, 8000 * 64, bad.image())])
    assert (got.status, got.status_detail, got.instructions) == (0, 0, 2)


@pytest.mark.parametrize("fmt", [0, 1], ids=["rounds wait in the units", "a header that is none"])
def test_matrix_units_start_clean_after_an_error(fmt):
    """The first run ends with rounds that nobody took, or with an error that every unit holds."""
    bad = Program()
    bad.issue(RD, addr=4096, n_outer=1, n_inner=256, fmt=fmt)
    for _ in range(400):
        bad.add(Op.ADDI, 4, 4, imm=1)
    bad.add(Op.ENDL)
    wrong = [MemoryImage(unit, 4096 * 64, np.full(256 * 64, 0xFF, np.uint8)) for unit in range(CONFIG.units)]
    before = [(0x10, 8000), (0x18, len(bad.words)), (csr.CTRL, 1)] + [(0x40, 0)] * 800
    run_product(before=before, image=[MemoryImage(AUX, 8000 * 64, bad.image()), *wrong])


def test_lint():
    """The DSP48E2 model is linted by itself (tests/sim/test_lint.py); its lines are the last of the text."""
    text = accelerator.verilog("tiny")
    n_design = text[: text.rindex("module DSP48E2")].count("\n")
    messages = [m for m in lint(text, TOP) if int(m.split("design.v:")[1].split(":")[0]) <= n_design]
    assert messages == []
