"""A token reducer of your own: 16 visual tokens become 8.

Four are the means of squares of 2 x 2 tokens, and see the whole picture coarsely. Four are the tokens with the largest
learned scores, in their old order, and keep detail. Compile it, compare every byte, and see what it costs:

    alula verify examples/own_token_reducer.py:TokenReducer
    alula simulate examples/own_token_reducer.py:TokenReducer

The machine takes its own scores in integers. Where two scores lie close together, it may keep another token than
PyTorch does. The float error that `verify` reports shows it.
"""

import torch
from torch import Tensor, nn

WIDTH = 48
"""Channels of a visual token."""
SIDE = 4
"""Visual tokens along one side of the picture."""
KEPT = 4
"""Tokens that are kept for their scores."""


class TokenReducer(nn.Module):
    """Visual tokens float[16, 48], row by row -> float[8, 48]: four means, then four kept tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.score = nn.Linear(WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((self.means(x), self.strongest(x)))

    def means(self, x: Tensor) -> Tensor:
        """The mean of every square of 2 x 2 tokens, float[4, 48]."""
        squares = x.view(SIDE // 2, 2, SIDE // 2, 2, WIDTH)
        return squares.mean((1, 3)).reshape(-1, WIDTH)

    def strongest(self, x: Tensor) -> Tensor:
        """The tokens with the largest scores, in their old order, float[4, 48]."""
        scores = self.score(self.norm(x))[:, 0]
        places = torch.topk(scores, KEPT).indices.sort().values
        return x[places]

    @staticmethod
    def inputs() -> dict[str, Tensor]:
        """Example tensors by the names of `forward`'s parameters."""
        return {"x": torch.randn(SIDE * SIDE, WIDTH, generator=torch.Generator().manual_seed(0))}
