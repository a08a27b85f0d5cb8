"""From a model to a program: the compiler's table of contents."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache, partial
from hashlib import sha256
from pathlib import Path

import torch

import ref_model
from hw.spec.config import Config
from hw.spec.errors import UserError
from ref_model.config import LlavaConfig

from . import forms, ir
from .codegen import generate
from .graph import Checker, evaluating, export, rewrite_all
from .graph.ir import Graph, Length
from .layout import Layout
from .meaning import chain
from .model import ModelIr, TextIr, VisionIr
from .parts import LENGTHS, Part, parts
from .program import Compiled
from .recognise import recognise
from .sizes import Plan

Operators = dict[str, list]
"""The operators of every part of a model."""
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
    names of `parts.parts`. remember: runs the checks of the model's own modules, or knows that they have passed (see
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


def graphs(model: LlavaConfig, remember: Remember = always) -> dict[str, Graph]:
    """The graph of every part of a model, as `compile_model` reads it."""
    return {name: graph for name, (graph, _) in _known(model, remember).items()}


@lru_cache(maxsize=8)
def _known(model: LlavaConfig, remember: Remember = always) -> dict[str, tuple[Graph, list]]:
    """Graph and operators of every part of a model without modules of the user's own: they follow from its
    configuration, and so does whether they pass their checks."""
    found: dict[str, tuple[Graph, list]] = {}
    remember(_checks_digest(model), lambda: found.update({n: read_part(n, part) for n, part in parts(model).items()}))
    return found or {name: read_part(name, part, checked=False) for name, part in parts(model).items()}


def _checks_digest(model: LlavaConfig) -> str:
    """Changes with what the checks of a model's own modules depend on: their sources and sizes, the compiler, torch."""
    state = sha256(f"{torch.__version__}\n{model!r}\n".encode())
    for folder in (Path(__file__).parent, Path(ref_model.__file__).parent):
        for source in sorted(folder.rglob("*.py")):
            state.update(f"{source.relative_to(folder)}\0".encode() + source.read_bytes())
    return state.hexdigest()[:32]


def _with_replaced(model: LlavaConfig, replaced: Mapping[str, Part], remember: Remember) -> Operators:
    """Operators of a model, some of them of the user's modules, which are checked each time."""
    own = {name: read_part(name, part)[1] for name, part in replaced.items()}
    known = {name: ops for name, (_, ops) in _known(model, remember).items()}
    if unknown := sorted(set(own) - set(known)):
        raise UserError(f"model {model.name} has no part {unknown[0]!r}: choose of {', '.join(known)}")
    return known | own


@contextmanager
def _one_thread() -> Iterator[None]:
    """Checks are many short operations between reading matrices: several threads would save little, and wait for each
    other, for seconds in all, where a core is taken by something else."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@_one_thread()
def read_part(name: str, part: Part, checked: bool = True) -> tuple[Graph, list[ir.Fused]]:
    """The graph of a part, and the operators of kernels in it. Every rewrite, and the list of operators, are checked
    against the module (checked False: they are known to pass)."""
    taken = inspect.signature(part.module.forward).parameters.values()
    needed, names = [p for p in taken if p.default is p.empty], [p.name for p in taken][: len(part.inputs)]
    if not len(needed) <= len(part.inputs) == len(names):
        raise UserError(
            f"module {name}: `forward` takes {len(needed)} tensors, {len(part.inputs)} inputs were named: name "
            "every one"
        )
    roles = dict(zip(part.inputs, names, strict=True))
    shapes = dict(zip(names, part.inputs.values(), strict=True))
    dynamic = {
        given: {axis: str(d) for axis, d in enumerate(shape) if isinstance(d, Length)}
        for given, shape in shapes.items()
    }
    used = {symbol: LENGTHS[symbol] for axes in dynamic.values() for symbol in axes.values()}
    device = next((t.device for t in part.module.parameters()), torch.device("cpu"))
    examples = {
        given: torch.randn([3 if isinstance(d, Length) else d for d in shape]) for given, shape in shapes.items()
    }
    with evaluating(part.module):
        graph = export(part.module, {given: tensor.to(device) for given, tensor in examples.items()}, dynamic, used)
        checker = Checker(graph, examples, dynamic) if checked else None
        rewrite_all(graph, checker)
    ops = recognise(name, graph, roles)
    if checker is not None:
        checker.check_result(partial(_run, ops, names, tuple(roles)), f"the list of operators of {name}")
    return graph, ops


def _run(ops: list[ir.Fused], names: list[str], roles: tuple[str, ...], weights, given) -> torch.Tensor:
    """The list of operators on weights and inputs of a check."""
    named = {ir.parameter_name(state): tensor for state, tensor in weights.items()}
    rows, *others = (given[name] for name in names)
    return chain(ops, named.__getitem__, rows, **dict(zip(roles[1:], others, strict=True)))


def describe(model: LlavaConfig, found: Operators, n_layers: int | None, with_vision: bool) -> ModelIr:
    """What layout and kernels need, from the operators; the configuration only says how often layers repeat."""
    forms.check(found)
    norm, head = found["head"]
    count = model.text.layers if n_layers is None else n_layers
    if not 1 <= count <= model.text.layers:
        raise UserError(
            f"{count} layers were asked for, {model.name} has {model.text.layers}: choose 1..{model.text.layers}"
        )
    text = TextIr(norm.width, head.n_out, count, list(found["layer"]), norm, head)
    vision = None
    if model.vision is not None and with_vision:
        mlp, last = found["projector"]
        patch, _, *pre = found["stem"]
        vision = VisionIr(
            model.vision.n_patches,
            patch.n_out,
            model.num_executed_vision_layers,
            [patch, *pre],
            list(found["vision_layer"]),
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
