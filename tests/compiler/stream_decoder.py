"""A slow, obvious reader of weight streams: `hw/spec/weights.py` taken literally, bit by bit."""

from dataclasses import dataclass

import numpy as np

from hw.spec import weights as spec
from hw.spec.config import BEAT_BYTES, BLOCK


@dataclass
class Round:
    """What the chains hold: (window, dense or not, ends its step) and the weights it adds, int64[16, 128]."""

    window: int
    sparse: bool
    last: bool
    weights: np.ndarray


def _bits(data: bytes, at: int, width: int) -> int:
    return int.from_bytes(data, "little") >> at & (1 << width) - 1


def _level(low: bytes, plane: bytes, place: int, bits: int) -> int:
    if bits != 3:
        return spec.level(_bits(low, place * bits, bits), bits)
    return spec.level(_bits(low, place * 2, 2) | _bits(plane, place, 1) << 2, 3)


def _input(index: bytes, run: spec.Run, row: int, block: int, number: int, slot: int) -> int:
    """Input inside its block of slot `number` of the round's `block`; slot: place in the row."""
    if run.nonzeros == BLOCK:
        return number
    if run.nonzeros == 8:
        mask = _bits(index, 16 * (BLOCK * block + row), 16)
        return [c for c in range(BLOCK) if mask >> c & 1][number]
    width = 8 if run.nonzeros == 1 else BLOCK
    return _bits(index, 4 * (width * row + slot), 4)


def _rounds(run: spec.Run, beats: list[bytes]) -> list[Round]:
    """The rounds of a run; takes their beats from the front of `beats`."""
    found, plane, slots = [], b"", 8 if run.nonzeros == 1 else BLOCK
    for number, present in enumerate(run.rounds()):
        index = b"".join(beats.pop(0) for _ in range(spec.index_beats(run.nonzeros)))
        code = b"".join(beats.pop(0) for _ in range(spec.code_beats(run.bits, run.nonzeros, number)))
        if run.bits == 3:
            if run.nonzeros == 1:
                plane = code[32:]
            elif number % 2 == 0:
                plane, both = code[BEAT_BYTES : BEAT_BYTES + 32], code[BEAT_BYTES + 32 :]
            else:
                plane = both
        out = np.zeros((BLOCK, spec.WINDOW * BLOCK), np.int64)
        for row in range(BLOCK):
            for i, block in enumerate(present):
                for j in range(run.nonzeros):
                    slot = i * run.nonzeros + j
                    level = _level(code, plane, row * slots + slot, run.bits)
                    column = block * BLOCK + _input(index, run, row, i, j, slot)
                    out[row, column] += level * (1 if run.bits == 8 else run.scales[row])
        found.append(Round(run.window, run.sparse, False, out))
    found[-1].last = run.last
    return found


def rounds(data: np.ndarray) -> list[Round]:
    """Every round of one unit's stream (uint8[bytes])."""
    raw = data.tobytes()
    beats = [raw[i : i + BEAT_BYTES] for i in range(0, len(raw), BEAT_BYTES)]
    found: list[Round] = []
    while beats:
        header = beats.pop(0)
        for slot in range(spec.HEADER_RUNS):
            run = spec.Run.decode(header[slot * spec.RUN_BYTES : (slot + 1) * spec.RUN_BYTES])
            if run is None:
                break
            found += _rounds(run, beats)
    return found


def decode(streams: np.ndarray, n_in: int) -> np.ndarray:
    """uint8[units, bytes] -> int64[steps * units * 16, n_in], after checking that units are in lockstep."""
    units = [rounds(stream) for stream in streams]
    kinds = [[(r.window, r.sparse, r.last) for r in unit] for unit in units]
    assert all(kind == kinds[0] for kind in kinds), "the units are not in lockstep"
    assert kinds[0][-1][2], "the last round does not end its step"
    steps = sum(r.last for r in units[0])
    windows = spec.windows(n_in)
    out = np.zeros((steps, len(units), BLOCK, windows * spec.WINDOW * BLOCK), np.int64)
    for unit, found in enumerate(units):
        step = 0
        for r in found:
            assert r.window < windows
            columns = slice(r.window * spec.WINDOW * BLOCK, (r.window + 1) * spec.WINDOW * BLOCK)
            out[step, unit, :, columns] += r.weights
            step += r.last
    assert not out[..., n_in:].any(), "weights beyond the inputs"
    return out.reshape(-1, windows * spec.WINDOW * BLOCK)[:, :n_in]
