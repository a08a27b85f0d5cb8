"""A part of LLaVA becomes the operators that its kernels compute, and a list that differs from the module is found."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional

from compiler import ir, pipeline
from compiler.parts import SEQ, Part, parts
from compiler.pipeline import compile_model, read_part
from hw.spec import config
from hw.spec.errors import InternalError, UserError
from ref_model.config import named_config

MODEL = named_config("llava-tiny")


def operators(name: str) -> list[ir.Fused]:
    return read_part(name, parts(MODEL)[name])[1]


def compiled(name: str, part: Part):
    return compile_model(MODEL, config.get("tiny"), replaced={name: part})


# --- what is recognised ----------------------------------------------------------------------------------


def test_a_decoder_layer_is_six_operators():
    ops = operators("layer")
    assert [type(op) for op in ops] == [ir.Norm, ir.Attention, ir.Residual, ir.Norm, ir.GatedMlp, ir.Residual]
    attention = ops[1]
    assert (attention.heads, attention.kv_heads, attention.head_dim) == (4, 2, 16)
    assert attention.rope and attention.causal
    assert [op.n_out for op in ir.linears(ops)] == [32, 32, 64, 64, 176, 176, 64]


def test_a_vision_layer_is_six_operators():
    ops = operators("vision_layer")
    assert [type(op) for op in ops] == [ir.Norm, ir.Attention, ir.Residual, ir.Norm, ir.PlainMlp, ir.Residual]
    assert not ops[1].rope and not ops[1].causal
    assert ops[1].q.bias and ops[4].func == "quick_gelu" and ops[0].kind == "layer"


def test_a_stem_is_patches_tokens_and_a_norm():
    patch, tokens, norm = operators("stem")
    assert patch == ir.Linear("patch_embedding", 588, 48)
    assert tokens == ir.Tokens("class_embedding", "position_embedding.weight")
    assert norm.name == "pre_layrnorm"


class _Scaled(nn.Module):
    """Names of its own for what it is called with, and an input that does nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, rows, sin, cos):
        return self.fc(rows) * sin


SHAPES = {"x": (SEQ, 8), "cos": (SEQ, 8), "sin": (SEQ, 8)}


def test_an_input_without_effect_is_refused():
    with pytest.raises(UserError, match="module layer: input cos has no effect"):
        read_part("layer", Part(_Scaled(), SHAPES))


def test_inputs_that_are_not_named_are_refused():
    with pytest.raises(UserError, match="module layer: `forward` takes 3 tensors, 1 inputs were named"):
        read_part("layer", Part(_Scaled(), {"x": (SEQ, 8)}))


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
    with pytest.raises(UserError, match=r"module _FailsAtOne: it fails at \{'seq': 1\} \(ValueError: one row"):
        compiled("projector", Part(_FailsAtOne(), {"x": (SEQ, 48)}))


def test_a_layer_on_real_weights_compiles():
    """Modules need not be on the meta device, and nothing is done to their weights."""
    part = parts(MODEL)["projector"]
    module = type(part.module)(48, 64)
    before = [weight.clone() for weight in module.parameters()]
    assert compiled("projector", Part(module, part.inputs)).program.words
    assert all(map(torch.equal, before, module.parameters()))


# --- faults that are planted -----------------------------------------------------------------------------


def changed(at: int, **changes):
    """The operator at that place with other attributes; values are functions of it."""

    def change(ops: list[ir.Fused]) -> list[ir.Fused]:
        op = replace(ops[at], **{name: of(ops[at]) for name, of in changes.items()})
        return [*ops[:at], op, *ops[at + 1 :]]

    return change


def exchanged(first: int, second: int):
    def change(ops: list[ir.Fused]) -> list[ir.Fused]:
        order = list(range(len(ops)))
        order[first], order[second] = second, first
        return [ops[at] for at in order]

    return change


FAULTS = {
    "a norm's epsilon": ("layer", changed(0, epsilon=lambda op: 1.01 * op.epsilon)),
    "a norm's kind": ("vision_layer", changed(0, kind=lambda op: "rms")),
    "a norm's parameters": ("layer", changed(0, name=lambda op: "post_attention_layernorm")),
    "a bias that is lost": ("vision_layer", changed(1, v=lambda op: replace(op.v, bias=False))),
    "a bias of the mlp that is lost": ("vision_layer", changed(4, fc=lambda op: replace(op.fc, bias=False))),
    "a rotation that is lost": ("layer", changed(1, rope=lambda op: False)),
    "queries of another layer": ("layer", changed(1, q=lambda op: replace(op.q, name="self_attn.o_proj"))),
    "keys for values": ("layer", changed(1, k=lambda op: op.v, v=lambda op: op.k)),
    "a mask that is lost": ("layer", changed(1, causal=lambda op: False)),
    "heads of another width": ("vision_layer", changed(1, heads=lambda op: 1, head_dim=lambda op: 48)),
    "gate for up": ("layer", changed(4, gate=lambda op: op.up, up=lambda op: op.gate)),
    "another gelu": ("vision_layer", changed(4, func=lambda op: "gelu")),
    "another class token": ("stem", changed(1, first=lambda op: "pre_layrnorm.weight")),
    "norms in another order": ("layer", exchanged(0, 3)),
    "linear layers in another order": ("projector", lambda ops: [ops[0], replace(ops[1], name="linear_1", n_in=48)]),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_list_that_is_not_the_module_is_found(name, monkeypatch):
    part, change = FAULTS[name]
    honest = pipeline.recognise
    monkeypatch.setattr(pipeline, "recognise", lambda *arguments: change(honest(*arguments)))
    with pytest.raises(InternalError, match=f"the list of operators of {part} "):
        operators(part)


def test_the_message_says_what_differs(monkeypatch):
    honest = pipeline.recognise
    monkeypatch.setattr(pipeline, "recognise", lambda *arguments: exchanged(0, 3)(honest(*arguments)))
    with pytest.raises(InternalError, match=r"the list of operators of layer at .* its result differs from the module"):
        operators("layer")
