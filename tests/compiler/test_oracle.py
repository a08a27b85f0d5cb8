"""The interpreter of integer steps equals the hand-written golden model in every value, on the project's models.

The two share nothing but `hw.spec.numerics` and the rounding of weights: one is made from the graph of a module, the
other was written by hand for LLaVA.
"""

import inspect
from dataclasses import fields
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from alula.session import open_flow
from compiler.graph import capture, constants, values_of
from compiler.integer import rules  # noqa: F401
from compiler.integer.feed import feed
from compiler.integer.integers import Integers
from compiler.integer.interpret import interpret
from compiler.integer.plan import make_plan
from compiler.integer.translate import Translator
from compiler.parts import Head, Stem
from hw.spec import numerics as nm
from ref_model.checkpoints import open_synthetic
from ref_model.compress import Compression
from ref_model.decoder import rope_tables
from ref_model.golden import GoldenText, GoldenVision
from ref_model.modules import LlamaDecoderLayer, Projector, VisionLayer
from ref_model.quantise import quantise
from ref_model.reduction import Drop, Reduction

SEED = 1
ONE = 1 << nm.FRAC
MODELS = ("llava-tiny", pytest.param("llava-1.5-7b", marks=pytest.mark.slow))


@cache
def model(name: str):
    checkpoint = open_synthetic(name, 0)
    return checkpoint, quantise(checkpoint, keep_layers=1)


def loaded(module: nn.Module, checkpoint, prefix: str, keep: str = "") -> nn.Module:
    """The module with the checkpoint's weights under that prefix, in float32."""
    found = {
        name.removeprefix(prefix): checkpoint.read(name, torch.float32)
        for name in checkpoint.shapes
        if name.startswith(prefix + keep)
    }
    module.load_state_dict({name: found[name] for name in module.state_dict()})
    return module.eval()


def integers(module: nn.Module, inputs: dict[str, Tensor], dynamic=None, lengths=None) -> Integers:
    graph = capture(module, inputs, dynamic, lengths)
    known = {name: value.numpy() for name, value in constants(graph).items()}
    return Translator(graph, make_plan(graph, known), known).run()


def run(found: Integers, inputs: dict[str, Tensor], lengths: dict[str, int], given: dict | None = None) -> dict:
    """Every step's value; given: values of steps that are known as integers, by the name of their input."""
    nodes = values_of(found.graph, list(found.graph.nodes), inputs, lengths)
    brought = feed(found, lambda name: nodes[name].numpy(), lengths) | (given or {})
    return interpret(found, brought, lengths)


