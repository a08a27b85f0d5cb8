"""Projectors: from vision rows of 48 channels to text rows of 64, some with fewer rows than before."""

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from .case import Case, Inputs, fixed_inputs, row_inputs, rows, trained
from .vision import BlockOptions, VisionAttention

VISION, TEXT, HEADS = 48, 64, 3
SIDE = 4
"""Tokens along one side of the picture's grid."""


def mlp(*widths: int) -> nn.Sequential:
    """Linear layers with GELU between them, float[rows, widths[0]] -> float[rows, widths[-1]]."""
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(widths):
        layers += [nn.GELU(), nn.Linear(n_in, n_out)] if layers else [nn.Linear(n_in, n_out)]
    return nn.Sequential(*layers)


class Projector(nn.Module):
    """An MLP, float[rows, 48] -> float[rows, 64]; perhaps with a norm before it."""

    def __init__(self, *widths: int, norm: bool = False) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(widths[0]) if norm else nn.Identity()
        self.mlp = mlp(*widths)

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(self.norm(x))


class PixelShuffleProjector(nn.Module):
    """Joins squares of 2 x 2 tokens into one token of four times the width, float[16, 48] -> float[4, 64]."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = mlp(4 * VISION, TEXT, TEXT)

    def forward(self, x: Tensor) -> Tensor:
        squares = x.view(SIDE // 2, 2, SIDE // 2, 2, VISION).permute(0, 2, 1, 3, 4)
        return self.mlp(squares.reshape(SIDE * SIDE // 4, 4 * VISION))


class GridProjector(nn.Module):
    """A linear layer behind a function of feature maps: float[n_tokens, 48] -> float[fewer, 64].

    reduce: float[1, channels, height, width] -> float[1, other channels, less, less].
    """

    def __init__(self, reduce: Callable[[Tensor], Tensor], channels: int = VISION) -> None:
        super().__init__()
        self.reduce = reduce
        self.linear = nn.Linear(channels, TEXT)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.reduce(x.t().reshape(1, VISION, SIDE, SIDE))
        return self.linear(maps.flatten(2)[0].t())


class MeanProjector(nn.Module):
    """The mean of every square of 2 x 2 tokens, then a linear layer; float[16, 48] -> float[4, 64]."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(VISION, TEXT)

    def forward(self, x: Tensor) -> Tensor:
        squares = x.view(SIDE // 2, 2, SIDE // 2, 2, VISION)
        return self.linear(squares.mean((1, 3)).reshape(-1, VISION))


class VideoProjector(nn.Module):
    """Two frames of 2 x 2 tokens pooled into one, float[8, 48] -> float[4, 64]."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(VISION, TEXT)

    def forward(self, x: Tensor) -> Tensor:
        video = x.view(2, 2, 2, VISION).permute(3, 0, 1, 2)
        pooled = functional.adaptive_avg_pool3d(video[None], (1, 2, 2))
        return self.linear(pooled.reshape(VISION, -1).t())


class CrossAttention(nn.Module):
    """Attention of queries to other rows: float[n, 48] and float[m, 48] -> float[n, 48]."""

    def __init__(self) -> None:
        super().__init__()
        self.query_norm, self.key_norm = nn.LayerNorm(VISION), nn.LayerNorm(VISION)
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(VISION, VISION) for _ in range(4))

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        keys = self.key_norm(keys)
        q = self._heads(self.q_proj(self.query_norm(queries)))
        k, v = self._heads(self.k_proj(keys)), self._heads(self.v_proj(keys))
        heads = functional.scaled_dot_product_attention(q, k, v)
        return queries + self.out_proj(heads.transpose(0, 1).reshape(queries.shape))

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], HEADS, -1).transpose(0, 1)


class Resampler(nn.Module):
    """Eight learned queries look at all rows, float[seq, 48] -> float[8, 48]; perhaps at each other first."""

    def __init__(self, self_attention: bool = False) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.zeros(8, VISION))
        self.cross_attn = CrossAttention()
        if self_attention:
            self.norm = nn.LayerNorm(VISION)
            self.self_attn = VisionAttention(BlockOptions(VISION, HEADS))
        self.self_attention = self_attention

    def forward(self, x: Tensor) -> Tensor:
        queries = self.queries
        if self.self_attention:
            queries = queries + self.self_attn(self.norm(queries))
        return self.cross_attn(queries, x)


class RegionAttention(nn.Module):
    """One query a region of 2 x 2 tokens, which looks at that region alone; float[16, 48] -> float[4, 48].

    The queries are the picture at half its size.
    """

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(VISION, VISION) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        maps = x.t().reshape(1, VISION, SIDE, SIDE)
        small = functional.interpolate(maps, size=(SIDE // 2, SIDE // 2), mode="bilinear").flatten(2)[0].t()
        regions = x.view(SIDE // 2, 2, SIDE // 2, 2, VISION).permute(0, 2, 1, 3, 4).reshape(-1, 4, VISION)
        q = self._heads(self.q_proj(small)[:, None])
        k, v = self._heads(self.k_proj(regions)), self._heads(self.v_proj(regions))
        heads = functional.scaled_dot_product_attention(q, k, v)
        return small + self.out_proj(heads.transpose(1, 2).reshape(-1, VISION))

    def _heads(self, x: Tensor) -> Tensor:
        """float[regions, tokens, 48] -> float[regions, heads, tokens, 16]."""
        return x.view(x.shape[0], x.shape[1], HEADS, -1).transpose(1, 2)


class VisualVocabulary(nn.Module):
    """A row becomes a mixture of the rows of a table, float[seq, 48] -> float[seq, 64]."""

    def __init__(self, n_words: int = 96) -> None:
        super().__init__()
        self.vocabulary_head = nn.Linear(VISION, n_words)
        self.table = nn.Embedding(n_words, TEXT)

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(self.vocabulary_head(x), dim=-1) @ self.table.weight


class GatedFusion(nn.Module):
    """A second view of the rows, let in by a sigmoid gate; float[seq, 48] -> float[seq, 48]."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.value = nn.Linear(VISION, VISION), nn.Linear(VISION, VISION)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.sigmoid(self.gate(x)) * self.value(x)


class TwoTowers(nn.Module):
    """Features of two towers side by side; float[seq, 48] and float[seq, 32] -> float[seq, 64]."""

    def __init__(self, norm: bool = False) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(VISION + 32) if norm else nn.Identity()
        self.mlp = mlp(VISION + 32, TEXT, TEXT)

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        return self.mlp(self.norm(torch.cat((x, other), -1)))


class TokenGate(nn.Module):
    """A number between -1 and 1 for every token, on what is added to it; float[seq, 48] -> float[seq, 48]."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.value = nn.Linear(VISION, 1), nn.Linear(VISION, VISION)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.gate(x)) * self.value(x)


class ScaledProjector(nn.Module):
    """Rows times 8, the root of a width, then a linear layer; float[seq, 48] -> float[seq, 64]."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(VISION, TEXT)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x * 8.0)


class LogSoftmaxHead(nn.Module):
    """Logarithms of probabilities, float[seq, 48] -> float[seq, 64]."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(VISION, TEXT)

    def forward(self, x: Tensor) -> Tensor:
        return torch.log_softmax(self.linear(x), dim=-1)


def case(module: Callable[[], nn.Module], about: str, refused: str = "") -> Case:
    """A case of this family that takes any number of rows up to 64."""
    dynamic, lengths = {"x": {0: "seq"}}, {"seq": (1, 64)}
    return Case(lambda: trained(module()), row_inputs(VISION), "projectors", about, dynamic, lengths, refused=refused)


def fixed(module: Callable[[], nn.Module], about: str, inputs: Inputs | None = None) -> Case:
    """A case of this family that takes the 16 tokens of one grid."""
    return Case(lambda: trained(module()), inputs or fixed_inputs(SIDE * SIDE, VISION), "projectors", about)


def pooled(reduce: Callable[[Tensor], Tensor], about: str, channels: int = VISION) -> Case:
    """A case of `GridProjector`."""
    return fixed(partial(GridProjector, reduce, channels), about)


def cross_attention_inputs(seq: int = 5, keys: int = 7) -> dict[str, Tensor]:
    """Inputs of `CrossAttention`: the number of keys has nothing to do with the number of queries."""
    return {"queries": rows("queries", seq, VISION), "keys": rows("keys", keys, VISION)}


def two_tower_inputs(seq: int = 5) -> dict[str, Tensor]:
    """Features of one picture from two towers, token by token."""
    return {"x": rows("x", seq, VISION), "other": rows("other", seq, 32)}


def two_towers(norm: bool, about: str) -> Case:
    dynamic = {"x": {0: "seq"}, "other": {0: "seq"}}
    return Case(lambda: trained(TwoTowers(norm)), two_tower_inputs, "projectors", about, dynamic, {"seq": (1, 64)})


def resized(mode: str) -> Callable[[Tensor], Tensor]:
    """Feature maps at half their size, float[1, c, 4, 4] -> float[1, c, 2, 2]."""
    return partial(functional.interpolate, size=(SIDE // 2, SIDE // 2), mode=mode)


CASES = {
    "one-layer-projector": case(partial(Projector, VISION, TEXT), "One matrix, as in the first LLaVA."),
    "two-layer-projector": case(partial(Projector, VISION, TEXT, TEXT), "Two matrices, as in LLaVA-1.5."),
    "three-layer-projector": case(
        partial(Projector, VISION, TEXT, TEXT, TEXT), "Three matrices, as projectors of higher capacity have them."
    ),
    "norm-and-projector": case(
        partial(Projector, VISION, TEXT, TEXT, norm=True), "LayerNorm before two matrices, as in InternVL."
    ),
    "pixel-shuffle": fixed(
        PixelShuffleProjector, "Four neighbours become one wide token, as in InternVL and Idefics3."
    ),
    "pixel-unshuffle": pooled(
        partial(functional.pixel_unshuffle, downscale_factor=2),
        "Almost the same by torch's own operator: the order of the channels differs.",
        4 * VISION,
    ),
    "average-pooling": pooled(
        partial(functional.avg_pool2d, kernel_size=2), "Means of 2 x 2 tokens, as in LLaVA-OneVision."
    ),
    "average-by-mean": fixed(MeanProjector, "The same means, written as a mean of two axes."),
    "adaptive-pooling-2d": pooled(
        partial(functional.adaptive_avg_pool2d, output_size=3), "Means of windows that overlap, as in InfMLLM and DeCo."
    ),
    "adaptive-pooling-3d": fixed(VideoProjector, "Means over frames, as in PLLaVA.", fixed_inputs(8, VISION)),
    "bilinear-resize": pooled(resized("bilinear"), "Tokens by bilinear resizing, as in LLaVA-OneVision's video."),
    "nearest-resize": pooled(resized("nearest"), "Every second token of every second row, by nearest resizing."),
    "cross-attention": Case(
        lambda: trained(CrossAttention()),
        cross_attention_inputs,
        "projectors",
        "Rows look at rows of another length, as in Flamingo and NVLM-X.",
        {"queries": {0: "seq"}, "keys": {0: "keys"}},
        {"seq": (1, 64), "keys": (1, 64)},
    ),
    "resampler": case(Resampler, "Learned queries look at the picture, as in IDEFICS and MQT."),
    "q-former": case(partial(Resampler, True), "Queries look at each other, then at the picture, as in BLIP-2."),
    "region-attention": fixed(RegionAttention, "A query for every region of the picture, as in TokenPacker."),
    "visual-vocabulary": case(VisualVocabulary, "A softmax over a table of visual words, as in Ovis."),
    "gated-fusion": case(GatedFusion, "A sigmoid gate on a second view, as in MG-LLaVA."),
    "two-towers": two_towers(False, "Channels of two towers are joined, as in Prismatic, Eagle and DeepSeek-VL."),
    "normed-towers": two_towers(True, "The same with a norm over the joined channels."),
    "token-gate": case(TokenGate, "A tanh gate of either sign on every token, as in Flamingo's gated layers."),
    "scaled-rows": case(ScaledProjector, "Embeddings times a number, as in Gemma."),
    "log-softmax": case(
        LogSoftmaxHead, "Logarithms of probabilities, as beam search takes them.", "the machine has no logarithm"
    ),
}
