"""Projectors, heads, and what else lies between tower and language model: see `modules`."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from compiler.graph.ir import Dim
from compiler.parts import SEQ, Part
from ref_model.decoder import RMSNorm
from ref_model.vision import quick_gelu
from tests.compiler.modules import (
    HIDDEN,
    PATCHES,
    VISION,
    VISION_HEADS,
    Case,
)
from tests.compiler.modules_vision import TowerAttention


class Pieces(nn.Module):
    """run(pieces, x)."""

    def __init__(self, run: Callable[[nn.ModuleList, Tensor], Tensor], *pieces: nn.Module) -> None:
        super().__init__()
        self.run, self.pieces = run, nn.ModuleList(pieces)

    def forward(self, x):
        return self.run(self.pieces, x)


class CrossAttention(nn.Module):
    """Learned queries ask the features, after themselves if asked to."""

    def __init__(self, first_themselves: bool = False) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.zeros(8, VISION))
        self.q, self.k, self.v, self.o = (nn.Linear(VISION, VISION) for _ in range(4))
        self.norm_queries, self.norm_features = nn.LayerNorm(VISION), nn.LayerNorm(VISION)
        self.themselves = TowerAttention() if first_themselves else None

    def forward(self, x):
        queries, features = self.queries, self.norm_features(x)
        if self.themselves is not None:
            queries = queries + self.themselves(self.norm_queries(queries))
        asked = ((self.q, self.norm_queries(queries)), (self.k, features), (self.v, features))
        q, k, v = (layer(rows).view(rows.shape[0], VISION_HEADS, -1).transpose(0, 1) for layer, rows in asked)
        heads = functional.scaled_dot_product_attention(q, k, v)
        return queries + self.o(heads.transpose(0, 1).reshape(queries.shape))


class RegionAttention(nn.Module):
    """A coarse feature asks the fine ones of its region, regions in the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(VISION, VISION) for _ in range(4))

    def forward(self, x):
        grid = x.view(4, 4, VISION)
        coarse = functional.interpolate(grid.permute(2, 0, 1)[None], size=(2, 2), mode="bilinear")[0]
        coarse = coarse.permute(1, 2, 0).reshape(-1, VISION)
        region = grid.view(2, 2, 2, 2, VISION).permute(0, 2, 1, 3, 4).reshape(-1, 4, VISION)
        q = self.q(coarse).view(-1, 1, VISION_HEADS, 16).transpose(1, 2)
        k, v = (layer(region).view(-1, 4, VISION_HEADS, 16).transpose(1, 2) for layer in (self.k, self.v))
        heads = functional.scaled_dot_product_attention(q, k, v)
        return coarse + self.o(heads.transpose(1, 2).reshape(-1, VISION))


class Scan(nn.Module):
    """A selective state-space recurrence over four rows."""

    def __init__(self) -> None:
        super().__init__()
        self.rates, self.steps = nn.Parameter(torch.zeros(VISION, 8)), nn.Linear(VISION, 17, False)

    def forward(self, x):
        delta, b, c = self.steps(x).split([1, 8, 8], -1)
        delta, state, rows = functional.softplus(delta), x.new_zeros(VISION, 8), []
        for t in range(4):
            state = torch.exp(delta[t] * self.rates) * state + delta[t] * b[t] * x[t][:, None]
            rows.append((state * c[t]).sum(-1))
        return torch.stack(rows)


def projector(
    run: Callable[[nn.ModuleList, Tensor], Tensor], *layers: Callable[[], nn.Module], shape: tuple = (SEQ, VISION)
) -> Callable[[], Part]:
    return lambda: Part(Pieces(run, *(layer() for layer in layers)), {"x": shape})


def features(module: Callable[[], nn.Module], rows: Dim = SEQ) -> Callable[[], Part]:
    return lambda: Part(module(), {"x": (rows, VISION)})


def linear(n_in: int, n_out: int, bias: bool = True) -> Callable[[], nn.Module]:
    return lambda: nn.Linear(n_in, n_out, bias)


