"""Last step of the tuned recipe: the quantised model is trained end to end to say what the float model says.

Levels, every row's factor and every norm's gain inside the layers are trained so that the next-token distribution comes
close to the float model's on the calibration text (knowledge distillation, as in LLM-QAT, Liu et al. 2023). Levels move
by a straight-through estimator: a float value behind each, started from the weight it stands for, is trained and read
rounded. Group scales, precisions and the weights that are pruned stay. What enters a linear layer is rounded to INT8 by
the row, as the machine does, with the gradient passed through.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from hw.spec.config import BLOCK
from ref_model.checkpoints.base import Checkpoint
from ref_model.decoder import RMSNorm
from ref_model.modules import LlavaModel

from .format import BlockFormat
from .rounding import nearest_level

RATE = 1e-3
"""Of factors and gains."""
LEVEL_RATE = 7e-4
"""Of levels, in `UNIT`: so small that only weights whose gradients agree all along come to another level."""
LEVEL_STEPS = 4
"""Steps whose gradients move the levels together."""
TOKENS = 256
"""Tokens a step."""
LIMIT = 12288
"""Tokens that are used."""
EPOCHS = 2
"""Times that they are gone through."""
MOMENTA = 0.8, 0.95
"""Of the levels' Adam."""
UNIT = {8: 50.0, 4: 3.0, 3: 6.0, 2: 6.0}
"""What a rate of 1 is in levels: three distances between levels, at 8 bits a typical level."""
NEAR = 0.45
"""Farthest that a trained value starts from its level, of the distance between levels."""


@dataclass
class Tuned:
    """What training found, by canonical name. integers: int8[out, in] and factors: float32[out] of the linears; gains:
    float32[d] of the norms in the layers."""

    integers: dict[str, np.ndarray]
    factors: dict[str, np.ndarray]
    gains: dict[str, np.ndarray]


