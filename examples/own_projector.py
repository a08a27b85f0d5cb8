"""A projector of one's own: it merges the visual tokens of every 2 x 2 square, then brings them to the text's width.

Vision towers give one token a patch; a language model pays for each of them. Here four neighbours become one wide
token, as in InternVL's pixel shuffle, and a gated MLP makes a text token of it.

    alula verify examples/own_projector.py:Projector
    alula simulate examples/own_projector.py:Projector --config u280
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

GRID, VISION, TEXT, HIDDEN = 8, 48, 64, 160
"""Patches on a side, channels of a visual token, of a text token, and inside the MLP."""


class Projector(nn.Module):
    """float[GRID * GRID, VISION] -> float[GRID * GRID / 4, TEXT]."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * VISION)
        self.gate = nn.Linear(4 * VISION, HIDDEN)
        self.up = nn.Linear(4 * VISION, HIDDEN)
        self.down = nn.Linear(HIDDEN, TEXT)

    def forward(self, x: Tensor) -> Tensor:
        squares = x.view(GRID // 2, 2, GRID // 2, 2, VISION).permute(0, 2, 1, 3, 4)
        merged = self.norm(squares.reshape(-1, 4 * VISION))
        return self.down(functional.silu(self.gate(merged)) * self.up(merged))


def inputs() -> dict[str, Tensor]:
    """Example tensors, by the names of `forward`'s parameters."""
    return {"x": torch.randn(GRID * GRID, VISION)}
