"""The check behind every rewrite sees what is easily missed: weights of 1, small epsilons, NaN, wrong shapes."""

import pytest
import torch
from torch import Tensor, nn

from compiler.graph import capture
from compiler.graph.check import MANY, _compare, _Products
from compiler.graph.ir import Length, Ref
from hw.spec.errors import InternalError, UserError
from tests.compiler.graph.small import LENGTHS, SEQ, WIDTH, Of, finished, linear, only


def test_a_lost_weight_of_one_shows():
    """A norm that was just built multiplies by 1 and adds 0."""
    checker, editor = finished(Of(lambda m, x: m.inner(x), inner=nn.LayerNorm(WIDTH)))
    node = only(editor.graph, "norm")
    for name in ("weight", "bias"):
        kept = dict(node.arguments)
        del node.arguments[name]
        with pytest.raises(InternalError, match="after a planted fault: result"):
            checker.check("a planted fault")
        node.arguments = kept


@pytest.mark.parametrize("epsilon", [1.01e-5, 0.99e-5])
def test_an_epsilon_off_by_a_hundredth_shows(epsilon):
    checker, editor = finished(Of(lambda m, x: m.inner(x), inner=nn.RMSNorm(WIDTH, 1e-5)))
    only(editor.graph, "norm").arguments["epsilon"] = epsilon
    with pytest.raises(InternalError, match="after a planted fault: result"):
        checker.check("a planted fault")


def test_a_number_off_by_a_millionth_shows():
    checker, editor = finished(Of(lambda m, x: m.inner(x) * 0.3, inner=linear()))
    only(editor.graph, "scale").arguments["factor"] *= 1 + 1e-6
    with pytest.raises(InternalError, match="after a planted fault: result"):
        checker.check("a planted fault")


def test_a_wrong_shape_shows():
    checker, editor = finished(Of(lambda m, x: m.inner(x)[:, :8] * 2, inner=linear()))
    node = only(editor.graph, "linear")
    node.shape = (Length("seq + 1"), node.shape[-1])
    with pytest.raises(InternalError, match=r"after a planted fault: the shape of linear .* is \[2, 8\]"):
        checker.check("a planted fault")


def test_operands_that_do_not_fit_show():
    checker, editor = finished(Of(lambda m, x: m.inner(x), inner=linear(WIDTH, 8)))
    only(editor.graph, "linear").arguments["x"] = Ref(only(editor.graph, "linear").arguments["bias"].name)
    with pytest.raises(InternalError, match="after a planted fault: the graph cannot be run"):
        checker.check("a planted fault")


def test_what_is_no_number_is_equal_to_nothing_else():
    one, none = torch.ones(2, 2), torch.tensor([[1.0, torch.nan], [1.0, 1.0]])
    for got, want in ((none, one), (one, none), (one * torch.inf, one), (one, one * torch.inf)):
        with pytest.raises(InternalError, match=r"differs .* by inf"):
            _compare(got, want, "result y")
    _compare(none, none, "result y")
    _compare(-one * torch.inf, -one * torch.inf, "result y")
    with pytest.raises(InternalError, match="is of"):
        _compare(one, one.bool(), "result y")


def test_rewrites_that_change_nothing_cost_nothing(monkeypatch):
    checker, _ = finished(Of(lambda m, x: m.inner(x), inner=linear()))
    monkeypatch.setattr("compiler.graph.check.node_value", lambda *arguments: pytest.fail("the graph was run again"))
    checker.check("nothing")


def _large():
    """A finished module of so many weights that each of its products is computed once."""
    wide = MANY // WIDTH // 2
    parts = {"up": linear(WIDTH, wide), "gate": linear(WIDTH, wide), "down": linear(wide, WIDTH)}
    return finished(Of(lambda m, x: m.down(m.up(x * 0.3) * m.gate(x)), **parts))


def test_a_large_module_is_multiplied_once():
    checker, _ = _large()
    assert isinstance(checker.products, _Products) and len(checker.products.known) == 3 * len(checker.cases)


def _another_scale(graph):
    only(graph, "scale").arguments["factor"] *= 1 + 1e-6


def _no_bias(graph):
    del _linears(graph)[0].arguments["bias"]


def _weights_of_each_other(graph):
    up, gate, _ = _linears(graph)
    up.arguments["weight"], gate.arguments["weight"] = gate.arguments["weight"], up.arguments["weight"]


def _linears(graph):
    return [node for node in graph.nodes.values() if node.op == "linear"]


@pytest.mark.parametrize("fault", [_another_scale, _no_bias, _weights_of_each_other])
def test_faults_in_a_large_module_show(fault):
    checker, editor = _large()
    fault(editor.graph)
    with pytest.raises(InternalError, match="after a planted fault: result"):
        checker.check("a planted fault")


def test_products_are_computed_again_where_an_operand_has_changed():
    weight, bias, x = (torch.randn(shape, dtype=torch.float64) for shape in ((8, 4), (8,), (3, 4)))
    products = _Products({"weight": weight})
    for count, change in enumerate((lambda: x, lambda: x.add_(1), lambda: weight.mul_(2), lambda: bias.neg_()), 1):
        change()
        for _ in range(2):
            with torch.no_grad(), products:
                found = nn.functional.linear(x, weight, bias)
            assert torch.equal(found, torch.addmm(bias, x, weight.T)) and len(products.known) == count


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: x + torch.randn(WIDTH),
        lambda m, x: torch.nn.functional.dropout(x, 0.5, training=True),
    ],
)
def test_random_modules_are_refused(function):
    with pytest.raises(UserError, match="module Of: it gives other results for the same inputs: leave out what is ran"):
        capture(Of(function), {"x": torch.randn(5, WIDTH)})


class _Narrow(nn.Module):
    """Computes in float32 whatever it is given, as transformers' norms do, and with constants of its own text."""

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float() * torch.tensor([0.1] * WIDTH) * 0.7 + torch.full((WIDTH,), 0.3)
        return wide.to(torch.float32).half().type(x.dtype) + torch.arange(WIDTH).to(torch.float32) / 7


def test_casts_of_the_module_do_not_blur_the_check():
    capture(_Narrow(), {"x": torch.randn(5, WIDTH)})


def test_a_module_that_fails_at_a_length_is_refused():
    with pytest.raises(UserError, match=r"module Of: (it fails at|torch.export refuses it)"):
        capture(Of(lambda m, x: x[:, :4] @ x.view(-1, 4, WIDTH)[0]), {"x": torch.randn(8, WIDTH)}, SEQ, LENGTHS)