def image(x: Tensor) -> Tensor:
    """Rows of a grid as one image [1, width, 4, 4]."""
    return x.t().reshape(1, VISION, 4, 4)


GRID = (PATCHES, VISION)
TWO = (linear(VISION, HIDDEN), linear(HIDDEN, HIDDEN))
PROJECTORS = {
    "two layers, gelu": Case("projector", projector(lambda m, x: m[1](functional.gelu(m[0](x))), *TWO)),
    "two layers, quick gelu": Case("projector", projector(lambda m, x: m[1](quick_gelu(m[0](x))), *TWO)),
    "two layers without biases": Case(
        "projector",
        projector(
            lambda m, x: m[1](functional.gelu(m[0](x))), linear(VISION, HIDDEN, False), linear(HIDDEN, HIDDEN, False)
        ),
    ),
    "inner width 4 times": Case(
        "projector",
        projector(lambda m, x: m[1](functional.gelu(m[0](x))), linear(VISION, 4 * HIDDEN), linear(4 * HIDDEN, HIDDEN)),
    ),
    "one layer": Case("projector", projector(lambda m, x: m[0](x), linear(VISION, HIDDEN)), "its operators are linear"),
    "three layers": Case(
        "projector",
        projector(lambda m, x: m[2](functional.gelu(m[1](functional.gelu(m[0](x))))), *TWO, linear(HIDDEN, HIDDEN)),
        "module projector: its operators are mlp with gelu, mlp with gelu, linear",
    ),
    "a norm first": Case(
        "projector",
        projector(lambda m, x: m[2](functional.gelu(m[1](m[0](x)))), lambda: nn.LayerNorm(VISION), *TWO),
        "its operators are layer norm, mlp",
    ),
    "another width": Case(
        "projector",
        projector(lambda m, x: m[1](functional.gelu(m[0](x))), linear(VISION, HIDDEN), linear(HIDDEN, 2 * HIDDEN)),
        "module layer: its rows are 64 wide, those of projector 128",
    ),
    "a layer used twice": Case(
        "projector", projector(lambda m, x: m[1](functional.gelu(m[1](functional.gelu(m[0](x))))), *TWO), "used twice"
    ),
    "pixel shuffle": Case(
        "projector",
        projector(
            lambda m, x: m[1](functional.gelu(m[0](x.view(2, 2, 2, 2, VISION).permute(0, 2, 1, 3, 4).reshape(4, -1)))),
            linear(4 * VISION, HIDDEN),
            linear(HIDDEN, HIDDEN),
            shape=GRID,
        ),
        "operator reshape .*no kernel computes it",
    ),
    "average pooling": Case(
        "projector",
        projector(
            lambda m, x: m[0](functional.avg_pool2d(image(x), 2).reshape(VISION, 4).t()),
            linear(VISION, HIDDEN),
            shape=GRID,
        ),
        "operator mix .*no kernel computes it",
    ),
    "average pooling by mean": Case(
        "projector",
        projector(
            lambda m, x: m[0](x.view(2, 2, 2, 2, VISION).mean((1, 3)).reshape(4, VISION)),
            linear(VISION, HIDDEN),
            shape=GRID,
        ),
        "operator reshape .*no kernel computes it",
    ),
    "adaptive pooling": Case(
        "projector",
        projector(
            lambda m, x: m[0](
                functional.adaptive_avg_pool3d(x.view(2, 2, 2, VISION).permute(3, 0, 1, 2)[None], (1, 2, 2))
                .reshape(VISION, 4)
                .t()
            ),
            linear(VISION, HIDDEN),
            shape=(8, VISION),
        ),
        "operator reshape .*no kernel computes it",
    ),
    "bilinear sampling": Case(
        "projector",
        projector(
            lambda m, x: m[0](functional.interpolate(image(x), size=(2, 2), mode="bilinear").reshape(VISION, 4).t()),
            linear(VISION, HIDDEN),
            shape=GRID,
        ),
        "operator mix .*no kernel computes it",
    ),
    "depthwise convolution": Case(
        "projector",
        projector(
            lambda m, x: m[0](image(x)).reshape(VISION, PATCHES).t(),
            lambda: nn.Conv2d(VISION, VISION, 3, 1, 1, groups=VISION),
            shape=GRID,
        ),
        "operator linear .*not computed from them",
    ),
    "convolution": Case(
        "projector",
        projector(lambda m, x: m[0](x), lambda: nn.Conv2d(3, 16, 3, 2, 1), shape=(1, 3, 16, 16)),
        "operator linear .*not computed from them",
    ),
    "batch norm": Case(
        "projector",
        projector(lambda m, x: m[0](x), lambda: nn.BatchNorm1d(VISION)),
        "operator mul .*kernels multiply silu",
    ),
    "cross-attention": Case("projector", features(CrossAttention), "its query is the result of transpose"),
    "self- then cross-attention": Case(
        "projector", features(lambda: CrossAttention(True)), "its query is the result of transpose"
    ),
    "attention of regions": Case("projector", features(RegionAttention, PATCHES), "its query is the result of reshape"),
    "table of embeddings": Case(
        "projector",
        projector(
            lambda m, x: torch.softmax(m[0](x), -1) @ m[1].weight, linear(VISION, 96), lambda: nn.Embedding(96, HIDDEN)
        ),
        "operator linear .*not computed from them",
    ),
    "gate of a sigmoid": Case(
        "projector",
        projector(lambda m, x: x + torch.sigmoid(m[0](x)) * m[1](x), linear(VISION, VISION), linear(VISION, VISION)),
        "here is sigmoid",
    ),
    "best rows": Case(
        "projector",
        projector(lambda m, x: x[torch.topk(m[0](x)[:, 0], 3).indices.sort().values], linear(VISION, 1)),
        "torch.export refuses",
    ),
    "scan": Case("projector", features(Scan, 4), "operator softplus .*has no rule"),
    "mean of rows": Case(
        "projector",
        projector(lambda m, x: m[1](functional.relu(m[0](x.mean(0, keepdim=True)))), linear(VISION, 16), linear(16, 2)),
        "operator mean",
    ),
    "log softmax": Case(
        "projector",
        projector(lambda m, x: torch.log_softmax(m[0](x), -1), linear(VISION, HIDDEN)),
        "operator log_softmax",
    ),
    "rows times 8": Case(
        "projector", projector(lambda m, x: m[0](x * 8.0), linear(VISION, HIDDEN)), "operator scale .*here by 8"
    ),
    "dropout": Case(
        "projector",
        projector(lambda m, x: m[1](functional.gelu(m[2](m[0](x)))), *TWO, lambda: nn.Dropout(0.1)),
        "",
    ),
    "a branch on a length": Case(
        "projector",
        projector(lambda m, x: m[1](functional.gelu(m[0](x))) if x.shape[0] > 4 else m[1](m[0](x)), *TWO),
        "torch.export refuses",
    ),
    "a branch on a value": Case(
        "projector", projector(lambda m, x: m[0](x) if x.sum() > 0 else m[1](m[0](x)), *TWO), "torch.export refuses"
    ),
    "rows that are returned": Case("projector", projector(lambda m, x: x), "its first result"),
    "a norm of the head": Case(
        "head",
        projector(
            lambda m, x: m[1](m[0](x)), lambda: nn.LayerNorm(HIDDEN), linear(HIDDEN, 259, False), shape=(SEQ, HIDDEN)
        ),
        "its operators are layer norm, linear; kernels take rms norm",
    ),
    "a bias of the head": Case(
        "head",
        projector(lambda m, x: m[1](m[0](x)), lambda: RMSNorm(HIDDEN, 1e-5), linear(HIDDEN, 259), shape=(SEQ, HIDDEN)),
        "linear with bias",
    ),
}