class Levels:
    """The levels of one linear in training: values float32[out, blocks, 16], Adam's moments, and the format.

    order: the checkpoint's row at each of the quantised matrix's; weight: float32[out, in], rows as in the checkpoint.
    """

    def __init__(
        self, integers: np.ndarray, c: np.ndarray, form: BlockFormat, weight: np.ndarray, order: np.ndarray
    ) -> None:
        self.order, weight = torch.from_numpy(order), weight[order]
        n_out, n_in = integers.shape
        shape = (n_out, n_in // BLOCK, BLOCK)
        bits = np.repeat(form.bits, BLOCK, axis=0)[:n_out, :, None]
        self.bits = torch.from_numpy(np.ascontiguousarray(bits))
        scales = np.where(bits[..., 0] == 8, 1, form.scales[:n_out]).astype(np.float32)
        self.scale = torch.from_numpy(scales)[..., None]
        self.c = torch.from_numpy(c.astype(np.float32))[:, None, None]
        self.present = sorted(set(form.bits.reshape(-1).tolist()))
        self.kept = None
        if (form.nonzeros < BLOCK).any():
            # A kept weight that was rounded to zero stays out as well: its place is free for none but itself.
            self.kept = torch.from_numpy((integers != 0).reshape(shape))
        safe = torch.where(self.scale == 0, torch.ones_like(self.scale), self.scale)
        level = torch.from_numpy(integers.astype(np.float32)).reshape(shape) / safe
        wanted = torch.from_numpy(np.ascontiguousarray(weight, np.float32)).reshape(shape) / (safe * self.c)
        spacing = torch.where(self.bits < 4, 2.0, 1.0)
        self.values = level + ((wanted - level) / spacing).clamp_(-NEAR, NEAR) * spacing
        unit = torch.zeros(self.bits.shape)
        for b in self.present:
            unit[self.bits == b] = UNIT[b]
        self.unit = unit
        self.mean, self.square = torch.zeros(shape), torch.zeros(shape)

    def integers(self) -> Tensor:
        """float32[out, in], level times scale."""
        if len(self.present) == 1:
            level = nearest_level(self.values, self.present[0])
        else:
            level = torch.zeros_like(self.values)
            for b in self.present:
                level = torch.where(self.bits == b, nearest_level(self.values, b), level)
        level = level * self.scale if self.kept is None else level * self.scale * self.kept
        return level.reshape(len(level), -1)

    def weight(self) -> Tensor:
        """float32[out, in] that the integers stand for, rows as in the checkpoint."""
        here = self.integers().mul_(self.c[:, 0])
        return torch.empty_like(here).index_copy_(0, self.order, here)

    def step(self, gradient: Tensor, rate: float, number: int) -> None:
        """One step of Adam on the gradient[out, in] by the weight."""
        g = gradient[self.order].reshape(self.values.shape) * (self.scale * self.c)
        self.mean.lerp_(g, 1 - MOMENTA[0])
        self.square.mul_(MOMENTA[1]).addcmul_(g, g, value=1 - MOMENTA[1])
        size = (self.square / (1 - MOMENTA[1] ** number)).sqrt_().add_(1e-20)
        self.values.sub_(size.reciprocal_().mul_(self.mean).mul_(self.unit * (rate / (1 - MOMENTA[0] ** number))))


def tune(
    checkpoint: Checkpoint,
    state: Mapping[str, Tensor],
    levels: Mapping[str, Levels],
    ids: Sequence[int],
    report: Callable[[int, float], None] | None = None,
    level_rate: float = LEVEL_RATE,
) -> Tuned:
    """Train on the token ids.

    state: float tensors of the layers, scaled, and of the head as the quantised one reads; levels: of the quantised
    linears of the layers; all by canonical name.
    """
    text = replace(checkpoint.config.text, tied_embeddings=False)
    config = replace(checkpoint.config, text=text, vision=None, image_token_index=None)
    teacher_state = {
        name: tensor
        for name, tensor in checkpoint.state(torch.float32).items()
        if name.startswith(("language_model", "lm_head"))
    }
    teacher = LlavaModel.from_state(config, teacher_state)
    student = LlavaModel.from_state(config, teacher_state | dict(state)).requires_grad_(False)
    modules = {name: module for name, module in student.named_modules() if name in levels}
    factors, gains = _free(student, levels)
    optimiser = torch.optim.Adam([*factors.values(), *gains.values()], lr=RATE)
    windows = torch.as_tensor(list(ids)[:LIMIT]).split(min(TOKENS, text.context)) * EPOCHS
    for name, module in modules.items():
        module.weight = nn.Parameter(levels[name].weight())
    with torch.enable_grad():
        for number, window in enumerate(windows):
            share = 1 - number / len(windows)
            optimiser.param_groups[0]["lr"] = RATE * share
            loss = _distance(student, teacher, window)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            if number % LEVEL_STEPS == LEVEL_STEPS - 1:
                _move(modules, levels, level_rate * share, number // LEVEL_STEPS + 1)
            if report is not None:
                report(number, float(loss.detach()))
    return Tuned(
        {name: value.integers().numpy().astype(np.int8) for name, value in levels.items()},
        {name: value.detach().numpy() for name, value in factors.items()},
        {name: value.detach().numpy() for name, value in gains.items()},
    )


def _move(modules: Mapping[str, nn.Module], levels: Mapping[str, Levels], rate: float, number: int) -> None:
    """One step of the levels along the gradients that their modules' weights have gathered."""
    with torch.no_grad():
        for name, module in modules.items():
            assert isinstance(module, nn.Linear) and module.weight.grad is not None
            levels[name].step(module.weight.grad, rate, number)
            module.weight.copy_(levels[name].weight())
            module.weight.grad = None


def _free(model: LlavaModel, levels: Mapping[str, Levels]) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
    """Trainable row factors behind the quantised linears, and the layers' gains."""
    factors: dict[str, nn.Parameter] = {}
    gains: dict[str, nn.Parameter] = {}

    def scaled(factor: nn.Parameter):
        def hook(module: nn.Linear, _args, output: Tensor) -> Tensor:
            if module.bias is None:
                return output * factor
            return (output - module.bias) * factor + module.bias

        return hook

    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(rounded_rows)
        if name in levels and isinstance(module, nn.Linear):
            factors[name] = nn.Parameter(torch.ones(module.out_features))
            module.register_forward_hook(scaled(factors[name]))
        elif isinstance(module, RMSNorm) and name.startswith("language_model.layers."):
            gains[name] = module.weight = nn.Parameter(module.weight.detach().clone())
    return factors, gains


def rounded_rows(_module: nn.Linear, args: tuple[Tensor]) -> Tensor:
    """Activations [tokens, in] as INT8 by the row reads; the gradient passes through."""
    with torch.no_grad():
        scale = args[0].abs().amax(-1, keepdim=True).clamp_min(1e-9) / 127
        error = (args[0] / scale).round() * scale - args[0]
    return args[0] + error


def _distance(student: LlavaModel, teacher: LlavaModel, window: Tensor) -> Tensor:
    """Mean Kullback-Leibler divergence of next-token distributions on a window of token ids."""
    with torch.no_grad():
        target = functional.log_softmax(teacher.prefill(window)[0].float(), -1)
    x = student.embed(window).requires_grad_()
    hidden, _ = student.language_model(x, torch.arange(len(window)), student.language_model.empty_cache())
    return functional.kl_div(
        functional.log_softmax(student.lm_head(hidden).float(), -1), target, log_target=True, reduction="batchmean"
    )
