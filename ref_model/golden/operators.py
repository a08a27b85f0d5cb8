"""Integer operators on whole matrices. Wide values are int64 arrays that hold int32 Q15.16."""

from dataclasses import replace

import numpy as np

from hw.spec import attention as at
from hw.spec import numerics as nm
from hw.spec.rows import absmax, matmul
from hw.spec.rows import quantise_rows as quantise_rows
from ref_model.quantise import QuantLinear, QuantNorm

Array = np.ndarray
GATED_SHIFT = 14
IMPORTANCE_FRAC = 24
GATES = {"silu": nm.SILU_TABLE, "gelu": nm.GELU_TABLE, "quick_gelu": nm.QGELU_TABLE}


def linear(q: Array, raw: Array, w: QuantLinear) -> Array:
    """Wide int64[n, out] of int8[n, in] with row maxima int64[n, 1], bias included."""
    x = nm.mul_scale(nm.mul_scale(matmul(q, w.weight), w.words), nm.to_scale(raw), w.shift)
    return x if w.bias is None else nm.sat32(x + w.bias)


def add_linear(x: Array, q: Array, raw: Array, w: QuantLinear) -> Array:
    """Residual x plus a linear layer; a bias is added last (one saturation each)."""
    bare = replace(w, bias=None)
    x = nm.sat32(x + linear(q, raw, bare))
    return x if w.bias is None else nm.sat32(x + w.bias)


def normalise(x: Array, n: QuantNorm) -> Array:
    """RMSNorm or LayerNorm of wide rows; wide result."""
    if n.mean_word is not None:
        shift = max(0, min(nm.MAX_SHIFT, nm.scale_exponent(n.mean_word)))
        total = x.sum(axis=-1, keepdims=True)
        x = nm.sat32(x - nm.sat32(nm.rshift_round(total * nm.scale_mantissa(n.mean_word), shift)))
    shift = nm.square_shift(absmax(x))
    squares = ((x >> shift) ** 2).sum(axis=-1, keepdims=True)
    y = nm.mul_scale(nm.mul_scale(x, n.words), nm.rsqrt_scale(squares, shift, n.epsilon), n.adjust)
    return y if n.bias is None else nm.sat32(y + n.bias)


def rotate(x: Array, table: Array) -> Array:
    """RoPE of wide int64[n, heads, head_dim] with table words int64[n, head_dim], pairs in neighbouring lanes."""
    partner = x.reshape(*x.shape[:-1], -1, 2)[..., ::-1].reshape(x.shape)
    return nm.rope(x, partner, table[:, None, :])


def attend(
    q: Array,
    q_raw: Array,
    keys: tuple[Array, Array],
    values: tuple[Array, Array],
    limit: Array,
    present: Array | None = None,
) -> Array:
    """Attention of one head.

    q: int8[n, hd], q_raw: int64[n, 1]; keys: int8[kv, hd] and scale words int64[kv]; values: int8[kv, hd]
    and raw maxima int64[kv]; limit: int64[n, 1], keys each query may see; present: bool[n, kv], keys that exist for
    a query (None: all). Wide Q20 int64[n, hd].
    """
    v8, v_raw = values
    p = probabilities(q, q_raw, keys, limit, present)
    inverse = nm.recip_scale(p.sum(axis=1, keepdims=True))
    weighted = nm.multiply_shift(p, nm.mul_scale(v_raw, at.VALUE_REFERENCE, at.VALUE_ADJUST), at.VALUE_SHIFT)
    high, low = nm.split_planes(nm.clip(weighted, 0, nm.PROB_MAX))
    v = np.ascontiguousarray(v8.T)
    o = nm.mul_scale(matmul(high.astype(np.int8), v), at.HIGH_PLANE)
    o = nm.sat32(nm.mul_scale(matmul(low.astype(np.int8), v), at.LOW_PLANE) + o)
    return nm.mul_scale(o, inverse, at.OUT_ADJUST)


def probabilities(q: Array, q_raw: Array, keys: tuple[Array, Array], limit: Array, present: Array | None) -> Array:
    """Unnormalised probabilities int64[n, kv] of one head, 0..PROB_MAX; arguments as in `attend`."""
    k8, k_words = keys
    scores = nm.mul_scale(nm.mul_scale(matmul(q, k8), k_words, at.KEY_ADJUST), nm.to_scale(q_raw), at.QUERY_ADJUST)
    seen = np.arange(len(k8)) < limit
    if present is not None:
        seen &= present
    top = np.where(seen, scores, nm.INT32_MIN).max(axis=1, keepdims=True)
    return np.where(seen, nm.exp2_prob(nm.sat32(scores - top)), 0)


def importance(p: Array) -> Array:
    """Probabilities of one head as shares of their sum, Q24; operator 11 adds them up over the heads."""
    return nm.mul_scale(p, nm.recip_scale(p.sum(axis=1, keepdims=True)), -IMPORTANCE_FRAC)


def gated(gate: Array, up: Array) -> Array:
    """silu(gate) * up in Q18."""
    return nm.multiply_shift(up, nm.gate(gate, nm.SILU_TABLE), GATED_SHIFT)
