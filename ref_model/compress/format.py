"""How a compressed weight matrix is divided: precision, non-zeros and scales of its 16 x 16 blocks.

The stream that carries it is described in `hw/spec/weights.py`.
"""

from dataclasses import dataclass

import numpy as np

from hw.spec.config import BLOCK
from hw.spec.weights import WINDOW


def group_blocks(bits: int, nonzeros: int) -> int:
    """Neighbouring input blocks that share a row's scale: 64 inputs at dense 4 bits, else a window of 128.

    A finer group costs 16 bytes more a window and output block, and a sparse one would leave rounds half empty.
    """
    return WINDOW // 2 if bits == 4 and nonzeros == BLOCK else WINDOW


@dataclass(frozen=True)
class BlockFormat:
    """Blocks of int8[out, in], both rounded up to whole blocks.

    bits: uint8[out_blocks, in_blocks], 2, 3, 4 or 8. nonzeros: uint8[out_blocks, in_blocks], 0, 1, 2, 4, 8 or 16 of 16
    in every row of the block. scales: int8[out_blocks * 16, in_blocks], weight = level * scale (0 and unused at 8
    bits); equal over the blocks of a window with the same bits, non-zeros and place // group_blocks(bits, nonzeros).
    """

    bits: np.ndarray
    nonzeros: np.ndarray
    scales: np.ndarray

    @property
    def average_bits(self) -> float:
        """Payload bits a weight of the dense matrix, indices and scales not counted."""
        return float((self.bits.astype(np.float64) * self.nonzeros / BLOCK).mean())
