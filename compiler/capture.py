"""Capture: torch.export of one layer of each kind, with symbolic lengths, into the IR.

A model repeats its layers, so one export a kind is enough; it is done on the meta device, without weights.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.export import Dim

from hw.spec.errors import UserError
from ref_model.config import LlavaConfig
from ref_model.modules import LlamaDecoderLayer, Projector, RMSNorm, VisionLayer
from ref_model.vision import VisionEmbeddings

from . import ir

SUPPORTED = frozenset((
    "linear", "rms_norm", "layer_norm", "view", "reshape", "transpose", "chunk", "getitem", "mul", "neg", "cat", "add",
    "ones", "tril", "scaled_dot_product_attention", "silu", "gelu", "sigmoid", "flatten", "unsqueeze"))
MAX_CONTEXT = 1 << 17
SEQ_EXAMPLE, CACHE_EXAMPLE = 5, 3


class _Head(nn.Module):
    """Final norm and vocabulary projection."""

    def __init__(self, config) -> None:
        super().__init__()
        self.norm = RMSNorm(config.hidden, config.rms_eps)
        self.lm_head = nn.Linear(config.hidden, config.vocab, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.lm_head(self.norm(x))


class _Stem(nn.Module):
    """Patch embedding, class token, positions, pre-norm where there is one."""

    def __init__(self, config) -> None:
        super().__init__()
        self.embeddings = VisionEmbeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.hidden, config.ln_eps) if config.pre_norm else nn.Identity()

    def forward(self, patches: Tensor) -> Tensor:
        return self.pre_layrnorm(self.embeddings(patches))


def capture_model(config: LlavaConfig) -> dict[str, ir.Graph]:
    """Graphs `layer` and `head` of the language model, `stem`, `vision_layer`, `projector` of the vision side."""
    text, seq, cache = config.text, Dim("seq", min=1, max=MAX_CONTEXT), Dim("cache", min=0, max=MAX_CONTEXT)
    with torch.device("meta"):
        past = torch.empty(text.kv_heads, CACHE_EXAMPLE, text.head_dim)
        table = torch.empty(SEQ_EXAMPLE, text.head_dim)
        rows = torch.empty(SEQ_EXAMPLE, text.hidden)
        graphs = {
            "layer": capture("layer", LlamaDecoderLayer(text), (rows, table, table, past, past),
                             ({0: seq}, {0: seq}, {0: seq}, {1: cache}, {1: cache})),
            "head": capture("head", _Head(text), (rows,), ({0: seq},))}
        if config.vision is not None:
            vision = config.vision
            tokens = torch.empty(vision.n_positions, vision.hidden)
            graphs["stem"] = capture("stem", _Stem(vision), (torch.empty(vision.n_patches, vision.patch_width),), None)
            graphs["vision_layer"] = capture("vision_layer", VisionLayer(vision), (tokens,), ({0: seq},))
            graphs["projector"] = capture(
                "projector", Projector(vision.hidden, text.hidden, config.projector_bias), (tokens,), ({0: seq},))
    return graphs


def capture(name: str, module: nn.Module, inputs: tuple, dynamic: tuple | None) -> ir.Graph:
    """The IR of one module; UserError for an operator without a kernel."""
    exported = torch.export.export(module.eval(), inputs, dynamic_shapes=dynamic)
    signature, symbols = exported.graph_signature, _symbols(exported, dynamic)
    weights = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    graph = ir.Graph(name)
    for node in exported.graph.nodes:
        if node.op == "placeholder":
            graph.add(ir.Node(node.name, "input", (), _shape(node, symbols), weight=weights.get(node.name)))
        elif node.op == "call_function" and not _is_symbol(node):
            graph.add(_node(name, node, symbols))
    (results,) = (node for node in exported.graph.nodes if node.op == "output")
    graph.outputs = tuple(argument.name for argument in results.args[0])
    graph.check()
    return graph


def _symbols(exported, dynamic) -> Mapping[str, str]:
    """torch's symbol names -> ours."""
    names: dict[str, str] = {}
    user_inputs = [n for n in exported.graph.nodes
                   if n.op == "placeholder" and n.name in exported.graph_signature.user_inputs]
    for node, dims in zip(user_inputs, dynamic or (), strict=False):
        for axis, dim in dims.items():
            names[str(node.meta["val"].shape[axis])] = dim.__name__
    return names


def _is_symbol(node) -> bool:
    return isinstance(node.meta.get("val"), torch.SymInt | int)


def _dim(value, symbols: Mapping[str, str]) -> ir.Dim:
    if isinstance(value, int):
        return value
    text = str(value)
    for theirs, ours in symbols.items():
        text = text.replace(theirs, ours)
    return text


def _shape(node, symbols) -> ir.Shape:
    value = node.meta.get("val")
    return tuple(_dim(d, symbols) for d in value.shape) if isinstance(value, Tensor) else ()


def _node(graph: str, node, symbols) -> ir.Node:
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    where = stack[-1][0] if stack else ""
    op = getattr(node.target, "__name__", str(node.target)).split(".")[0]
    inputs, constants = [], []

    def walk(argument):
        if isinstance(argument, torch.fx.Node):
            if _is_symbol(argument):
                constants.append(_dim(argument.meta["val"], symbols))
            else:
                inputs.append(argument.name)
        elif isinstance(argument, list | tuple):
            for part in argument:
                walk(part)
        else:
            constants.append(argument)

    walk(node.args)
    made = ir.Node(node.name, op, tuple(inputs), _shape(node, symbols),
                   {"constants": tuple(constants), **node.kwargs}, module=f"{graph}.{where}".rstrip("."))
    if op not in SUPPORTED:
        raise unsupported(made)
    return made


def unsupported(node: ir.Node) -> UserError:
    """The message for an operator that no kernel takes."""
    shape = " x ".join(str(d) for d in node.shape) or "unknown"
    return UserError(f"module {node.module or 'model'}: operator {node.op} with result shape [{shape}] has no kernel: "
                     "express it with supported operators or add a pass in compiler/passes and a kernel in "
                     "compiler/kernels")
