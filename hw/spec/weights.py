"""Weight stream and cache layouts in a matrix unit's channel.

A weight matrix int8[out, in] is cut into 16x16 blocks. Output block j*units + u is the j-th of unit u; a
unit's stream holds its output blocks in order, the input blocks of each innermost. A block is 256 bytes,
row r (output channel) at byte 16*r, input c at byte c. A STREAM-format stream starts with one header beat;
widths are padded with zero blocks: out to 16*units, in to 16.
"""

from .config import BEAT_BYTES, BLOCK, BLOCK_BEATS

HEADER_MAGIC = 0xA1
"""Byte 0 of a header beat. Byte 1: bits a weight. Byte 2: non-zeros of 16 a row. Byte 3: 0. Bytes 4..7: blocks."""


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def header(blocks: int, bits: int = 8, nonzeros: int = BLOCK) -> bytes:
    """The header beat of a run of equal blocks."""
    body = bytes((HEADER_MAGIC, bits, nonzeros, 0)) + blocks.to_bytes(4, "little")
    return body.ljust(BEAT_BYTES, b"\0")


def output_blocks(out_features: int, units: int) -> int:
    """Output-block steps a unit (the MX field ob in SPLIT_N)."""
    return ceil_div(out_features, BLOCK * units)


def input_blocks(in_features: int) -> int:
    return ceil_div(in_features, BLOCK)


def stream_beats(out_features: int, in_features: int, units: int) -> int:
    """Beats of one unit's STREAM-format stream, header included."""
    return 1 + output_blocks(out_features, units) * input_blocks(in_features) * BLOCK_BEATS


def cache_slots(context: int, units: int) -> int:
    """Key blocks of 16 a unit for a context of that many tokens."""
    return ceil_div(context, BLOCK * units)


def k_strides(head_dim: int) -> dict[str, int]:
    """Beat strides of a head's K cache [slot][dim block][key 16][dim 16]; scores stream ob = slots, kb = dims."""
    return {"slot": head_dim // BLOCK * BLOCK_BEATS, "gran": BLOCK_BEATS}


def v_strides(context: int, units: int) -> dict[str, int]:
    """Beat strides of a head's V cache [dim block][slot][dim 16][key 16]; PV streams ob = dims, kb = slots."""
    return {"slot": BLOCK_BEATS, "gran": cache_slots(context, units) * BLOCK_BEATS}


def cache_beats(head_dim: int, context: int, units: int) -> int:
    """Beats of one head's K (or V) in one unit's channel."""
    return cache_slots(context, units) * (head_dim // BLOCK) * BLOCK_BEATS
