"""Capture: torch.export of one module of each kind, with symbolic lengths, into the IR.

A model repeats its layers, so one export a kind is enough; weights are not needed, modules may be on the meta device.
"""

import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.export.graph_signature import InputKind, OutputKind

from hw.spec.errors import UserError
from ref_model.config import LlavaConfig
from ref_model.modules import LlamaDecoderLayer, Projector, RMSNorm, VisionLayer
from ref_model.vision import VisionEmbeddings

from . import ir
from .ir import Length, Ref, unsupported

SUPPORTED = frozenset(
    (
        "linear",
        "rms_norm",
        "layer_norm",
        "view",
        "reshape",
        "transpose",
        "chunk",
        "getitem",
        "mul",
        "neg",
        "cat",
        "add",
        "ones",
        "tril",
        "scaled_dot_product_attention",
        "silu",
        "gelu",
        "sigmoid",
        "flatten",
        "unsqueeze",
    )
)
"""What passes look for; anything else is refused at once."""
MAX_CONTEXT = 1 << 17
SEQ, CACHE = Length("seq"), Length("cache")
SYMBOLS = {"seq": (5, 1), "cache": (3, 0)}
"""Symbolic lengths: (of the example that is exported, smallest)."""


@dataclass(frozen=True)
class Part:
    """A module of a model, and what it is called with: a shape for every input of `forward`, in order.

    The inputs' names say what they are for: the program brings a layer's RoPE tables as `cos` and `sin`, whatever
    the module calls them.
    """

    module: nn.Module
    inputs: Mapping[str, ir.Shape]


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


def decoder_inputs(hidden: int, kv_heads: int, head_dim: int) -> dict[str, ir.Shape]:
    """What a decoder layer is called with: rows, tables of its positions, and the keys and values before them."""
    table, past = (SEQ, head_dim), (kv_heads, CACHE, head_dim)
    return {"x": (SEQ, hidden), "cos": table, "sin": table, "past_k": past, "past_v": past}


def parts(config: LlavaConfig) -> dict[str, Part]:
    """`layer` and `head` of the language model; `stem`, `vision_layer` and `projector` where there is a tower."""
    text, vision = config.text, config.vision
    with torch.device("meta"):
        found = {
            "layer": Part(LlamaDecoderLayer(text), decoder_inputs(text.hidden, text.kv_heads, text.head_dim)),
            "head": Part(_Head(text), {"x": (SEQ, text.hidden)}),
        }
        if vision is not None:
            found |= {
                "stem": Part(_Stem(vision), {"patches": (vision.n_patches, vision.patch_width)}),
                "vision_layer": Part(VisionLayer(vision), {"x": (SEQ, vision.hidden)}),
                "projector": Part(
                    Projector(vision.hidden, text.hidden, config.projector_bias), {"x": (SEQ, vision.hidden)}
                ),
            }
    return found


def capture_model(config: LlavaConfig) -> dict[str, ir.Graph]:
    """The graph of every part of a model."""
    return capture_parts(parts(config))


def capture_parts(found: Mapping[str, Part]) -> dict[str, ir.Graph]:
    """The graph of each part."""
    return {name: capture_module(name, part.module, part.inputs) for name, part in found.items()}


def capture_module(name: str, module: nn.Module, inputs: Mapping[str, ir.Shape]) -> ir.Graph:
    """The IR of one module; `inputs` as in `Part`. UserError for what has no kernel or cannot be exported.

    Every input has an example of its own: torch.export takes equal tensors for one and the same input.
    """
    exported = _export(name, module, inputs)
    graph, reader = ir.Graph(name, source=module), _Reader(name, module, exported, inputs)
    for node in exported.graph.nodes:
        if node.op == "placeholder":
            graph.add(reader.placeholder(node))
        elif node.op == "call_function" and not _is_symbol(node):
            graph.add(reader.operator(node))
    graph.outputs = reader.outputs()
    graph.check()
    for node in graph.arguments():
        if not graph.users(node.name) and node.name not in graph.outputs:
            raise UserError(
                f"module {name}: input {node.name} has no effect: leave it out of `forward` and of the "
                "inputs, or use it"
            )
    return graph


def _export(name: str, module: nn.Module, inputs: Mapping[str, ir.Shape]):
    """torch's exported program, on example tensors of the device that the module is on."""
    device = next((t.device for t in states(module).values()), torch.device("cpu"))
    dims = {symbol: Dim(symbol, min=least, max=MAX_CONTEXT) for symbol, (_, least) in SYMBOLS.items()}
    sizes = {symbol: example for symbol, (example, _) in SYMBOLS.items()}
    examples = tuple(
        torch.empty([d.at(sizes) if isinstance(d, Length) else d for d in shape], device=device)
        for shape in inputs.values()
    )
    dynamic = tuple(
        {axis: dims[d] for axis, d in enumerate(shape) if isinstance(d, Length)} for shape in inputs.values()
    )
    try:
        return torch.export.export(module.eval(), examples, dynamic_shapes=dynamic)
    except Exception as error:  # whatever a user's module and torch make of it
        raise UserError(
            f"module {name}: torch.export refuses it ({type(error).__name__}: {first_line(error)}): it has "
            f"to run at any {' and '.join(SYMBOLS)}, and its shapes may depend on nothing else"
        ) from None


