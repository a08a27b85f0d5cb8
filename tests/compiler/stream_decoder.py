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


def _byte(code: bytes, run: spec.Run, row: int, slot: int) -> int:
    """The byte that holds a slot's code (3 bits: its low two)."""
    quarter = row // 4
    if run.nonzeros == 1:
        beat = quarter // 2 if run.bits == 8 else 0
    else:
        beat = {8: quarter, 4: quarter // 2, 3: 0, 2: 0}[run.bits]
    return code[64 * beat + row % 4 * 16 + slot]


def _level(code: bytes, high: int, run: spec.Run, row: int, slot: int) -> int:
    """high: the byte with the code's third bit in its lower half."""
    quarter, byte = row // 4, _byte(code, run, row, slot)
    if run.bits == 8:
        return spec.level(byte, 8)
    if run.bits == 4:
        return spec.level(byte >> 4 if quarter in (1, 2) else byte & 15, 4)
    low, above = ((1, 2), (5, 7), (4, 6), (0, 3))[quarter]
    pair = (byte >> low & 1) + 2 * (byte >> above & 1)
    if run.bits == 2:
        return spec.level(pair, 2)
    return spec.level(pair + 4 * (high >> (0, 1, 3, 2)[quarter] & 1), 3)


def _input(index: bytes, run: spec.Run, row: int, block: int, number: int, slot: int) -> int:
    """Input inside its block of slot `number` of the round's `block`; slot: place in the row."""
    if run.nonzeros == BLOCK:
        return number
    if run.nonzeros == 8:
        mask = _bits(index, 16 * (BLOCK * block + row), 16)
        return [c for c in range(BLOCK) if mask >> c & 1][number]
    beat = 0 if run.nonzeros == 1 else slot // 8
    return _bits(index, 4 * (128 * beat + 8 * row + slot % 8), 4)


def _rounds(run: spec.Run, beats: list[bytes]) -> list[Round]:
    """The rounds of a run; takes their beats from the front of `beats`."""
    found, plane = [], b""
    for number, present in enumerate(run.rounds()):
        index = b"".join(beats.pop(0) for _ in range(spec.index_beats(run.nonzeros)))
        code = b"".join(beats.pop(0) for _ in range(spec.code_beats(run.bits, run.nonzeros, number)))
        if run.nonzeros == 1:
            plane = code[:BEAT_BYTES]
        elif run.bits == 3:
            plane = bytes(byte >> 4 for byte in plane) if number % 2 else code[BEAT_BYTES:]
        out = np.zeros((BLOCK, spec.WINDOW * BLOCK), np.int64)
        for row in range(BLOCK):
            for i, block in enumerate(present):
                for j in range(run.nonzeros):
                    slot = i * run.nonzeros + j
                    if run.nonzeros == 1:  # rows 0..3 and 8..11: even slots, then odd ones; other rows: odd, then even
                        slot = 2 * i + ((i >= 4) != (row // 4 in (1, 3)))
                    high = plane[row % 4 * 16 + slot] if run.bits == 3 else 0
                    level = _level(code, high, run, row, slot)
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
