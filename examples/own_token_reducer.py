"""A token reducer of one's own: eight learned queries look at the pooled picture and at all of its patches.

Resamplers such as MQT's let a fixed number of queries read the visual tokens. This one gives them two sources in one
attention: all patches, and the means of every 2 x 2 square, so that coarse and fine are both at hand.

    alula verify examples/own_token_reducer.py:Reducer
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

GRID, WIDTH, HEADS, QUERIES, TEXT = 8, 48, 3, 8, 64


class Reducer(nn.Module):
    """float[GRID * GRID, WIDTH] -> float[QUERIES, TEXT]."""

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(QUERIES, WIDTH))
        self.norm = nn.LayerNorm(WIDTH)
        self.k, self.v = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.out = nn.Linear(WIDTH, TEXT)

    def heads(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], HEADS, -1).transpose(0, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.norm(x)
        grid = fine.t().reshape(1, WIDTH, GRID, GRID)
        coarse = functional.avg_pool2d(grid, 2).reshape(WIDTH, -1).t()
        tokens = torch.cat((coarse, fine))
        read = functional.scaled_dot_product_attention(self.heads(self.queries), self.heads(self.k(tokens)), self.heads(self.v(tokens)))
        return self.out(self.queries + read.transpose(0, 1).reshape(QUERIES, WIDTH))


def inputs() -> dict[str, Tensor]:
    """Example tensors, by the names of `forward`'s parameters."""
    return {"x": torch.randn(GRID * GRID, WIDTH)}
