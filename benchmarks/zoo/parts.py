"""Parts that several families share: norms, MLPs, low-rank updates, experts."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from ref_model.modules import RMSNorm
from ref_model.vision import quick_gelu

Activation = Callable[[Tensor], Tensor]


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU by its tanh formula, any shape."""
    return functional.gelu(x, approximate="tanh")


def squared_relu(x: Tensor) -> Tensor:
    """The square of what is positive, 0 elsewhere; any shape."""
    return functional.relu(x) ** 2


ACTIVATIONS: dict[str, Activation] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": gelu_tanh,
    "quick_gelu": quick_gelu,
    "relu": functional.relu,
    "squared_relu": squared_relu,
}


class WrittenOutRMSNorm(nn.Module):
    """RMSNorm in single operations, as transformers writes it; float[..., width]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.float32)
        variance = wide.pow(2).mean(-1, keepdim=True)
        return self.weight * (wide * torch.rsqrt(variance + 1e-6)).to(x.dtype)


class OffsetRMSNorm(nn.Module):
    """RMSNorm that multiplies by `1 + weight`, float[..., width]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x, self.weight.shape, eps=1e-6) * (1 + self.weight)


class DefaultRMSNorm(nn.Module):
    """RMSNorm whose epsilon is left to torch (the resolution of the data type), float[..., width]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x, self.weight.shape, self.weight)


class GroupedRMSNorm(nn.Module):
    """RMSNorm over groups of 16 channels with one weight for all groups, float[rows, width]."""

    def __init__(self, width: int, group: int = 16) -> None:
        super().__init__()
        self.groups = width // group
        self.norm = RMSNorm(group, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.view(x.shape[0], self.groups, -1)).reshape(x.shape)


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "rms": lambda width: RMSNorm(width, eps=1e-5),
    "rms_written_out": WrittenOutRMSNorm,
    "rms_offset": OffsetRMSNorm,
    "rms_default_epsilon": DefaultRMSNorm,
    "rms_grouped": GroupedRMSNorm,
    "layer": lambda width: nn.LayerNorm(width, eps=1e-5),
    "layer_without_bias": lambda width: nn.LayerNorm(width, eps=1e-5, bias=False),
}


class GatedMlp(nn.Module):
    """down(activation(gate(x)) * up(x)), float[rows, width] -> float[rows, width]."""

    def __init__(self, width: int, inner: int, activation: Activation = functional.silu, bias: bool = False) -> None:
        super().__init__()
        self.activation = activation
        self.gate_proj = nn.Linear(width, inner, bias)
        self.up_proj = nn.Linear(width, inner, bias)
        self.down_proj = nn.Linear(inner, width, bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.activation(self.gate_proj(x)) * self.up_proj(x))


class FusedGatedMlp(nn.Module):
    """A gated MLP whose gate and up are one matrix, float[rows, width] -> float[rows, width]."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate_up_proj = nn.Linear(width, 2 * inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return self.down_proj(functional.silu(gate) * up)


class PlainMlp(nn.Module):
    """Linear, activation, linear; float[rows, width] -> float[rows, width]."""

    def __init__(self, width: int, inner: int, activation: Activation) -> None:
        super().__init__()
        self.activation = activation
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))


class Lora(nn.Module):
    """A linear layer and a low-rank update of it, float[rows, n_in] -> float[rows, n_out]."""

    def __init__(self, n_in: int, n_out: int, rank: int = 8, scale: float = 2.0) -> None:
        super().__init__()
        self.base = nn.Linear(n_in, n_out, bias=False)
        self.lora_a = nn.Linear(n_in, rank, bias=False)
        self.lora_b = nn.Linear(rank, n_out, bias=False)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.scale * self.lora_b(self.lora_a(x))


def low_rank(n_in: int, n_out: int, rank: int) -> nn.Module:
    """A matrix of rank `rank` as the product of two."""
    return nn.Sequential(nn.Linear(n_in, rank, bias=False), nn.Linear(rank, n_out, bias=False))


class Experts(nn.Module):
    """A mixture of gated MLPs: each row goes through the `k` experts that its router likes best.

    float[rows, width] -> float[rows, width]. Every expert sees every row; its gate is 0 where it was not chosen.
    """

    def __init__(self, width: int, inner: int, n_experts: int = 4, k: int = 2) -> None:
        super().__init__()
        self.k = k
        self.router = nn.Linear(width, n_experts, bias=False)
        self.experts = nn.ModuleList(GatedMlp(width, inner) for _ in range(n_experts))

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = torch.softmax(self.router(x), dim=-1).topk(self.k, dim=-1)
        total = torch.zeros_like(x)
        for index, expert in enumerate(self.experts):
            gate = (weights * (chosen == index)).sum(-1, keepdim=True)
            total = total + gate * expert(x)
        return total
