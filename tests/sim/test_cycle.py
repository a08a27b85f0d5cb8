"""The cycle simulator against a model that ticks, and its own invariants."""

import random
from dataclasses import replace

import numpy as np
import pytest

from hw.spec.assembly import assemble
from hw.spec.config import CONFIGS
from hw.spec.isa import FIELDS, Error, Unit
from hw.spec.memory import MemoryModel
from sim.backend import Event, Invocation
from sim.cycle import CycleBackend
from sim.memory_image import MemoryImage
from tests.sim.ticker import Ticker

TINY = CONFIGS["tiny"]


def random_fields(rng: random.Random, unit: Unit) -> dict[str, int]:
    f = dict.fromkeys(FIELDS[unit], 0)
    if unit == Unit.LD:
        return f | {"addr": 64 + rng.randrange(200), "n_outer": rng.randint(1, 3), "n_inner": rng.randint(1, 40),
                    "stride": 41, "dst_stride": 40}  # fmt: skip
    if unit == Unit.ST:
        return f | {"mode": rng.randrange(4), "addr": 4096, "n_tok": rng.randint(1, 3), "n_head": rng.randint(1, 2),
                    "n_gran": rng.randint(1, 3)}  # fmt: skip
    if unit == Unit.VU:
        return f | {"n_outer": rng.randint(1, 3), "n_mid": rng.randint(1, 3), "n_words": rng.randint(1, 5)}
    return f | {"addr": rng.randrange(100), "n_outer": 1, "fmt": rng.randrange(2)}


def random_steps(rng: random.Random, n: int):
    """Issues that cannot deadlock: waits are for signals of earlier issues only, a product follows its reads."""
    pending, steps = {(p, c): 0 for p in Unit for c in Unit}, []

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

    for _ in range(n):
        unit = rng.choice([Unit.LD, Unit.ST, Unit.VU, Unit.RD, Unit.RD])
        f = random_fields(rng, unit)
        kb, ob = rng.randint(1, 5), rng.randint(1, 5)
        if unit == Unit.RD:
            f["n_inner"] = kb * ob * 4 + f["fmt"]
        add(unit, f)
        if unit == Unit.RD:
            product = {"n_rows": rng.choice([1, 1, 2, 7]), "kb": kb, "ob": ob, "mode": rng.randrange(2)}
            add(Unit.MX, dict.fromkeys(FIELDS[Unit.MX], 0) | product)
    return steps


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


def weights_everywhere(memory: MemoryImage) -> None:
    """Streams that any read can start with a header, so that data runs too."""
    beat = np.zeros(64, np.uint8)
    beat[:3] = 0xA1, 8, 16
    for port in range(memory.config.units):
        memory.attach(port, 0, np.tile(beat, 4096))


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("jitter", [0, 37])
def test_equals_the_ticking_model(seed, jitter):
    rng = random.Random(seed)
    config = replace(TINY, fifo_beats=rng.choice([32, 64]), queue_depth=rng.choice([2, 8]), units=rng.choice([1, 2, 4]))
    model = MemoryModel(rng.choice([1, 5, 20]), rng.choice([1, 10]), jitter, seed)
    steps = random_steps(rng, 25)
    program, ticks = program_of(steps)
    ticker = Ticker(config, model, ticks)
    cycles = ticker.run()
    memory = MemoryImage(config)
    weights_everywhere(memory)
    base = config.aux_bytes // 2
    memory.write(config.aux_port, base, program)
    call = Invocation(base // 64, len(program) // 8, flags=1)
    result = CycleBackend(model).run(config, memory, call)
    assert result.status == Error.NONE
    assert result.trace == sorted(Event(s, u, pc, e) for u, pc, s, e in ticker.trace)
    assert result.cycles == cycles
    assert result.counters["mx_weight_stall"] == ticker.weight_stall
    assert result.counters["mx_drain_stall"] == ticker.drain_stall
    with_data = CycleBackend(model, with_data=True).run(config, memory, call)
    assert (with_data.trace, with_data.counters) == (result.trace, result.counters)


def test_fetch_comes_before_the_first_instruction():
    memory = MemoryImage(TINY)
    memory.write(TINY.aux_port, 0, assemble("HALT 0"))
    result = CycleBackend(MemoryModel(20, 10)).run(TINY, memory, Invocation(0, 1))
    assert result.cycles == 1 + 20 + 3 + 1
    assert result.counters["read_beats_aux"] == 1


def test_lds_waits_for_its_beat():
    memory = MemoryImage(TINY)
    memory.write(TINY.aux_port, 0, assemble("LDS r1, r0 + 1024\nISSUE vu, wait=none, signal=none\nHALT 0"))
    result = CycleBackend(MemoryModel(20, 10)).run(TINY, memory, Invocation(0, 3, flags=1))
    assert result.counters["stall_lds"] == 21
    assert result.status == Error.ILLEGAL_DESCRIPTOR and result.detail == Unit.VU


def test_deadlock_ends_by_watchdog():
    memory = MemoryImage(TINY)
    memory.write(TINY.aux_port, 0, assemble("ISSUE vu, wait=ld, signal=none\nHALT 0"))
    result = CycleBackend().run(TINY, memory, Invocation(0, 2, flags=1, watchdog=1000))
    assert (result.status, result.detail) == (Error.WATCHDOG, 5)
