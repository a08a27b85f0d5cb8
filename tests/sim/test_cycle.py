"""The cycle simulator against a model that ticks, and its own invariants."""

import random
from dataclasses import replace

import numpy as np
import pytest

from hw.spec.assembly import assemble
from hw.spec.config import CONFIGS, Config
from hw.spec.csr import KV_BYTES, LD_BEATS, RD_BEATS, ST_BYTES, TRAFFIC
from hw.spec.isa import FIELDS, Error, LdKind, StKind, Unit
from hw.spec.memory import MemoryModel
from hw.spec.run import Event, Invocation
from hw.spec.timing import ADDRESS_PIPE, END_LATENCY, LDS_RETURN, SEQ_AFTER_FETCH, accumulator_places
from sim.cycle import CycleBackend
from sim.functional import FunctionalBackend
from sim.memory_image import MemoryImage
from tests.sim.streams import group_sizes, header_positions, random_shape, random_streams
from tests.sim.ticker import Ticker

TINY = CONFIGS["tiny"]
STREAMS = 16384
"""Beat address of the weight streams, where nothing is stored."""


def random_fields(rng: random.Random, unit: Unit) -> dict[str, int]:
    f = dict.fromkeys(FIELDS[unit], 0)
    if unit == Unit.LD:
        return f | {
            "addr": 64 + rng.randrange(200),
            "n_outer": rng.randint(1, 3),
            "n_inner": rng.randint(1, 40),
            "stride": 41,
            "dst_stride": 40,
            "kind": rng.randrange(len(LdKind)),
        }
    if unit == Unit.ST:
        return f | {
            "mode": rng.randrange(4),
            "addr": 4096,
            "n_tok": rng.randint(1, 3),
            "n_head": rng.randint(1, 2),
            "n_gran": rng.randint(1, 3),
            "kind": rng.randrange(len(StKind)),
        }
    if unit == Unit.VU:
        return f | {"n_outer": rng.randint(1, 3), "n_mid": rng.randint(1, 3), "n_words": rng.randint(1, 5)}
    return f | {"addr": rng.randrange(100), "n_outer": 1}


