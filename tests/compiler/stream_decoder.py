"""A slow, obvious reader of weight streams: `hw/spec/weights.py` taken literally, bit by bit."""

from dataclasses import dataclass

import numpy as np

from hw.spec import weights as spec
from hw.spec.config import BEAT_BYTES, BLOCK


@dataclass
class Round:
    """What the chains hold: (window, dense or not, step of its group, whether its batch goes on, whether its batch ends
    the group) and the weights it adds, int64[16, 128]."""

    window: int
    sparse: bool
    step: int
    more: bool
    last: bool
    weights: np.ndarray

    @property
    def kind(self):
        return self.window, self.sparse, self.step, self.more, self.last


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
        inputs = [c for c in range(BLOCK) if mask >> c & 1]
        assert len(inputs) == 8 or not any(run.scales), "weights without inputs"
        return inputs[number] if inputs else 0
    beat = 0 if run.nonzeros == 1 else slot // 8
    return _bits(index, 4 * (128 * beat + 8 * row + slot % 8), 4)


def _weights(run: spec.Run, present: list[int], index: bytes, code: bytes, plane: bytes) -> np.ndarray:
    """int64[16, 128]: what a round adds; plane: the high bits of 3-bit codes in the lower halves of bytes."""
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
    return out


def _bundle(runs: list[spec.Run], beats: list[bytes]) -> list[Round]:
    """The rounds of a bundle; takes their beats from the front of `beats`."""
    found, plane, odd = [], b"", False
    parts = runs[0].rounds()
    for number, present in enumerate(parts):
        for run in runs:
            index = b"".join(beats.pop(0) for _ in range(spec.index_beats(run.nonzeros)))
            code = b"".join(beats.pop(0) for _ in range(spec.code_beats(run.bits, run.nonzeros, odd)))
            if run.nonzeros == 1:
                high = code[:BEAT_BYTES]
            elif run.bits == 3:
                high = bytes(byte >> 4 for byte in plane) if odd else code[BEAT_BYTES:]
                plane, odd = code[BEAT_BYTES:] if not odd else b"", not odd
            else:
                high = b""
                odd = odd and run.bits != 8
            out = _weights(run, present, index, code, high)
            last = run.last and number == len(parts) - 1
            found.append(Round(run.window, run.sparse, run.step, run is not runs[-1], last, out))
    return found


def header(beats: list[bytes]) -> list[list[spec.Run]]:
    """The bundles of the header at the front of `beats`, which it takes."""
    bundles, going = [], True
    while going:
        beat, going = beats.pop(0), False
        for slot in range(spec.HEADER_RUNS):
            run = spec.Run.decode(beat[slot * spec.RUN_BYTES : (slot + 1) * spec.RUN_BYTES])
            inside = bundles and bundles[-1][-1].more
            if run is None:
                assert not inside, "a bundle breaks off"
                break
            if inside:
                before = bundles[-1][-1]
                assert all(getattr(run, name) == getattr(before, name) for name in spec.SHARED_FIELDS)
                assert run.step > before.step
                bundles[-1].append(run)
            else:
                bundles.append([run])
            going = slot == spec.HEADER_RUNS - 1 and run.more
    assert sum(map(len, bundles)) <= spec.MAX_BUNDLE
    return bundles


def rounds(data: np.ndarray) -> list[Round]:
    """Every round of one unit's stream (uint8[bytes])."""
    raw = data.tobytes()
    beats = [raw[i : i + BEAT_BYTES] for i in range(0, len(raw), BEAT_BYTES)]
    found: list[Round] = []
    while beats:
        for bundle in header(beats):
            found += _bundle(bundle, beats)
    return found


def decode(streams: np.ndarray, n_in: int, group: int = 1) -> np.ndarray:
    """uint8[units, bytes] -> int64[steps * units * 16, n_in], after checking that units are in lockstep, and groups of
    `group` steps but for the last, each with rounds."""
    units = [rounds(stream) for stream in streams]
    kinds = [[r.kind for r in unit] for unit in units]
    assert all(kind == kinds[0] for kind in kinds), "the units are not in lockstep"
    assert units[0][-1].last and not units[0][-1].more, "the last round does not end its group"
    sizes, seen = [], set()
    for r in units[0]:
        seen.add(r.step)
        if r.last and not r.more:
            assert seen == set(range(len(seen))), "a step of a group has no round"
            sizes.append(len(seen))
            seen = set()
    assert all(size == group for size in sizes[:-1]) and sizes[-1] <= group, f"groups of {sizes}"
    steps, windows = sum(sizes), spec.windows(n_in)
    out = np.zeros((steps, len(units), BLOCK, windows * spec.WINDOW * BLOCK), np.int64)
    for unit, found in enumerate(units):
        first = 0
        for r in found:
            assert r.window < windows
            columns = slice(r.window * spec.WINDOW * BLOCK, (r.window + 1) * spec.WINDOW * BLOCK)
            out[first + r.step, unit, :, columns] += r.weights
            first += group if r.last and not r.more else 0
    assert not out[..., n_in:].any(), "weights beyond the inputs"
    return out.reshape(-1, windows * spec.WINDOW * BLOCK)[:, :n_in]