class _Reader:
    """Nodes of an exported program as nodes of the IR."""

    def __init__(self, name: str, module: nn.Module, exported, inputs: Mapping[str, ir.Shape]) -> None:
        self.name, self.exported = name, exported
        self.signature = exported.graph_signature
        found = {**self.signature.inputs_to_parameters, **self.signature.inputs_to_buffers}
        self.weights = {name: first_name(module, state) for name, state in found.items()}
        user_inputs = [n for n in exported.graph.nodes if n.op == "placeholder" and n.name not in self.weights]
        self._check_signature(len(inputs))
        self.roles = {node.name: role for node, role in zip(user_inputs, inputs, strict=True)}
        self.symbols = {
            str(node.meta["val"].shape[axis]): str(dim)
            for node, shape in zip(user_inputs, inputs.values(), strict=True)
            for axis, dim in enumerate(shape)
            if isinstance(dim, Length)
        }

    def _check_signature(self, count: int) -> None:
        """Parameters, as many inputs as were named, and results that are computed: nothing else."""
        kinds = [spec.kind for spec in self.signature.input_specs]
        if set(kinds) - {InputKind.PARAMETER, InputKind.BUFFER, InputKind.USER_INPUT}:
            raise UserError(f"module {self.name}: it holds a tensor that is neither parameter nor buffer: register it")
        if any(spec.kind != OutputKind.USER_OUTPUT for spec in self.signature.output_specs):
            raise UserError(f"module {self.name}: it changes a buffer or an input: return what is new instead")
        if kinds.count(InputKind.USER_INPUT) != count:
            raise UserError(
                f"module {self.name}: `forward` takes {kinds.count(InputKind.USER_INPUT)} tensors, {count} "
                "inputs were named: name every one"
            )

    def placeholder(self, node) -> ir.Node:
        if node.name in self.roles:
            return ir.Node(self.roles[node.name], "input", shape=self._shape(node), module=self.name)
        return ir.Node(
            self._named(node), "parameter", shape=self._shape(node), weight=self.weights[node.name], module=self.name
        )

    def operator(self, node) -> ir.Node:
        schema = getattr(node.target, "_schema", None)
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        made = ir.Node(
            self._named(node),
            schema.name.split("::")[-1] if schema else node.target.__name__,
            shape=self._shape(node),
            target=_item if node.target is operator.getitem else node.target,
            module=f"{self.name}.{stack[-1][0] if stack else ''}".rstrip("."),
        )
        if made.op not in SUPPORTED:
            raise unsupported(made)
        made.arguments = self._arguments(node, schema)
        return made

    def outputs(self) -> tuple[str, ...]:
        (results,) = (node for node in self.exported.graph.nodes if node.op == "output")
        if any(not isinstance(result, torch.fx.Node) for result in results.args[0]):
            raise UserError(f"module {self.name}: a result is no tensor: return tensors only")
        return tuple(self._named(result) for result in results.args[0])

    def _named(self, node) -> str:
        """A node's name; those of inputs are taken."""
        if node.name in self.roles:
            return self.roles[node.name]
        return node.name + "_" if node.name in self.roles.values() else node.name

    def _arguments(self, node, schema) -> dict[str, Any]:
        """Arguments by name, without those that are as by default."""
        if schema is None:
            return dict(zip(("source", "index"), map(self._value, node.args), strict=True))
        given = dict(zip((a.name for a in schema.arguments), node.args, strict=False)) | dict(node.kwargs)
        defaults = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}
        values = {name: self._value(argument) for name, argument in given.items()}
        return {name: value for name, value in values.items() if name not in defaults or value != defaults[name]}

    def _value(self, argument: Any) -> Any:
        if isinstance(argument, torch.fx.Node):
            return self._dim(argument.meta["val"]) if _is_symbol(argument) else Ref(self._named(argument))
        return [self._value(part) for part in argument] if isinstance(argument, list | tuple) else argument

    def _dim(self, value) -> ir.Dim:
        if isinstance(value, int):
            return value
        return Length(re.sub(r"[A-Za-z_]\w*", lambda found: self.symbols.get(found[0], found[0]), str(value)))

    def _shape(self, node) -> ir.Shape:
        value = node.meta.get("val")
        return tuple(self._dim(d) for d in value.shape) if isinstance(value, Tensor) else ()


def states(module: nn.Module, every_name: bool = False) -> dict[str, Tensor]:
    """Parameters and buffers by state name; every_name: those with several names under each of them."""
    once = not every_name
    return {**dict(module.named_parameters(remove_duplicate=once)), **dict(module.named_buffers(remove_duplicate=once))}


def first_name(module: nn.Module, state: str) -> str:
    """The first name of a parameter or buffer that may have several."""
    wanted = states(module, every_name=True).get(state)
    return next((name for name, tensor in states(module).items() if tensor is wanted), state)


def first_line(error: Exception) -> str:
    """What an error says first: torch's messages go on for pages."""
    return (str(error).strip().splitlines() or [""])[0].rstrip(".")


def _is_symbol(node) -> bool:
    return isinstance(node.meta.get("val"), torch.SymInt | int)


def _item(source: Any, index: int) -> Any:
    return source[index]


__all__ = ["CACHE", "SEQ", "Part", "capture_model", "capture_module", "capture_parts", "decoder_inputs", "parts"]