def wide(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Rows of about unit variance in Q16."""
    return np.round(rng.standard_normal(shape) * ONE).astype(np.int64)


def tensor(rows: np.ndarray) -> Tensor:
    return torch.from_numpy(rows / ONE).to(torch.float32)


def rows_of(module: nn.Module, x: np.ndarray) -> np.ndarray:
    """The integers of a module with one input of wide rows."""
    (name,) = inspect.signature(module.forward).parameters
    found = integers(module, {name: tensor(x)})
    values = run(found, {name: tensor(x)}, {}, {name: x[:, None]})
    got = values[found.results[found.graph.outputs[0]].base]
    return got.reshape(len(got), -1)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("layer", [0, 1])
def test_decoder_layer(name, layer):
    """A prompt, a chunk behind it and a token behind that."""
    checkpoint, quant = model(name)
    text = checkpoint.config.text
    module = loaded(LlamaDecoderLayer(text), checkpoint, f"language_model.layers.{layer}.")
    past = torch.randn(text.kv_heads, 3, text.head_dim)
    example = {
        "x": torch.randn(5, text.hidden),
        "cos": torch.randn(5, text.head_dim),
        "sin": torch.randn(5, text.head_dim),
    }
    parameters = list(inspect.signature(module.forward).parameters)[:5]
    example = dict(zip(parameters, [*example.values(), past, past + 1], strict=True))
    axes = dict(zip(parameters, ({0: "seq"}, {0: "seq"}, {0: "seq"}, {1: "cache"}, {1: "cache"}), strict=True))
    found = integers(module, example, axes, {"seq": (1, 64), "cache": (0, 64)})
    golden = GoldenText(quant, 1, layer)
    rng, start = np.random.default_rng(SEED), 0
    held: dict = {}
    for count in (37, 5, 1):
        x = wide(rng, (count, text.hidden))
        cos, sin = rope_tables(text, torch.arange(start, start + count))
        empty = torch.zeros(text.kv_heads, start, text.head_dim)
        inputs = dict(zip(parameters, (tensor(x), cos, sin, empty, empty), strict=True))
        want = golden.forward(x)
        given = {parameters[0]: found.steps[parameters[0]].layout.arrange(x)} | held
        values = run(found, inputs, {"seq": count, "cache": start}, given)
        rows = values[found.results[found.graph.outputs[0]].base].reshape(count, -1)
        assert np.array_equal(rows, want), f"seed {SEED}: {count} tokens behind {start}"
        held = {found.steps[hold].past: values[hold] for hold in found.states.values()}
        start += count


@pytest.mark.parametrize("name", MODELS)
def test_vision_layer(name):
    checkpoint, quant = model(name)
    vision = checkpoint.config.vision
    module = loaded(VisionLayer(vision), checkpoint, "vision_tower.encoder.layers.0.")
    x = wide(np.random.default_rng(SEED), (vision.n_positions, vision.hidden))
    assert np.array_equal(rows_of(module, x), GoldenVision(quant)._layer(quant.vision.layers[0], x))


@pytest.mark.parametrize("name", MODELS)
def test_projector(name):
    checkpoint, quant = model(name)
    c = checkpoint.config
    module = loaded(Projector(c.vision.hidden, c.text.hidden, c.projector_bias), checkpoint, "multi_modal_projector.")
    x = wide(np.random.default_rng(SEED), (9, c.vision.hidden))
    assert np.array_equal(rows_of(module, x), GoldenVision(quant).project(x))


def test_stem():
    """Patches, class token, positions, norm."""
    checkpoint, quant = model("llava-tiny")
    vision = checkpoint.config.vision
    module = loaded(Stem(vision), checkpoint, "vision_tower.")
    patches = wide(np.random.default_rng(SEED), (vision.n_patches, vision.patch_width))
    assert np.array_equal(rows_of(module, patches), GoldenVision(quant).stem(patches / ONE))


def test_head():
    """Final norm and vocabulary."""
    checkpoint, quant = model("llava-tiny")
    text = checkpoint.config.text
    module = Head(text)
    module.norm.load_state_dict({"weight": checkpoint.read("language_model.norm.weight", torch.float32)})
    module.lm_head.load_state_dict({"weight": checkpoint.read("lm_head.weight", torch.float32)})
    x = wide(np.random.default_rng(SEED), (3, text.hidden))
    assert np.array_equal(rows_of(module.eval(), x), GoldenText(quant).logits(x))


# --- whole models, with weights as they were quantised, compressed or smoothed ------------------------------

ORACLES = {
    "llava-tiny": (),
    "llava-tiny 3.5 bits": ("3.5", "dense"),
    "llava-tiny 2 bits, 8 of 16": ("2", "8:16"),
    "smollm2-135m": (),
    "vits-smollm2": (),
    "llava-1.5-7b": (),
    "llava-1.5-13b": (),
}
QUICK = 3
"""The first ones take seconds; the real and the large ones are slow tests."""
SOME_LAYERS = {"llava-1.5-7b": 1, "llava-1.5-13b": 1}


def flow_of(name: str):
    source, compression = name.split()[0], ORACLES[name]
    chosen = Compression.parse(*compression, "plain") if compression else None
    config = {"llava-tiny": "tiny", "llava-1.5-7b": "u280", "llava-1.5-13b": "u280"}.get(source, "small")
    return open_flow(source, config, layers=SOME_LAYERS.get(source), compression=chosen)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if at < QUICK else pytest.mark.slow) for at, n in enumerate(ORACLES)]
)
def test_whole_models(name):
    """Caches, residual rows, logits and visual tokens are those of the hand-written layers."""
    flow = flow_of(name)
    oracle, golden = GoldenText(flow.quant, flow.layers), flow.golden()
    for count in (19, 1):
        rows = wide(np.random.default_rng(count), (count, flow.quant.config.text.hidden))
        want = oracle.forward(rows)
        assert np.array_equal(golden.forward(rows), want)
        assert np.array_equal(golden.logits(want[-1:]), oracle.logits(want[-1:]))
    for one, other in zip(golden.cache, oracle.cache, strict=True):
        assert all(np.array_equal(getattr(one, f.name), getattr(other, f.name)) for f in fields(one))
    if flow.quant.vision is not None:
        vision = flow.quant.config.vision
        patches = np.random.default_rng(SEED).standard_normal((vision.n_patches, vision.patch_width))
        layers = SOME_LAYERS.get(name)
        tower, by_hand = flow.golden_vision(layers), GoldenVision(flow.quant, layers)
        keep = vision.n_patches // 2
        assert np.array_equal(tower.forward(patches, keep), by_hand.forward(patches, keep))
        assert np.array_equal(tower.saliency, by_hand.saliency)


def test_keys_that_are_left_out_and_tokens_that_are_dropped():
    flow = flow_of("llava-tiny")
    text = flow.quant.config.text
    rows = wide(np.random.default_rng(SEED), (40, text.hidden))
    mask = flow.mask("window:16")
    reduction = Reduction(6, 16, (Drop(1, 4, by_score=True),))
    for options in ({"mask": mask}, {"reduction": reduction}):
        oracle, golden = GoldenText(flow.quant), flow.golden()
        assert np.array_equal(golden.forward(rows, **options), oracle.forward(rows, **options))
        scores = [model.scores for model in (golden, oracle)]
        assert (scores[0] is None and scores[1] is None) or np.array_equal(*scores)
