"""Sampled decoding on the host: tokens drawn from the machine's logits. Greedy decoding is the machine's own choice."""

from dataclasses import dataclass

import numpy as np

from hw.spec.errors import UserError
from hw.spec.numerics import FRAC


@dataclass(frozen=True)
class Sampler:
    """Draws from softmax(logits / temperature); equal seeds and logits give equal tokens."""

    temperature: float
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.temperature < float("inf"):
            raise UserError(f"temperature {self.temperature} must be above 0: leave it out for greedy decoding")

    def draw(self, logits: np.ndarray, step: int, never: int | None = None) -> int:
        """Token of the step-th draw from Q16 logits; `never` is left out."""
        scaled = logits / ((1 << FRAC) * self.temperature)
        if never is not None and never < len(scaled):
            scaled[never] = -np.inf
        ends = np.exp(scaled - scaled.max()).cumsum()
        drawn = np.random.default_rng((self.seed, step)).random() * ends[-1]
        return int(np.searchsorted(ends, drawn, side="right"))


__all__ = ["Sampler"]
