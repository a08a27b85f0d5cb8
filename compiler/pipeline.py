"""From a model to a program: the compiler's table of contents."""

from collections.abc import Callable, Mapping
from functools import lru_cache
from hashlib import sha256
from pathlib import Path

import torch

import ref_model
from hw.spec.config import Config
from hw.spec.errors import UserError
from ref_model.config import LlavaConfig

from . import forms, ir
from .capture import Part, capture_model, capture_parts
from .codegen import generate
from .layout import Layout
from .model import ModelIr, TextIr, VisionIr
from .passes import PASSES
from .program import Compiled
from .sizes import Plan
from .verify import Verifier

Remember = Callable[[str, Callable[[], None]], None]
"""Called with a digest and with checks. It runs the checks, which raise where they fail, or knows that checks with this
digest have passed before: a model of 7 billion parameters takes seconds to check, and nothing about it changes."""


QUEUE_DEPTH = 8
"""Schedules issue up to so many instructions to a unit ahead of those that it waits for: with shorter queues (four on
`tiny`) the sequencer would wait for a place that only a later instruction frees."""


def always(_digest: str, checks: Callable[[], None]) -> None:
    """Remembers nothing."""
    checks()


def compile_model(
    model: LlavaConfig,
    config: Config,
    context: int | None = None,
    n_layers: int | None = None,
    with_vision: bool = True,
    plan: Plan | None = None,
    replaced: Mapping[str, Part] | None = None,
    remember: Remember = always,
) -> Compiled:
    """Program and memory map of a model on a configuration.

    context: tokens the caches hold (default: the model's). n_layers: compile only the first decoder layers. plan: how
    weights are compressed (default: not at all). replaced: modules of the user's own in place of the model's, by the
    names of `capture.parts`. remember: runs the checks of the model's own modules, or knows that they have passed (see
    `Remember`). Weights are not needed: the same program serves any of that shape.
    """
    if config.queue_depth < QUEUE_DEPTH:
        raise UserError(
            f"configuration {config.name}: queue_depth = {config.queue_depth}, compiled programs need queues of "
            f"{QUEUE_DEPTH} instructions at least: choose a deeper one"
        )
    fused = _with_replaced(model, replaced or {}, remember)
    described = describe(model, fused, n_layers, with_vision)
    check_heads(described, config)
    layout = Layout(config, described, _context(model, context), plan)
    return Compiled(layout, generate(layout))


@lru_cache(maxsize=8)
def _fused(model: LlavaConfig, remember: Remember = always) -> dict[str, ir.Graph]:
    """Graphs of a model without modules of the user's own: they follow from its configuration, and so does whether they
    pass their checks."""
    found: dict[str, ir.Graph] = {}
    remember(_checks_digest(model), lambda: found.update(optimise(capture_model(model))))
    return found or optimise(capture_model(model), checked=False)


def _checks_digest(model: LlavaConfig) -> str:
    """Changes with what the checks of a model's own modules depend on: their sources and sizes, the compiler, torch."""
    state = sha256(f"{torch.__version__}\n{model!r}\n".encode())
    for folder in (Path(__file__).parent, Path(ref_model.__file__).parent):
        for source in sorted(folder.rglob("*.py")):
            state.update(f"{source.relative_to(folder)}\0".encode() + source.read_bytes())
    return state.hexdigest()[:32]


def _with_replaced(model: LlavaConfig, replaced: Mapping[str, Part], remember: Remember) -> dict[str, ir.Graph]:
    """Graphs of a model, some of them of the user's modules, which are checked each time."""
    own = optimise(capture_parts(replaced))
    graphs = _fused(model, remember)
    if unknown := sorted(set(own) - set(graphs)):
        raise UserError(f"model {model.name} has no part {unknown[0]!r}: choose of {', '.join(graphs)}")
    return graphs | own


def optimise(graphs: dict[str, ir.Graph], checked: bool = True) -> dict[str, ir.Graph]:
    """Every pass on every graph, each checked against the module that was captured (checked False: they are known to
    pass)."""
    for graph in graphs.values():
        verifier = Verifier(graph) if checked else None
        for rewrite in PASSES:
            rewrite(graph)
            if verifier is not None:
                verifier.check(rewrite.__name__)
        if verifier is not None:
            verifier.check_list()
    return graphs


def describe(model: LlavaConfig, graphs: dict[str, ir.Graph], n_layers: int | None, with_vision: bool) -> ModelIr:
    """What layout and kernels need, from the fused graphs; the configuration only says how often layers repeat."""
    forms.check(graphs)
    norm, head = graphs["head"].fused
    count = model.text.layers if n_layers is None else n_layers
    if not 1 <= count <= model.text.layers:
        raise UserError(
            f"{count} layers were asked for, {model.name} has {model.text.layers}: choose 1..{model.text.layers}"
        )
    text = TextIr(norm.width, head.n_out, count, list(graphs["layer"].fused), norm, head)
    vision = None
    if model.vision is not None and with_vision:
        mlp, last = graphs["projector"].fused
        patch, _, *pre = graphs["stem"].fused
        vision = VisionIr(
            model.vision.n_patches,
            patch.n_out,
            model.num_executed_vision_layers,
            [patch, *pre],
            list(graphs["vision_layer"].fused),
            [mlp.fc, last],
            mlp.func,
            model.vision.drop_class,
            model.max_tiles,
        )
    return ModelIr(model.name, text, vision)


def check_heads(model: ModelIr, config: Config) -> None:
    """Attention works on whole vector words of a head."""
    for name, part in (("layer", model.text), ("vision_layer", model.vision)):
        for op in part.layer if part is not None else ():
            if isinstance(op, ir.Attention) and op.head_dim % config.lanes:
                raise UserError(
                    f"module {name}: head_dim is {op.head_dim}, configuration {config.name} needs a "
                    f"multiple of its {config.lanes} lanes: choose a configuration with fewer lanes"
                )


def _context(model: LlavaConfig, context: int | None) -> int:
    chosen = model.text.context if context is None else context
    if not 1 <= chosen <= model.text.context:
        raise UserError(f"context {chosen} is outside 1..{model.text.context} tokens of {model.name}: choose another")
    return chosen
