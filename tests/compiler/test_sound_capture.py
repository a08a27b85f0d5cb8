"""The graph is the module: every input is itself, and a fault in capture or in any pass is found where it is."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional

from compiler import capture, ir, pipeline
from compiler.capture import SEQ, Part, capture_module, capture_parts, parts
from compiler.ir import Ref
from compiler.passes import PASSES
from compiler.passes.pattern import constant, find, op, value
from compiler.pipeline import compile_model, optimise
from hw.spec import config
from hw.spec.errors import InternalError, UserError
from ref_model.config import named_config

MODEL = named_config("llava-tiny")


def graphs(*names: str) -> dict[str, ir.Graph]:
    return capture_parts({name: parts(MODEL)[name] for name in names})


# --- inputs ----------------------------------------------------------------------------------------------


def test_every_input_of_the_shipped_layer_is_itself():
    """Equal example tensors are one input to torch.export: the layer then multiplies by sin twice."""
    nodes = graphs("layer")["layer"].nodes.values()
    products = [node.inputs[1] for node in nodes if node.op == "mul" and node.inputs[1] in ("cos", "sin")]
    assert products == ["cos", "sin"] * 2
    assert [node.inputs[0] for node in nodes if node.op == "cat" and "past" in node.inputs[0]] == ["past_k", "past_v"]


class _Sum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x, cos, sin):
        return self.fc(x) * cos


def test_an_input_without_effect_is_refused():
    with pytest.raises(UserError, match="module block: input sin has no effect"):
        capture_module("block", _Sum(), {"x": (SEQ, 8), "cos": (SEQ, 8), "sin": (SEQ, 8)})


class _Tables(nn.Module):
    """Names of its own for what it is called with."""

    def forward(self, rows, sin, cos):
        return rows * sin + rows * cos


def test_inputs_are_called_by_what_they_are_for():
    graph = capture_module("block", _Tables(), {"x": (SEQ, 8), "cos": (SEQ, 8), "sin": (SEQ, 8)})
    assert [node.inputs for node in graph.nodes.values() if node.op == "mul"] == [("x", "cos"), ("x", "sin")]


class _Constant(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.factor = torch.tensor([1.0, 2.0])

    def forward(self, x):
        return x * self.factor


class _Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(8))

    def forward(self, x):
        self.count.add_(1)
        return x + self.count


@pytest.mark.parametrize(
    "module, width, why",
    [(_Constant(), 2, "neither parameter nor buffer"), (_Counter(), 8, "changes a buffer|operator add_")],
)
def test_hidden_state_is_refused(module, width, why):
    with pytest.raises(UserError, match=why):
        capture_module("block", module, {"x": (SEQ, width)})


def test_a_part_that_the_model_does_not_have_is_refused():
    replaced = {"projector": parts(MODEL)["projector"]}
    with pytest.raises(UserError, match="has no part 'projector'"):
        compile_model(named_config("smollm2-135m"), config.get("small"), replaced=replaced)


class _FailsAtOne(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(48, 64), nn.Linear(64, 64)

    def forward(self, x):
        if not torch.compiler.is_compiling() and x.shape[0] == 1:
            raise ValueError("one row is too few")
        return self.linear_2(functional.gelu(self.linear_1(x)))


def test_a_module_that_does_not_run_at_every_length_is_refused():
    with pytest.raises(UserError, match=r"module projector: it fails at seq 1, cache 0 \(ValueError: one row"):
        compile_model(MODEL, config.get("tiny"), replaced={"projector": Part(_FailsAtOne(), {"x": (SEQ, 48)})})


# --- faults that are planted -----------------------------------------------------------------------------


def exchanged(first: str, second: str):
    """Two operands of a node in each other's place."""

    def change(node: ir.Node) -> None:
        node.arguments |= {first: node.arguments[second], second: node.arguments[first]}

    return change


def fused(**changes):
    """Other attributes of a fused operator; values are functions of the old operator."""

    def change(node: ir.Node) -> None:
        node.fused = replace(node.fused, **{name: of(node.fused) for name, of in changes.items()})

    return change


def operand(name: str, other: str):
    def change(node: ir.Node) -> None:
        node.arguments[name] = Ref(other)

    return change