def random_steps(rng: random.Random, n: int, units: int, mixed: bool = True):
    """Issues that cannot deadlock: waits are for signals of earlier issues only, a product follows its reads.

    Gives (steps, streams): [(RD fields, bytes a unit)] to be found in the channels. mixed: units' runs differ.
    """
    pending, steps, streams = {(p, c): 0 for p in Unit for c in Unit}, [], []

    def add(unit, fields):
        # A product that waits for the end of its own reads would never free their space.
        able = [p for p in Unit if pending[p, unit] and (p, unit) != (Unit.RD, Unit.MX)]
        wait = sum(1 << p for p in able if rng.random() < 0.5)
        for p in Unit:
            pending[p, unit] -= wait >> p & 1
        signal = rng.randrange(32) & rng.randrange(32)
        for c in Unit:
            pending[unit, c] += signal >> c & 1
        steps.append((unit, fields, wait, signal))

    def product(kb, ob, mode, group=0):
        f = dict.fromkeys(FIELDS[Unit.MX], 0) | random_turns(rng, ob, group)
        add(Unit.MX, f | {"kb": kb, "mode": mode})

    def stream():
        """Some groups of bundles, read by an RD or two and used by an MX or two."""
        windows = rng.randint(1, 3)
        turns = [random_turns(rng, rng.randint(1, 9), None) for _ in range(rng.randint(1, 2))]
        sizes = [size for f in turns for size in group_sizes(f["ob"], f["group"]) * f["n_outer"]]
        shape = random_shape(rng, sizes, windows, most=2)
        parts = [(shape, True)]
        if rng.random() < 0.3:
            # The last group goes on in a second RD, which may be all of it.
            parts = [([*shape[:-1], shape[-1][:1]], len(shape[-1]) == 1), ([shape[-1][1:]], True)]
            parts = [p for p in parts if any(p[0])]
        for part, ends in parts:
            add(Unit.RD, placed(random_streams(rng, units, part, ends, not mixed or rng.random() < 0.3)))
        for f in turns:
            add(Unit.MX, dict.fromkeys(FIELDS[Unit.MX], 0) | f | {"kb": windows * 8 - rng.randrange(8)})

    def placed(data):
        """RD fields for these streams, in rows that are apart."""
        rows = rng.choice([1, 1, 2])
        n = -(-len(data[0]) // 64 // rows)
        at = STREAMS + sum(f["n_outer"] * f["stride"] for f, _ in streams)
        f = {"addr": at, "n_outer": rows, "n_inner": n, "stride": n + 3, "fmt": 1}
        streams.append((f, [d.ljust(rows * n * 64, b"\0") for d in data]))
        return f

    for _ in range(n):
        unit = rng.choice([Unit.LD, Unit.ST, Unit.VU, Unit.RD, Unit.RD])
        if unit == Unit.RD and rng.random() < 0.6:
            stream()
            continue
        f = random_fields(rng, unit)
        kb, ob = rng.randint(1, 5), rng.randint(1, 5)
        if unit == Unit.RD:
            f["n_inner"] = kb * ob * 4
        add(unit, f)
        if unit == Unit.RD:
            product(kb, ob, rng.randrange(2), rng.randrange(2))
    if rng.random() < 0.5:
        # Nobody takes these: some stay in the weight buffer (up to 128 beats), some in the FIFO.
        add(Unit.RD, random_fields(rng, Unit.RD) | {"n_inner": rng.randint(1, 160)})
    return steps, streams


def random_turns(rng: random.Random, steps: int, group: int | None) -> dict[str, int]:
    """Rows, steps and turns of a product; group: as wanted, or None for any that the accumulators of `tiny` hold."""
    outer = rng.choice([n for n in range(1, steps + 1) if steps % n == 0])
    while True:
        rows, size = rng.choice([1, 1, 2, 3, 7, 20, 33]), rng.choice([0, 1, 2, 3, 4, 8, 16]) if group is None else group
        if size <= accumulator_places(rows, TINY.acc_rows):
            last = rng.choice([0, 0, rng.randint(1, rows)])
            return {"n_rows": rows, "ob": steps // outer, "n_outer": outer, "n_last": last, "group": size}


def program_of(steps):
    """(program bytes, what the ticker runs)"""
    lines, ticks, shadow = [], [], {(u, n): 0 for u in Unit for n in FIELDS[u]}
    for unit, fields, wait, signal in steps:
        for name, value in fields.items():
            if shadow[unit, name] != value:
                shadow[unit, name] = value
                lines.append(f"SET {unit.name.lower()}.{name}, r0 + {value}")
                ticks.append(("set", 0, None, 0, 0, 0))
        ticks.append(("issue", unit, dict(fields), wait, signal, len(lines)))
        lines.append(f"ISSUE {unit.name.lower()}, wait={names(wait)}, signal={names(signal)}")
    lines.append("HALT 0")
    ticks.append(("halt", 31, None, 0, 0, 0))
    return assemble("\n".join(lines)), ticks


def names(mask: int) -> str:
    return "|".join(u.name.lower() for u in Unit if mask >> u & 1) or "none"


def attach(memory: MemoryImage, streams) -> None:
    for f, data in streams:
        for unit, o in np.ndindex(memory.config.units, f["n_outer"]):
            row = np.frombuffer(data[unit], np.uint8).reshape(f["n_outer"], -1)[o]
            memory.attach(unit, (f["addr"] + o * f["stride"]) * 64, row)


def random_run(rng: random.Random, n: int) -> tuple[MemoryImage, Invocation]:
    """A run of `n` random steps on `TINY`: its weights and its program in memory, and the invocation that starts it."""
    return run_of(TINY, *random_steps(rng, n, TINY.units))


def run_of(config: Config, steps, streams) -> tuple[MemoryImage, Invocation]:
    """Steps and the streams that they read, in memory, and the invocation that starts them."""
    program, _ = program_of(steps)
    memory = MemoryImage(config)
    attach(memory, streams)
    base = config.aux_bytes // 2
    memory.write(config.aux_port, base, program)
    return memory, Invocation(base // 64, len(program) // 8)


def attach_headers(memory: MemoryImage, streams) -> None:
    """What timing needs: of the streams only the header beats."""
    for unit in range(memory.config.units):
        where, beats = [], []
        for f, data in streams:
            for i in header_positions(data[unit]):
                where.append(f["addr"] - STREAMS + i // f["n_inner"] * f["stride"] + i % f["n_inner"])
                beats.append(data[unit][i * 64 : i * 64 + 64])
        headers = np.array(where, np.int64), np.frombuffer(b"".join(beats), np.uint8).reshape(-1, 64)
        memory.attach_absent(unit, STREAMS * 64, 1 << 20, headers)


@pytest.mark.parametrize("seed", range(16))
@pytest.mark.parametrize("jitter", [0, 37])
@pytest.mark.parametrize("mixed", [False, True])
def test_equals_the_ticking_model(seed, jitter, mixed):
    rng = random.Random(seed)
    config = replace(
        TINY,
        fifo_beats=rng.choice([32, 64]),
        queue_depth=rng.choice([2, 8]),
        units=rng.choice([1, 2, 4]),
        chains=rng.choice([2, 8]),
    )
    model = MemoryModel(rng.choice([1, 5, 20]), rng.choice([1, 10]), jitter, seed)
    steps, streams = random_steps(rng, 25, config.units, mixed)
    program, ticks = program_of(steps)
    memory = MemoryImage(config)
    attach(memory, streams)
    ticker = Ticker(config, model, ticks, memory)
    cycles = ticker.run()
    base = config.aux_bytes // 2
    memory.write(config.aux_port, base, program)
    call = Invocation(base // 64, len(program) // 8, flags=1)
    result = CycleBackend(model).run(config, memory, call)
    assert result.status == Error.NONE
    assert result.trace == sorted(Event(s, u, pc, e) for u, pc, s, e in ticker.trace)
    assert result.cycles == cycles
    assert result.counters["mx_weight_stall"] == ticker.mx.weight_stall
    assert result.counters["mx_drain_stall"] == ticker.mx.drain_stall
    assert result.counters["unpack_stall"] == ticker.unpack_stall
    with_data = CycleBackend(model, with_data=True).run(config, memory, call)
    assert (with_data.trace, with_data.counters) == (result.trace, result.counters)
    bare = MemoryImage(config)
    bare.write(config.aux_port, base, program)
    attach_headers(bare, streams)
    assert CycleBackend(model).run(config, bare, call) == result


@pytest.mark.parametrize("seed", range(4))
def test_traffic_equals_the_functional_simulators_and_adds_up(seed):
    steps, streams = random_steps(random.Random(seed), 25, TINY.units)
    lds = assemble("LDS r1, r0 + 1024\nLDS r1, r0 + 1025\n")
    program, _ = program_of(steps)
    memory, base = MemoryImage(TINY), TINY.aux_bytes // 2
    attach(memory, streams)
    memory.write(TINY.aux_port, base, lds + program)
    call = Invocation(base // 64, len(lds + program) // 8)
    functional, cycle = (one.run(TINY, memory.fork(), call) for one in (FunctionalBackend(), CycleBackend()))
    assert functional.status == cycle.status == Error.NONE
    c = cycle.counters
    assert {name: functional.counters[name] for name in TRAFFIC} == {name: c[name] for name in TRAFFIC}
    assert c["read_beats_fetch"] == -(-call.program_length // 8) and c["read_beats_scalars"] == 2
    scalars = c["read_beats_fetch"] + c["read_beats_scalars"]
    assert c["read_beats_aux"] == sum(c[name] for name in LD_BEATS.values()) + scalars
    assert c["read_beats_channels"] == sum(c[name] for name in RD_BEATS.values())
    assert c["write_bytes_aux"] == sum(c[name] for name in ST_BYTES.values())
    assert c["write_bytes_channels"] == c[KV_BYTES]


def test_fetch_comes_before_the_first_instruction():
    memory = MemoryImage(TINY)
    memory.write(TINY.aux_port, 0, assemble("HALT 0"))
    result = CycleBackend(MemoryModel(20, 10)).run(TINY, memory, Invocation(0, 1))
    assert result.cycles == 1 + ADDRESS_PIPE + 20 + SEQ_AFTER_FETCH + END_LATENCY + 1
    assert result.counters["read_beats_aux"] == 1


def test_lds_waits_for_its_beat():
    memory = MemoryImage(TINY)
    memory.write(TINY.aux_port, 0, assemble("LDS r1, r0 + 1024\nISSUE vu, wait=none, signal=none\nHALT 0"))
    result = CycleBackend(MemoryModel(20, 10)).run(TINY, memory, Invocation(0, 3, flags=1))
    assert result.counters["stall_lds"] == ADDRESS_PIPE + 20 + LDS_RETURN
    assert result.status == Error.ILLEGAL_DESCRIPTOR and result.detail == Unit.VU


def test_deadlock_ends_by_watchdog():
    memory = MemoryImage(TINY)
    memory.write(TINY.aux_port, 0, assemble("ISSUE vu, wait=ld, signal=none\nHALT 0"))
    result = CycleBackend().run(TINY, memory, Invocation(0, 2, flags=1, watchdog=1000))
    assert (result.status, result.detail) == (Error.WATCHDOG, 5)
