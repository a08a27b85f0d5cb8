"""A small vision-language model of your own with three entries: one program, one set of weights, one cache.

encode     patches of a picture -> visual tokens, which stay in the machine
prefill    visual tokens and text behind each other -> logits of the last token
decode     one token behind all that the cache holds -> its logits

alula verify examples/own_model.py:Model
alula simulate examples/own_model.py:Model --entry decode --length cache=100
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

PATCH, WIDTH, HEADS, VOCABULARY, VISUAL, LAYERS = 48, 64, 4, 160, 16, 2


class Layer(nn.Module):
    """float[n, WIDTH] behind a cache float[HEADS, cache, WIDTH / HEADS] -> the rows, and the cache with them."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(WIDTH, eps=1e-6), nn.RMSNorm(WIDTH, eps=1e-6)
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))
        self.up, self.down = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(3 * WIDTH, WIDTH)

    def forward(self, x: Tensor, past_k: Tensor, past_v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        n, h = x.shape[0], self.norm1(x)
        q, k, v = (layer(h).view(n, HEADS, -1).transpose(0, 1) for layer in (self.q, self.k, self.v))
        k, v = torch.cat((past_k, k), dim=1), torch.cat((past_v, v), dim=1)
        causal = torch.ones(n, k.shape[1], dtype=torch.bool).tril(k.shape[1] - n)
        attended = functional.scaled_dot_product_attention(q, k, v, attn_mask=causal)
        x = x + self.o(attended.transpose(0, 1).reshape(n, WIDTH))
        return x + self.down(functional.silu(self.up(self.norm2(x)))), k, v


class Model(nn.Module):
    """caches: of every layer "k0", "v0", "k1" and so on, float[HEADS, cache, WIDTH / HEADS]."""

    def __init__(self) -> None:
        super().__init__()
        self.projector = nn.Sequential(nn.Linear(PATCH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.norm, self.head = nn.RMSNorm(WIDTH, eps=1e-6), nn.Linear(WIDTH, VOCABULARY, bias=False)

    def encode(self, patches: Tensor) -> Tensor:
        return self.projector(patches)

    def prefill(self, visual: Tensor, text: Tensor, **caches: Tensor) -> tuple[Tensor, ...]:
        return self.decode(torch.cat((visual, text)), **caches)

    def decode(self, x: Tensor, **caches: Tensor) -> tuple[Tensor, ...]:
        for n, layer in enumerate(self.layers):
            x, caches[f"k{n}"], caches[f"v{n}"] = layer(x, caches[f"k{n}"], caches[f"v{n}"])
        return self.head(self.norm(x[-1:])), *caches.values()


def caches(rows: int) -> dict[str, Tensor]:
    names = [f"{which}{n}" for n in range(LAYERS) for which in "kv"]
    return {name: 0.5 * torch.randn(HEADS, rows, WIDTH // HEADS) for name in names}


of_caches = {name: {1: "cache"} for name in caches(0)}
entries = {
    "encode": {"inputs": lambda: {"patches": torch.randn(VISUAL, PATCH)}},
    "prefill": {
        "inputs": lambda: {"visual": torch.randn(VISUAL, WIDTH), "text": torch.randn(7, WIDTH), **caches(5)},
        "dynamic": {"text": {0: "seq"}, **of_caches},
        "lengths": {"seq": (1, 48), "cache": (0, 64)},
        "takes": {"visual": "encode"},
    },
    "decode": {
        "inputs": lambda: {"x": torch.randn(1, WIDTH), **caches(9)},
        "dynamic": of_caches,
        "lengths": {"cache": (0, 127)},
    },
}
