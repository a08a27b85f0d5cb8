"""Rows and experts that are chosen: by scores, by an index of the host, by the largest value."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from compiler.graph import capture
from hw.spec.errors import UserError
from tests.compiler.graph.small import WIDTH, Of, functions, graph_of, linear, only, operators

FEW = {"seq": (4, 40)}


def best(scores):
    return scores.topk(3).indices.sort().values


ROWS = {
    "index": lambda m, x: x[best(x[:, 0])],
    "index_select": lambda m, x: x.index_select(0, torch.sort(torch.topk(x[:, 0], 3)[1])[0]),
    "gather": lambda m, x: x.gather(0, best(x[:, 0])[:, None].expand(-1, WIDTH)),
    "behind the first": lambda m, x: torch.cat((x[:1], x[1:][best(x[1:, 0])])),
    "in a batch of one": lambda m, x: x[None].gather(1, best(x[None, :, 0])[..., None].expand(-1, -1, WIDTH)),
}


@pytest.mark.parametrize("form", ROWS)
def test_rows_with_the_largest_scores(form):
    graph = graph_of(ROWS[form], lengths=FEW)
    node = only(graph, "select_rows")
    assert node.arguments["k"] == 3 and len(graph.nodes[node.operand("scores") or ""].shape) == 1
    assert {"gather", "topk"}.isdisjoint(operators(graph))


def test_rows_with_the_smallest_scores():
    graph = graph_of(lambda m, x: x[torch.topk(x[:, 0], 3, largest=False).indices.sort().values], lengths=FEW)
    assert operators(graph) == ["scale", "select_rows"]


GATHERED = {
    "rows": (lambda m, x: x[m.index], 0),
    "columns": (lambda m, x: x[:, m.index], 1),
    "from the end": (lambda m, x: x[-m.index - 1], 0),
    "an index of two axes": (lambda m, x: x[m.index.view(3, 1)], 0),
    "index_select": (lambda m, x: x.index_select(-1, m.index), 1),
    "equal columns": (lambda m, x: x.gather(0, m.index[:, None].repeat(1, WIDTH)), 0),
}


@pytest.mark.parametrize("form", GATHERED)
def test_rows_by_an_index(form):
    function, axis = GATHERED[form]
    graph = graph_of(function, lengths=FEW, index=torch.tensor([2, 0, 3]))
    assert operators(graph) == ["gather"] and only(graph, "gather").arguments["axis"] == axis


class _Listed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.out = nn.Embedding(50, WIDTH), linear()

    def forward(self, x, kept, words):
        return self.out(x)[kept] + self.table(words)


def test_an_index_and_words_are_the_hosts():
    inputs = {"x": torch.randn(9, WIDTH), "kept": torch.tensor([1, 0, 3]), "words": torch.tensor([4, 4, 9])}
    dynamic = {"x": {0: "n"}, "kept": {0: "k"}, "words": {0: "k"}}
    graph = capture(_Listed(), inputs, dynamic, {"n": (9, 40), "k": (1, 9)})
    assert operators(graph) == ["linear", "gather", "lookup", "add"]
    assert [graph.nodes[name].kind for name in inputs] == ["device", "host", "host"]


@pytest.mark.parametrize("options", [{"dim": -1}, {"dim": 1, "keepdim": True}])
def test_the_place_of_the_largest_value(options):
    assert operators(graph_of(lambda m, x: x.argmax(**options))) == ["argmax"]


# --- experts --------------------------------------------------------------------------------------------


def dense(w, i, e):
    return (w * (i == e)).sum(-1, keepdim=True)


def by_where(w, i, e):
    return torch.where(i == e, w, 0.0).sum(-1, keepdim=True)


def by_one_hot(w, i, e):
    return (w.unsqueeze(-1) * functional.one_hot(i, 4)).sum(-2)[:, e : e + 1]


def by_scatter(w, i, e):
    return torch.zeros(w.shape[0], 4).scatter(-1, i, w)[:, e : e + 1]


def mixture(m, x, gate, change=lambda w: w, late=False):
    logits = m.router(x)
    w, i = (logits if late else torch.softmax(logits, -1)).topk(2, -1)
    w = change(w)
    return sum(gate(w, i, e) * m.expert(x * (e + 1)) for e in range(4))


def experts() -> dict[str, nn.Module]:
    return {"router": linear(WIDTH, 4), "expert": linear()}


@pytest.mark.parametrize("gate", [dense, by_where, by_one_hot, by_scatter])
def test_probabilities_of_the_likeliest_experts(gate):
    graph = graph_of(lambda m, x: mixture(m, x, gate), **experts())
    assert operators(graph).count("route") == 1 and only(graph, "route").arguments["k"] == 2


@pytest.mark.parametrize(
    ("change", "late"),
    [(lambda w: w / w.sum(-1, keepdim=True), False), (lambda w: torch.softmax(w, -1), True)],
)
def test_shares_of_two_experts(change, late):
    """exp(a) / (exp(a) + exp(b)) is a sigmoid of their difference."""
    graph = graph_of(lambda m, x: mixture(m, x, dense, change, late), **experts())
    assert operators(graph).count("route") == 2 and functions(graph) == ["sigmoid"]


REFUSED = {
    "the order of scores": lambda m, x: x[torch.topk(x[:, 0], 3).indices],
    "the other order": lambda m, x: x[torch.topk(x[:, 0], 3).indices.sort(descending=True).values],
    "shares of three": lambda m, x: dense(*(lambda w, i: (w / w.sum(-1, keepdim=True), i))(*x.topk(3, -1)), 1),
    "the least likely": lambda m, x: dense(*x.topk(2, -1, largest=False), 1),
}


@pytest.mark.parametrize("case", REFUSED)
def test_other_choices_are_refused(case):
    with pytest.raises(
        UserError, match=r"operator topk with result .*, small.py:\d+ has no rule: accepted is x\[scores"
    ):
        graph_of(REFUSED[case], lengths=FEW)


def test_rows_by_values_are_refused():
    with pytest.raises(UserError, match="its shape or a number in it depends on values of activations"):
        capture(Of(lambda m, x: x[x[:, 0] > 0]), {"x": torch.randn(5, WIDTH)})
