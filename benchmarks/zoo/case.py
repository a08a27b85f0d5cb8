"""What a case of the zoo is, and how its weights and inputs are drawn.

Weights and inputs are random numbers of the magnitude that trained networks have. A module with weights of another
magnitude would say nothing about its error in integers: a softmax over tiny scores, for instance, is always flat.
"""

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

ROTARY_BASE = 10_000.0
SPREAD = 0.1
"""Standard deviation of biases, and of norm weights around the value that the module gives them."""
FACTORS = {"router": 4.0, "vocabulary_head": 4.0, "lora_b": 0.1}
"""Name of a linear layer -> factor on its weights: choices are clear, low-rank updates are small."""

Inputs = Callable[..., dict[str, Tensor]]
"""A function that draws example tensors by the names of `forward`'s parameters. Its keywords are the symbolic lengths,
all with a default: `inputs(seq=37)`."""


@dataclass(frozen=True)
class Case:
    """One module with all that a compiler needs to take it.

    make: builds the module, with the same weights each time. inputs: draws example tensors. dynamic: input -> axis ->
    name of its symbolic length, as in `{"x": {0: "seq"}}`. lengths: smallest and largest value of every such length.
    family: the file that it stands in. about: the mechanism, and published models that use it. router: whether integers
    may choose other rows or experts than floats do, because two scores lie close together. refused: why the compiler
    does not take it; empty where it does.
    """

    make: Callable[[], nn.Module]
    inputs: Inputs
    family: str
    about: str
    dynamic: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    lengths: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    router: bool = False
    refused: str = ""


def generator(name: str) -> torch.Generator:
    """Random numbers that depend on the name alone."""
    return torch.Generator().manual_seed(zlib.crc32(name.encode()))


def trained(module: nn.Module) -> nn.Module:
    """The same module in evaluation mode, its weights drawn at the magnitude of trained ones.

    Matrices and convolutions are normal with a standard deviation of 1 / sqrt(fan in), so that rows of unit variance
    stay near unit variance. Tables and learned queries are rows of unit variance. Every other weight stays near the
    value that its class gave it: 1 for a norm, 0 for a norm that multiplies by `1 + weight`.
    """
    random = generator("weights")
    for path, part in module.named_modules():
        for name, parameter in part.named_parameters(recurse=False):
            parameter.data = _drawn(part, path, name, parameter, random)
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            _draw_statistics(part, random)
    return module.eval().requires_grad_(False)


def _drawn(part: nn.Module, path: str, name: str, parameter: Tensor, random: torch.Generator) -> Tensor:
    noise = torch.randn(parameter.shape, generator=random)
    if name == "bias":
        return SPREAD * noise
    if isinstance(part, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
        factor = FACTORS.get(path.rpartition(".")[2], 1.0)
        return factor * noise / parameter[0].numel() ** 0.5
    if parameter.ndim == 2:
        return noise
    return parameter.data + SPREAD * noise


def _draw_statistics(norm: nn.BatchNorm1d | nn.BatchNorm2d, random: torch.Generator) -> None:
    """Means near 0 and variances near 1, as a batch norm has them behind a linear layer."""
    assert norm.running_mean is not None and norm.running_var is not None
    shape = norm.running_mean.shape
    norm.running_mean = SPREAD * torch.randn(shape, generator=random)
    norm.running_var = (1 + SPREAD * torch.randn(shape, generator=random)).square()


def rows(name: str, *shape: int) -> Tensor:
    """Activations of unit variance, float[shape]; the same for the same name."""
    return torch.randn(shape, generator=generator(name))


def past(name: str, heads: int, length: int, head_dim: int) -> Tensor:
    """Cached keys or values of 0.3 standard deviation, float[heads, length, head_dim]."""
    return 0.3 * rows(name, heads, length, head_dim)


def rotary_tables(positions: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the angles at `positions: int64[...]`, each float[..., width].

    Columns i and i + width / 2 are equal: the two channels of a pair turn by the same angle.
    """
    frequencies = ROTARY_BASE ** (-torch.arange(0, width, 2) / width)
    angles = positions[..., None].float() * frequencies
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def row_inputs(width: int, name: str = "x") -> Inputs:
    """Inputs of a module that takes one tensor float[seq, width] under this name."""

    def inputs(seq: int = 5) -> dict[str, Tensor]:
        return {name: rows(name, seq, width)}

    return inputs


def fixed_inputs(*shape: int, name: str = "x") -> Inputs:
    """Inputs of a module that takes one tensor float[shape] under this name, all of whose lengths are fixed."""
    return lambda: {name: rows(name, *shape)}
