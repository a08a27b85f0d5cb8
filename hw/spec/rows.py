"""Exact integer operations on whole rows, as the matrix unit and a quantising vector pass make them.

Arrays are NumPy's; wide values are int64 arrays that hold int32 Q15.16. See `numerics` for the operations on single
values. Who passes an array has imported NumPy, so nothing is imported here.
"""

import sys
from typing import Any

from . import numerics as nm

EXACT_TERMS = 1024
"""int8 products that float32 sums exactly (at most 1,040)."""


def matmul(a: Any, b: Any) -> Any:
    """int64[n, m] = a @ b.T of int8[n, k] and int8[m, k]; float32 BLAS in exact pieces."""
    np = sys.modules["numpy"]
    total = np.zeros((a.shape[0], b.shape[0]), dtype=np.int64)
    for k in range(0, a.shape[1], EXACT_TERMS):
        piece = slice(k, k + EXACT_TERMS)
        total += (a[:, piece].astype(np.float32) @ b[:, piece].astype(np.float32).T).astype(np.int64)
    return total


def absmax(x: Any) -> Any:
    """Largest magnitude of each row of wide rows, int64[..., 1], at most 2**31 - 1."""
    return nm.clip(abs(x).max(axis=-1, keepdims=True), 0, nm.INT32_MAX)


def quantise_rows(x: Any) -> tuple[Any, Any]:
    """(int8[..., k], raw absmax int64[..., 1]) of wide rows: 127 stands for the row's largest magnitude."""
    raw = absmax(x)
    return nm.to_int8(nm.mul_scale(x, nm.qrecip_scale(raw))).astype("int8"), raw


def rope_words(cos: Any, sin: Any) -> Any:
    """int64 table words of lanes with these cosines and these sines, each signed as its lane adds it (operator 5)."""
    np = sys.modules["numpy"]
    c, s = (np.rint(np.asarray(part, np.float64) * (1 << nm.ROPE_FRAC)).astype(np.int64) for part in (cos, sin))
    return (c & 0xFFFF) | (s & 0xFFFF) << 16
