"""A projector of your own: it joins squares of 2 x 2 visual tokens, normalises them and maps them to text width.

Run it on the golden model, both simulators and the RTL of the machine `tiny`, and compare every byte:

    alula verify examples/own_projector.py:Projector

`alula` builds the class without arguments and calls `inputs` for example tensors. All lengths are fixed here. See
`own_attention.py` for symbolic ones.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

VISION, TEXT = 48, 64
"""Channels of a visual token, and of a text token."""
SIDE = 4
"""Visual tokens along one side of the picture."""


class GatedMlp(nn.Module):
    """down(silu(gate(x)) * up(x)), float[rows, n_in] -> float[rows, n_out]."""

    def __init__(self, n_in: int, inner: int, n_out: int) -> None:
        super().__init__()
        self.gate = nn.Linear(n_in, inner)
        self.up = nn.Linear(n_in, inner)
        self.down = nn.Linear(inner, n_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(functional.silu(self.gate(x)) * self.up(x))


class Projector(nn.Module):
    """Visual tokens float[16, 48], row by row -> text tokens float[4, 64]."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * VISION)
        self.mlp = GatedMlp(4 * VISION, 2 * TEXT, TEXT)

    def forward(self, x: Tensor) -> Tensor:
        squares = x.view(SIDE // 2, 2, SIDE // 2, 2, VISION).permute(0, 2, 1, 3, 4)
        tokens = squares.reshape(SIDE * SIDE // 4, 4 * VISION)
        return self.mlp(self.norm(tokens))

    @staticmethod
    def inputs() -> dict[str, Tensor]:
        """Example tensors by the names of `forward`'s parameters."""
        return {"x": torch.randn(SIDE * SIDE, VISION, generator=torch.Generator().manual_seed(0))}
