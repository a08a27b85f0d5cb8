"""Tokens: modules that keep, drop or merge rows, and those whose rows depend on each other in other ways."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from .case import Case, Inputs, fixed_inputs, row_inputs, trained

WIDTH = 48
KEPT = 3
"""Rows that the learned selection keeps."""


class LearnedSelection(nn.Module):
    """Keeps the three rows with the largest scores, in their old order; float[seq, 48] -> float[3, 48]."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.router(x)[:, 0]
        return x[torch.topk(scores, KEPT).indices.sort().values]


class ListedSelection(nn.Module):
    """Keeps the rows of a list that is known before the run, float[16, 48] -> float[4, 48]."""

    kept: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kept", torch.tensor([0, 3, 5, 12]))

    def forward(self, x: Tensor) -> Tensor:
        return x.index_select(0, self.kept)


class MergedPairs(nn.Module):
    """Every two neighbours become their mean, float[16, 48] -> float[8, 48]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.view(-1, 2, WIDTH).mean(1)


class ExitNetwork(nn.Module):
    """Two scores of a whole prompt from the mean of its rows, float[seq, 48] -> float[1, 2]."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(WIDTH, 16), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(functional.relu(self.fc1(x.mean(0, keepdim=True))))


class SelectiveScan(nn.Module):
    """A state that every row decays and writes to, float[4, 48] -> float[4, 48]."""

    def __init__(self, n_states: int = 8) -> None:
        super().__init__()
        self.log_decay = nn.Parameter(torch.zeros(WIDTH, n_states))
        self.projection = nn.Linear(WIDTH, 2 * n_states + 1, bias=False)
        self.n_states = n_states

    def forward(self, x: Tensor) -> Tensor:
        step, write, read = self.projection(x).split((1, self.n_states, self.n_states), dim=-1)
        step = functional.softplus(step)
        state, out = x.new_zeros(WIDTH, self.n_states), []
        for row in range(x.shape[0]):
            decay = torch.exp(-step[row] * torch.exp(self.log_decay))
            state = decay * state + step[row] * write[row] * x[row][:, None]
            out.append((state * read[row]).sum(-1))
        return torch.stack(out)


class LastToken(nn.Module):
    """Scores of the last row over a vocabulary, float[n, 48] -> float[1, 96]."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.inner = nn.RMSNorm(WIDTH, eps=1e-6), nn.Linear(WIDTH, WIDTH)
        self.vocabulary_head = nn.Linear(WIDTH, 2 * WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.vocabulary_head(self.norm(x + self.inner(x))[-1:])


class Differences(nn.Module):
    """What every row adds to the one before it, float[n, 48] -> float[n - 1, 48]."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.behind = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        h = self.before(x)
        return self.behind(h[1:] - h[:-1])


def case(module: Callable[[], nn.Module], about: str, inputs: Inputs | None = None, **options) -> Case:
    """A case of this family; without `lengths` among the options the number of rows is fixed."""
    dynamic = {"x": {0: "seq"}} if "lengths" in options else {}
    inputs = inputs or row_inputs(WIDTH)
    return Case(lambda: trained(module()), inputs, "tokens", about, dynamic, **options)


CASES = {
    "learned-selection": case(
        LearnedSelection,
        "The rows with the largest scores go on, as in FasterVLM and FastV.",
        lengths={"seq": (KEPT, 64)},
        router=True,
    ),
    "listed-selection": case(
        ListedSelection, "The rows of a list go on, as in TS-LLaVA's sampled tokens.", fixed_inputs(16, WIDTH)
    ),
    "merged-pairs": case(
        MergedPairs, "Neighbours become their mean, the simplest token merging (ToMe).", fixed_inputs(16, WIDTH)
    ),
    "exit-network": case(ExitNetwork, "A small network decides where to stop, as in DyVTE.", lengths={"seq": (1, 64)}),
    "last-token": case(LastToken, "Only the last row goes to the head, as in every decoder.", lengths={"seq": (1, 64)}),
    "row-differences": case(
        Differences, "Each frame less the one before it, as in video token reducers.", lengths={"seq": (2, 64)}
    ),
    "mamba": case(
        SelectiveScan,
        "A selective scan over rows, as in Mamba and Meteor.",
        fixed_inputs(4, WIDTH),
        refused="the machine has neither softplus nor a product of two rows that changes a state",
    ),
}
