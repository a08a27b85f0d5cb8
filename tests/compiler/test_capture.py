"""Capture and passes: what is recognised, and how the rest is refused."""

import pytest
import torch
from torch import nn

from compiler import ir
from compiler.capture import SEQ, capture_model, capture_module
from compiler.kernels.regions import Region
from compiler.kernels.tokens import Access, place, verify
from compiler.passes import PASSES
from compiler.pipeline import optimise
from hw.spec.errors import InternalError, UserError
from hw.spec.isa import Unit
from ref_model.config import named_config


def test_the_captured_layer_is_length_symbolic():
    layer = capture_model(named_config("llava-tiny"))["layer"]
    assert layer.nodes["x"].shape == ("seq", 64)
    assert layer.nodes["past_k"].shape == (2, "cache", 16)


def test_a_decoder_layer_becomes_six_operators():
    fused = optimise(capture_model(named_config("llava-tiny")))["layer"].fused
    assert [type(op) for op in fused] == [ir.Norm, ir.Attention, ir.Residual, ir.Norm, ir.GatedMlp, ir.Residual]
    attention = fused[1]
    assert (attention.heads, attention.kv_heads, attention.head_dim) == (4, 2, 16)
    assert attention.rope and attention.causal
    assert [op.n_out for op in ir.linears(fused)] == [32, 32, 64, 64, 176, 176, 64]


def test_a_vision_layer_becomes_six_operators():
    fused = optimise(capture_model(named_config("llava-tiny")))["vision_layer"].fused
    assert [type(op) for op in fused] == [ir.Norm, ir.Attention, ir.Residual, ir.Norm, ir.PlainMlp, ir.Residual]
    assert not fused[1].rope and not fused[1].causal
    assert fused[1].q.bias and fused[4].func == "quick_gelu" and fused[0].kind == "layer"


class _Softplus(nn.Module):
    def forward(self, x):
        return nn.functional.softplus(x)


class _Sigmoid(nn.Module):
    """Supported operators that form nothing a kernel computes."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x):
        return torch.sigmoid(self.fc(x))


def _capture(module):
    return capture_module("block", module, {"x": (SEQ, 8)})


def test_an_unknown_operator_is_named_with_its_shape():
    with pytest.raises(UserError, match=r"module block: operator softplus with result shape \[seq x 8\] has no kernel"):
        _capture(_Softplus())


def test_an_unfused_operator_is_refused_by_the_schedule():
    with torch.device("meta"):
        module = _Sigmoid()
    graph = _capture(module)
    with pytest.raises(UserError, match="operator sigmoid"):
        for rewrite in PASSES:
            rewrite(graph)


# --- tokens --------------------------------------------------------------------------------------------

VB, OB = Region("VB", "x", 0, 8), Region("OB", "q", 0, 8)
AB = Region("AB", "acc", 0, 8)


def _block():
    return [
        Access(0, Unit.VU, (VB,), (OB,)),
        Access(1, Unit.MX, (OB,), (AB,)),
        Access(2, Unit.VU, (AB,), (VB,)),
        Access(3, Unit.VU, (VB,), (OB,)),
        Access(4, Unit.MX, (OB,), (AB,)),
    ]


def test_every_hazard_gets_one_token():
    block = _block()
    place(block)
    verify(block)
    assert [(a.wait, a.signal) for a in block] == [
        (0, 1 << Unit.MX),
        (1 << Unit.VU, 1 << Unit.VU),
        (1 << Unit.MX, 0),
        (0, 1 << Unit.MX),
        (1 << Unit.VU, 0),
    ]


def test_the_verifier_finds_a_missing_and_a_stray_token():
    block = _block()
    with pytest.raises(InternalError, match="not ordered"):
        verify(block)
    place(block)
    block[4].signal |= 1 << Unit.ST
    with pytest.raises(InternalError, match="must end at 0"):
        verify(block)