FAULTS = {
    "a transposed reshape": ("layer", "normalise", "transpose", lambda node: node.arguments.update(dim0=0, dim1=0)),
    "a norm's epsilon": ("layer", "fuse_norms", "norm", fused(epsilon=lambda op: 1.01 * op.epsilon)),
    "a norm's kind": ("vision_layer", "fuse_norms", "norm", fused(kind=lambda op: "rms")),
    "a norm's parameters": ("layer", "fuse_norms", "norm", fused(name=lambda op: "post_attention_layernorm")),
    "a bias that is lost": ("vision_layer", "fuse_linears", "linear_op", fused(bias=lambda op: False)),
    "a linear layer for another": (
        "vision_layer",
        "fuse_linears",
        "linear_op",
        fused(name=lambda op: "self_attn.k_proj"),
    ),
    "cos for sin": ("layer", "fuse_rope", "rope", exchanged("cos", "sin")),
    "a rotation that is lost": ("layer", "fuse_caches", "cached", fused(rope=lambda op: False)),
    "a cache for another": ("layer", "fuse_caches", "cached", operand("past", "past_v")),
    "queries for keys": ("vision_layer", "fuse_attention", "attention", fused(q=lambda op: op.k, k=lambda op: op.q)),
    "keys for values": ("layer", "fuse_attention", "attention", fused(k=lambda op: op.v, v=lambda op: op.k)),
    "a mask that is lost": ("layer", "fuse_attention", "attention", fused(causal=lambda op: False)),
    "heads of another width": (
        "vision_layer",
        "fuse_attention",
        "attention",
        fused(heads=lambda op: 1, kv_heads=lambda op: 1, head_dim=lambda op: 48),
    ),
    "gate for up": ("layer", "fuse_mlp", "mlp", fused(gate=lambda op: op.up, up=lambda op: op.gate)),
    "another gelu": ("vision_layer", "fuse_mlp", "mlp", fused(func=lambda op: "gelu")),
    "the class token's position": ("stem", "fuse_tokens", "tokens", operand("x", "patches")),
    "a residual of other rows": ("layer", "fuse_residual", "residual", operand("stream", "rms_norm")),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_a_pass_is_found_behind_it(name, monkeypatch):
    part, after, kind, change = FAULTS[name]

    def spoil(graph: ir.Graph) -> None:
        change(next(node for node in graph.nodes.values() if node.op == kind))

    at = next(index for index, rewrite in enumerate(PASSES) if rewrite.__name__ == after)
    monkeypatch.setattr(pipeline, "PASSES", (*PASSES[: at + 1], spoil, *PASSES[at + 1 :]))
    with pytest.raises(InternalError, match=f"after pass spoil: {kind} "):
        optimise(graphs(part))


def test_results_in_another_order_are_found(monkeypatch):
    def spoil(graph: ir.Graph) -> None:
        graph.outputs = graph.outputs[::-1]

    monkeypatch.setattr(pipeline, "PASSES", (spoil, *PASSES))
    with pytest.raises(InternalError, match="after pass spoil: layer has the results"):
        optimise(graphs("layer"))


def test_a_list_in_another_order_is_found(monkeypatch):
    """Widths agree: two norms and two linear layers in each other's place."""

    def spoil(graph: ir.Graph) -> None:
        first, attention, out, second, *rest = graph.fused
        graph.fused = [second, attention, out, first, *rest]

    monkeypatch.setattr(pipeline, "PASSES", (*PASSES, spoil))
    with pytest.raises(InternalError, match="the list of operators of layer is off by"):
        optimise(graphs("layer"))


@pytest.mark.parametrize(
    "kind, change",
    [
        ("scaled_dot_product_attention", lambda a: a | {"query": a["key"], "key": a["query"]}),
        ("cat", lambda a: a | {"tensors": a["tensors"][::-1]}),
        ("tril", lambda a: {"self": a["self"]}),
        ("rms_norm", lambda a: a | {"eps": 1e-6}),
        ("chunk", lambda a: a | {"dim": 0}),
        ("getitem", lambda a: a | {"index": 1 - a["index"]}),
    ],
)
def test_a_fault_of_capture_is_found(kind, change, monkeypatch):
    """An operand, an axis or a constant that capture gets wrong: the graph is not the module."""
    honest = capture._Reader.operator

    def wrong(self, node):
        made = honest(self, node)
        if made.op == kind:
            made.arguments = change(made.arguments)
        return made

    monkeypatch.setattr(capture._Reader, "operator", wrong)
    with pytest.raises(InternalError, match=r"the captured \w+ of layer (is off by|cannot be computed)"):
        optimise(graphs("layer"))


# --- patterns --------------------------------------------------------------------------------------------


class _Halves(nn.Module):
    def forward(self, x):
        return torch.add(x, torch.neg(x), alpha=0.5)


def found(pattern) -> tuple:
    graph = capture_module("block", _Halves(), {"x": (SEQ, 8)})
    node = next(node for node in graph.nodes.values() if node.op == "add")
    return find(graph, node, pattern), node


def test_an_argument_that_a_pattern_does_not_name_has_to_be_absent():
    match, node = found(op("add", self=value("a"), other=value("b")))
    assert match is None
    assert node.reason == "alpha of add is 0.5"


def test_a_pattern_that_names_every_argument_matches():
    match, _ = found(op("add", self=value("a"), other=op("neg", self=value("a")), alpha=constant("factor")))
    assert match is not None and match["factor"] == 0.5


def test_operands_of_a_sum_match_in_either_order():
    match, _ = found(op("add", self=op("neg", self=value("a")), other=value("a"), alpha=0.5))
    assert match is not None


def test_a_name_stands_for_one_tensor():
    match, _ = found(op("add", self=value("a"), other=value("a"), alpha=0.5))
    assert match is None


def test_a_layer_on_real_weights_compiles():
    """Modules need not be on the meta device, and nothing is done to their weights."""
    part = parts(MODEL)["projector"]
    module = type(part.module)(48, 64)
    before = [weight.clone() for weight in module.parameters()]
    assert compile_model(MODEL, config.get("tiny"), replaced={"projector": Part(module, part.inputs)}).program.words
    assert all(map(torch.equal, before, module.parameters()))
