"""The check of the integer level: a rule that makes another operator's integers is caught."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import alula
from compiler.integer import plan
from compiler.integer.rules import elementwise
from compiler.integer.steps import Layout
from hw.spec import numerics as nm
from hw.spec.errors import InternalError, UserError


class Rotated(nn.Module):
    """Normalised and rotated queries over inputs' keys and values, as in Qwen3."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.norm = nn.Linear(32, 32), nn.RMSNorm(16, 1e-6)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q = self.norm(self.q(x).view(-1, 2, 16)).transpose(0, 1)
        low, high = q.chunk(2, -1)
        q = q * cos + torch.cat((-high, low), -1) * sin
        heads = functional.scaled_dot_product_attention(q, k, v)
        return functional.silu(heads.transpose(0, 1).reshape(-1, 32))


def rotated() -> "alula.Program":
    torch.manual_seed(0)
    angles = torch.rand(9, 8) * 3
    table = torch.cat((angles, angles), -1)
    inputs = {"x": torch.randn(9, 32), "cos": table.cos(), "sin": table.sin()}
    return alula.compile(Rotated(), inputs | {name: torch.randn(2, 21, 16) for name in "kv"})


def test_own_errors_are_rounding():
    result = rotated().verify("functional")
    own = {error["operator"]: error["own"] for error in result["operators"]}
    assert {"linear", "norm", "rope", "attention", "activation"} <= set(own) and max(own.values()) < 0.03


def test_another_function_is_caught(monkeypatch):
    monkeypatch.setitem(elementwise.FUNCTIONS, "silu", elementwise.FUNCTIONS["gelu"])
    with pytest.raises(InternalError, match="the integers of activation silu differ by"):
        rotated()


def test_a_forgotten_scale_is_caught(monkeypatch):
    monkeypatch.setattr(plan, "QUERY_FACTOR", plan.QUERY_FACTOR * nm.LOG2_E)
    with pytest.raises(InternalError, match="the integers of attention"):
        rotated()


def test_channels_in_another_order_are_refused(monkeypatch):
    """Pairs that a rotation turns must lie side by side: nothing else than the plan sees to it."""

    def groups_only(self, node) -> None:
        self._arrange(node.arguments["x"].name, Layout(2, 16))

    monkeypatch.setattr(plan._Planner, "arrange_rope", groups_only)
    with pytest.raises(UserError, match="the channels of its operand lie in another order"):
        rotated()


def test_choices_that_are_not_torchs_are_counted():
    """Scores that differ by less than their rounding: some row's largest one is another in integers."""
    torch.manual_seed(0)

    class Close(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(32, 64, bias=False)
            with torch.no_grad():
                self.head.weight[1:] = self.head.weight[0] + torch.randn(63, 32) * 1e-4

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x).argmax(-1)

    (choice,) = alula.compile(Close(), {"x": torch.randn(20, 32)}).verify("functional")["choices"]
    assert choice["choices"] == 20 and 0 < choice["changed"] <= 20 and choice["operator"] == "argmax"


def test_a_choice_between_clear_scores_is_torchs():
    torch.manual_seed(0)

    class Kept(nn.Module):
        def forward(self, x: Tensor, scores: Tensor) -> Tensor:
            return x[torch.topk(scores[:, 0], 3).indices.sort().values]

    inputs = {"x": torch.randn(9, 32), "scores": torch.arange(9.0)[:, None]}
    (choice,) = alula.compile(Kept(), inputs).verify("functional")["choices"]
    assert (choice["choices"], choice["changed"]) == (3, 0)
