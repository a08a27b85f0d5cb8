"""The weight stream's encoder against a slow reader of the format, for random mixtures of blocks."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.stream import beats, dense_beats, encode, group_of, lengths
from hw.spec import weights as spec
from hw.spec.config import BEAT_BYTES, BLOCK
from ref_model.compress.format import BlockFormat, group_blocks
from tests.compiler.stream_decoder import decode, rounds


def random_matrix(shape, bits, nonzeros, seed=0, *, zero_rows=True) -> tuple[np.ndarray, BlockFormat]:
    """A weight int8[out, in] that the block format can say; bits, nonzeros: uint8[out_blocks, in_blocks]."""
    rng = np.random.default_rng(seed)
    ob, kb = bits.shape
    shared = rng.integers(-100, 101, (ob * BLOCK, kb, 9, 17, 2))  # one scale a row, window, bits, N and group
    weight, scales = np.zeros((ob * BLOCK, kb * BLOCK), np.int64), np.zeros((ob * BLOCK, kb), np.int8)
    for i, k in np.ndindex(ob, kb):
        b, n, rows = int(bits[i, k]), int(nonzeros[i, k]), slice(i * BLOCK, (i + 1) * BLOCK)
        if not n:
            continue
        scale = np.ones(BLOCK, np.int64)
        if b < 8:
            limit, group = spec.MAX_SCALE[b], k % spec.WINDOW // group_blocks(b, n)
            scale = shared[rows, k // spec.WINDOW, b, n, group] % (2 * limit + 1) - limit
            scale[scale == 0] = 0 if zero_rows else 1
            scales[rows, k] = scale
        for row in range(BLOCK):
            codes = rng.integers(0, 1 << b, n)
            levels = np.array([spec.level(int(c), b) for c in codes])
            if b == 8:
                levels = np.clip(levels, -127, 127)
            columns = rng.permutation(BLOCK)[:n]
            weight[i * BLOCK + row, k * BLOCK + columns] = levels * scale[row]
    weight[shape[0] :] = 0
    weight[:, shape[1] :] = 0
    return weight[: shape[0], : shape[1]].astype(np.int8), BlockFormat(bits, nonzeros, scales)


def uniform(shape, bits, nonzeros) -> tuple[np.ndarray, np.ndarray]:
    blocks = (-(-shape[0] // BLOCK), -(-shape[1] // BLOCK))
    return np.full(blocks, bits, np.uint8), np.full(blocks, nonzeros, np.uint8)


@pytest.mark.parametrize("bits", [None, 4])
def test_held_beats_are_those_of_weights(bits):
    """Without padding all beats are held; half a step holds what the units that have rows would read for it alone."""
    units, n_in = 4, 4 * spec.WINDOW * BLOCK  # four runs a step: whole headers

    def sizes(steps):
        shape = (int(steps * units) * BLOCK, n_in)
        return lengths(shape, None if bits is None else uniform(shape, bits, BLOCK), units)

    for steps in (1, 2):
        stream, held = sizes(steps)
        assert held == units * stream
    (one, _), (two, _), (padded, held) = sizes(1), sizes(2), sizes(2.5)
    assert held == units * two + units // 2 * one < units * padded


def test_fillers_are_not_held():
    shape, units = (4 * BLOCK, spec.WINDOW * BLOCK), 4
    bits, nonzeros = uniform(shape, 4, BLOCK)
    stream, held = lengths(shape, (bits, nonzeros), units)
    nonzeros[1, 3] = 0
    assert lengths(shape, (bits, nonzeros), units) == (stream, held - spec.round_beats(4, BLOCK, 0))


def check(weight, fmt, units, steps=None) -> np.ndarray:
    streams = encode(weight, fmt, units, steps)
    needed = spec.output_blocks(len(weight), units)
    out = decode(streams, weight.shape[1], group_of(fmt.nonzeros, needed if steps is None else steps))
    np.testing.assert_array_equal(out[: len(weight)], weight)
    assert not out[len(weight) :].any()
    assert streams.shape[1] == BEAT_BYTES * beats(weight.shape, fmt.bits, fmt.nonzeros, units, steps)
    return streams


@st.composite
def mixtures(draw):
    """(shape, bits, nonzeros, units, steps)."""
    n_out, whole = draw(st.integers(1, 100)), draw(st.booleans())
    n_in = 16 * draw(st.integers(1, 20)) if whole else draw(st.integers(1, 300))
    blocks = (-(-n_out // BLOCK), -(-n_in // BLOCK))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    bits = rng.choice(draw(st.lists(st.sampled_from(spec.BITS), min_size=1, max_size=4)), blocks).astype(np.uint8)
    counts = draw(st.lists(st.sampled_from((0, *spec.NONZEROS)), min_size=1, max_size=4))
    nonzeros = rng.choice(counts, blocks).astype(np.uint8)
    if n_in % BLOCK:
        bits[:, -1] = np.maximum(bits[:, -1], 4)
    units = draw(st.sampled_from((1, 2, 4)))
    steps = -(-blocks[0] // units) + draw(st.integers(0, 2))
    return (n_out, n_in), bits, nonzeros, units, steps


@settings(max_examples=60, deadline=None)
@given(mixtures(), st.integers(0, 2**32))
def test_random_mixtures_come_back(case, seed):
    shape, bits, nonzeros, units, steps = case
    check(*random_matrix(shape, bits, nonzeros, seed), units, steps)


def test_masks_of_eight_bits_or_more_are_their_first_eight():
    for mask in range(1 << BLOCK):
        if mask.bit_count() >= 8:
            assert spec.mask_inputs(mask) == [i for i in range(BLOCK) if mask >> i & 1][:8]


@pytest.mark.parametrize("bits", spec.BITS)
@pytest.mark.parametrize("nonzeros", spec.NONZEROS)
def test_uniform_formats_come_back(bits, nonzeros):
    shape = (70, 11 * BLOCK)
    check(*random_matrix(shape, *uniform(shape, bits, nonzeros)), units=2)


@pytest.mark.parametrize("shape, units", [((1, 1), 1), ((70, 300), 2), ((64, 128), 4), ((33, 130), 1)])
def test_dense_is_every_block_at_8_bits(shape, units):
    weight = np.random.default_rng(1).integers(-127, 128, shape, np.int8)
    streams = encode(weight, None, units)
    assert streams.shape[1] == BEAT_BYTES * spec.stream_beats(*shape, units) == BEAT_BYTES * dense_beats(shape, units)
    np.testing.assert_array_equal(decode(streams, shape[1])[: shape[0]], weight)


def test_dense_equals_the_general_encoder_where_no_fillers_are_needed():
    shape = (64, 300)
    weight, fmt = random_matrix(shape, *uniform(shape, 8, 16))
    np.testing.assert_array_equal(encode(weight, None, 2), encode(weight, fmt, 2))


def test_beats_of_a_uniform_format_are_the_formula():
    """4096 x 4096 at 4 bits on 32 units: 8 steps x 32 windows x 2 groups of runs, 2 beats a block."""
    shape = (4096, 4096)
    assert beats(shape, *uniform(shape, 4, 16), 32) == 8 * 32 * 2 // 4 + 8 * 256 * 2
    assert beats(shape, *uniform(shape, 2, 8), 32) == 8 * 32 // 4 + 8 * 128 * 2
    # 3 bits, N = 8: bundles of 8 runs, two to a pair of 3-bit rounds: 1 beat of masks each, 3 of codes for both.
    assert beats(shape, *uniform(shape, 3, 8), 32) == 8 * 32 // 4 + 8 * 128 // 2 * (2 + 3)


def test_a_matrix_of_nothing_is_a_filler_a_step():
    shape = (100, 200)
    weight = np.zeros(shape, np.int8)
    bits, nonzeros = uniform(shape, 2, 0)
    streams = check(weight, BlockFormat(bits, nonzeros, np.zeros((112, 13), np.int8)), units=2)
    assert [(r.window, r.sparse, r.last) for r in rounds(streams[0])] == [(0, True, True)] * 4


def test_missing_nonzeros_become_zero_slots_where_there_is_a_zero():
    shape = (16, 32)
    for bits in (8, 4):
        check(np.zeros(shape, np.int8), BlockFormat(*uniform(shape, bits, 4), np.full((16, 2), 3, np.int8)), units=1)


@pytest.mark.parametrize("bits", [2, 3])
def test_missing_nonzeros_are_refused_without_a_zero(bits):
    shape = (16, 32)
    weight, fmt = random_matrix(shape, *uniform(shape, bits, 4), zero_rows=False)
    weight[3, 16:] = 0
    with pytest.raises(ValueError, match=r"block \(0, 1\)"):
        encode(weight, fmt, 1)
    fmt.scales[3] = 0
    weight[3] = 0
    check(weight, fmt, units=1)


def test_what_the_format_cannot_say_is_refused_by_name():
    shape = (32, 256)
    weight, fmt = random_matrix(shape, *uniform(shape, 4, 8), zero_rows=False)
    crowded = weight.copy()
    crowded[20, 32:48] = fmt.scales[20, 2]
    with pytest.raises(ValueError, match=r"block \(1, 2\) has a row with more than 8"):
        encode(crowded, fmt, 2)
    with pytest.raises(ValueError, match=r"block \(0, 0\) has weights, and its format says it is empty"):
        encode(weight, BlockFormat(fmt.bits, np.zeros_like(fmt.nonzeros), fmt.scales), 2)
    scales = fmt.scales.copy()
    scales[:, 5] = np.where(scales[:, 5] == 1, 2, 1)
    with pytest.raises(ValueError, match=r"block \(\d, 5\)"):
        encode(weight, BlockFormat(fmt.bits, fmt.nonzeros, scales), 2)
    scales = fmt.scales.copy()
    scales[17, 9] = 16
    with pytest.raises(ValueError, match=r"block \(1, 9\) has a scale"):
        encode(weight, BlockFormat(fmt.bits, fmt.nonzeros, scales), 2)
    with pytest.raises(ValueError, match="need 2 steps"):
        encode(weight, fmt, 1, steps=1)
    with pytest.raises(ValueError, match="no zero to fill them up"):
        beats((16, 20), *uniform((16, 20), 3, 16), 1)


@pytest.mark.parametrize("bits, nonzeros", [(8, 16), (4, 16), (3, 16), (2, 8), (4, 4)])
def test_a_large_matrix_takes_seconds(bits, nonzeros):
    """1024 x 11008, a quarter of the largest layer of llava-1.5-7b."""
    shape, rng = (1024, 11008), np.random.default_rng(0)
    blocks = uniform(shape, bits, nonzeros)
    levels = np.arange(1, 8, 2) if bits < 4 else np.arange(1, 8)
    levels = levels[levels <= (3 if bits == 2 else 7)]
    weight = rng.choice(np.concatenate([levels, -levels]), (*shape[:1], shape[1] // BLOCK, BLOCK)).astype(np.int8)
    weight[:, :, nonzeros:] = 0
    scales = np.full((shape[0], shape[1] // BLOCK), 0 if bits == 8 else 1, np.int8)
    began = time.monotonic()
    encode(rng.permuted(weight, axis=2).reshape(shape), BlockFormat(*blocks, scales), 32)
    assert time.monotonic() - began < 10
