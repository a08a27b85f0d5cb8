"""A round of weights: what the chains hold at once, as the weight front hands it out."""

from amaranth.hdl import *
from amaranth.lib import data

from hw.chain import N_GROUPS
from hw.spec.config import BLOCK
from hw.spec.weights import MAX_WINDOWS, SCALE_BITS, WINDOW

WEIGHTS = data.ArrayLayout(data.ArrayLayout(signed(8), BLOCK), BLOCK)  # int8[row, slot]
INDICES = data.ArrayLayout(data.ArrayLayout(range(BLOCK), BLOCK), BLOCK)  # uint4[row, slot]; dense: anything
SCALES = data.ArrayLayout(signed(SCALE_BITS), BLOCK)  # int6[row]; of bytes: 1
BLOCKS = data.ArrayLayout(range(WINDOW), N_GROUPS)  # each DSP group's block of the window

ROUND_KIND = data.StructLayout({"sparse": 1, "raw": 1, "last": 1, "window": range(MAX_WINDOWS)})
"""What the schedule needs of a round; last: it ends a step. A raw round has the window 0 and is never last."""

ROUND = data.StructLayout(
    {
        "weights": WEIGHTS,
        "indices": INDICES,
        "blocks": BLOCKS,
        "sparse": 1,
        "single": 1,
        "scales": SCALES,
    }
)
"""single: N = 1; weights: levels or bytes; the sums of a row's products are multiplied by its scale."""
