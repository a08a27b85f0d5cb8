"""The integers of attention: what golden models and programs share (operators 6 to 8 of docs/machine.md).

A probability is p = 2**(score - largest score of its row), in steps of 2**-15. Its weight in a sum of values is p times
the value's scale, in two planes of bytes, because a matrix multiplication takes bytes::

    score    = q . k * k_scale * 2**-KEY_ADJUST * q_scale * 2**-QUERY_ADJUST
    weight   = p * (v_scale * VALUE_REFERENCE * 2**-VALUE_ADJUST) / 2**VALUE_SHIFT
    output   = (high plane . v * HIGH_PLANE + low plane . v * LOW_PLANE) / sum of p * 2**-OUT_ADJUST
"""

from .numerics import encode_scale

KEY_ADJUST = 14
"""Negative exponent of two beside a key's scale word."""
QUERY_ADJUST = 16
"""Negative exponent of two beside a query's scale word."""
VALUE_REFERENCE = encode_scale(2.0**-21)
"""Scale word that brings a value's raw maximum to the weight of its probability."""
VALUE_ADJUST = -15
"""Negative exponent of two beside `VALUE_REFERENCE`."""
VALUE_SHIFT = 15
"""Fractional bits of a probability: its product with a value's scale drops them."""
HIGH_PLANE, LOW_PLANE = encode_scale(16.0), encode_scale(1 / 16)
"""Scale words of the sums that the two planes of a weight make."""
OUT_ADJUST = -22
"""Negative exponent of two beside the reciprocal of the sum of probabilities."""
