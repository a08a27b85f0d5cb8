"""A round of weights: what the chains hold at once, as the weight front hands it out."""

from amaranth.hdl import *
from amaranth.lib import data

from hw.chain import N_GROUPS
from hw.spec.config import BLOCK
from hw.spec.timing import WEIGHT_BUFFER_ROUNDS
from hw.spec.weights import MAX_BUNDLE, MAX_WINDOWS, SCALE_BITS, WINDOW

WEIGHTS = data.ArrayLayout(data.ArrayLayout(signed(8), BLOCK), BLOCK)  # int8[row, slot]
INDICES = data.ArrayLayout(data.ArrayLayout(range(BLOCK), BLOCK), BLOCK)  # uint4[row, slot]; dense: anything
SCALES = data.ArrayLayout(signed(SCALE_BITS), BLOCK)  # int6[row]; of bytes: 1
BLOCKS = data.ArrayLayout(range(WINDOW), N_GROUPS)  # each DSP group's block of the window

ROUND_KIND = data.StructLayout(
    {"sparse": 1, "raw": 1, "last": 1, "more": 1, "step": range(MAX_BUNDLE), "window": range(MAX_WINDOWS)}
)
"""What the schedule needs of a round. more: the next one is of its batch; last: its batch ends a group; step: of the
group. A raw round has the window and step 0 and is never last."""

PLACE = range(WEIGHT_BUFFER_ROUNDS)
"""Where a unit holds a round: the k-th round of a run at k modulo this."""

ROUND = data.StructLayout({"weights": WEIGHTS, "indices": INDICES, "blocks": BLOCKS, "scales": SCALES})
"""weights: levels or bytes; the sums of a row's products are multiplied by its scale."""
