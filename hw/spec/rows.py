"""Exact integer operations on whole rows, as the matrix unit and a quantising vector pass make them.

Wide values are int64 arrays that hold int32 Q15.16; see `numerics` for the operations on single values.
"""

import numpy as np

from . import numerics as nm

EXACT_TERMS = 1024
"""int8 products that float32 sums exactly (at most 1,040)."""


def matmul(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """int64[n, m] = a @ b.T of int8[n, k] and int8[m, k]; float32 BLAS in exact pieces."""
    total = np.zeros((a.shape[0], b.shape[0]), dtype=np.int64)
    for k in range(0, a.shape[1], EXACT_TERMS):
        piece = slice(k, k + EXACT_TERMS)
        total += (a[:, piece].astype(np.float32) @ b[:, piece].astype(np.float32).T).astype(np.int64)
    return total


def absmax(x: np.ndarray) -> np.ndarray:
    """Largest magnitude of each row, int64[..., 1], at most 2**31 - 1."""
    return np.minimum(np.abs(x).max(axis=-1, keepdims=True), nm.INT32_MAX)


def quantise_rows(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(int8[..., k], raw absmax int64[..., 1]) of wide rows: 127 stands for the row's largest magnitude."""
    raw = absmax(x)
    return nm.to_int8(nm.mul_scale(x, nm.qrecip_scale(raw))).astype(np.int8), raw


def rope_words(cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """int64 table words of lanes with these cosines and these sines, each signed as its lane adds it (operator 5)."""
    c, s = (np.rint(np.asarray(part, np.float64) * (1 << nm.ROPE_FRAC)).astype(np.int64) for part in (cos, sin))
    return (c & 0xFFFF) | (s & 0xFFFF) << 16
