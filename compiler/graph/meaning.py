"""What nodes mean, executable in torch with any floating type: the definition that every rewrite is checked against."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import networkx as nx
import torch
from torch import Tensor
from torch.nn import functional

from .ir import CONSTANT, Graph, Length, Node, Ref

Values = dict[str, Any]


def evaluate(graph: Graph, inputs: Mapping[str, Tensor], lengths: Mapping[str, int], dtype: torch.dtype) -> Values:
    """The value of every node, floating values in that type."""
    values: Values = {name: _cast(tensor, dtype) for name, tensor in inputs.items()}
    return run(graph, graph.nodes.values(), values, lengths, dtype)


def constants(graph: Graph) -> Values:
    """The values of all constant nodes that are tensors, in float32."""
    found = run(graph, (n for n in graph.nodes.values() if n.kind == CONSTANT), {}, {}, torch.float32)
    return {name: value for name, value in found.items() if isinstance(value, Tensor)}


def values_of(graph: Graph, names: Iterable[str], inputs: Mapping[str, Tensor], lengths: Mapping[str, int]) -> Values:
    """The values of these nodes in float32, and of all that they depend on."""
    network, wanted = graph.network(), set(names)
    wanted |= {name for each in names for name in nx.ancestors(network, each)}
    values: Values = {name: _cast(tensor, torch.float32) for name, tensor in inputs.items()}
    return run(graph, (n for n in graph.nodes.values() if n.name in wanted), values, lengths, torch.float32)


def run(graph: Graph, nodes: Iterable[Node], values: Values, lengths: Mapping[str, int], dtype: torch.dtype) -> Values:
    """Adds the values of these nodes, in order, to those that are known."""
    with torch.no_grad():
        for node in nodes:
            if node.name not in values:
                values[node.name] = node_value(graph, node, values, lengths, dtype)
    return values


def node_value(graph: Graph, node: Node, values: Values, lengths: Mapping[str, int], dtype: torch.dtype) -> Any:
    if node.op == "parameter":
        return _cast(graph.state[node.weight].detach(), dtype)
    arguments = {name: _resolved(argument, values, lengths, dtype) for name, argument in node.arguments.items()}
    value = MEANING[node.op](**arguments) if node.target is None else node.target(**arguments)
    return _cast(value, dtype) if isinstance(value, Tensor) else value


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _resolved(argument: Any, values: Mapping[str, Any], lengths: Mapping[str, int], dtype: torch.dtype) -> Any:
    """Tensors for references, numbers for lengths; floating types are the one that is computed in."""
    match argument:
        case Ref():
            return values[argument.name]
        case Length():
            return argument.at(lengths)
        case list() | tuple():
            return [_resolved(part, values, lengths, dtype) for part in argument]
        case torch.device():
            return torch.device("cpu")
        case torch.dtype() if argument.is_floating_point:
            return dtype
    return argument


# --- device operators -----------------------------------------------------------------------------------


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return functional.linear(x, weight, bias)


def norm(
    x: Tensor, kind: str, epsilon: float | None = None, weight: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    """(x - mean) / sqrt(variance + epsilon) * weight + bias of kind 'layer'; 'rms' has no mean.

    Without an epsilon it is torch's for the type that is computed in.
    """
    epsilon = torch.finfo(x.dtype).eps if epsilon is None else epsilon
    centred = x - x.mean(-1, keepdim=True) if kind == "layer" else x
    y = centred / torch.sqrt((centred * centred).mean(-1, keepdim=True) + epsilon)
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": torch.relu,
    "hardswish": functional.hardswish,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "square": torch.square,
}


def rope(x: Tensor, cos: Tensor, sin: Tensor, style: str, width: int) -> Tensor:
    """x[..., n, d] with its first `width` channels rotated.

    style "half": pairs (i, i + width/2), tables [n, width]. style "neighbours": pairs (2i, 2i + 1), tables [n, width].
    style "interleaved": the same pairs, tables [n, width/2], one place a pair. Source: Su et al. 2021.
    """
    turned, rest = x[..., :width], x[..., width:]
    if style == "interleaved":
        even, odd = turned[..., 0::2], turned[..., 1::2]
        turned = torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)
    elif style == "neighbours":
        swapped = torch.stack((-turned[..., 1::2], turned[..., 0::2]), -1).flatten(-2)
        turned = turned * cos + swapped * sin
    else:
        low, high = turned.chunk(2, -1)
        turned = turned * cos + torch.cat((-high, low), -1) * sin
    return torch.cat((turned, rest), -1)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    mask: Tensor | None = None,
    causal: bool = False,
    softcap: float | None = None,
) -> Tensor:
    """softmax(q k scale) v for q[h, n, d], k[g, m, d], v[g, m, e]: h / g heads share a key-value head.

    mask[n, m] or [h, n, m]: True where a query may look, or numbers that are added. causal: query i sees keys up to
    i + m - n. Every query sees one key at least. softcap: scores become softcap * tanh(score / softcap).
    """
    k, v = (t.repeat_interleave(q.shape[-3] // t.shape[-3], -3) for t in (k, v))
    scores = q @ k.transpose(-1, -2) * scale
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    n, m = scores.shape[-2:]
    if causal:
        scores = scores.masked_fill(~torch.ones(n, m, dtype=torch.bool).tril(m - n), float("-inf"))
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    return torch.softmax(scores, -1) @ v


def mix(x: Tensor, matrix: Tensor, axis: int) -> Tensor:
    return torch.tensordot(matrix.to(x.dtype), x, dims=([1], [axis])).movedim(0, axis)


def select_rows(x: Tensor, scores: Tensor, k: int) -> Tensor:
    """The k rows with the largest scores, in their old order; of equal scores the earlier row."""
    return x[torch.sort(scores, descending=True, stable=True).indices[:k].sort().values]


def route(x: Tensor, k: int) -> Tensor:
    """All values of the last axis that are smaller than the k-th largest become 0."""
    return torch.where(x >= x.topk(k, -1).values[..., -1:], x, 0.0)


def argmax(x: Tensor) -> Tensor:
    """The index of the largest value of the last axis; of equal ones the lowest."""
    return torch.sort(x, dim=-1, descending=True, stable=True).indices[..., 0]


MEANING: dict[str, Callable] = {
    "linear": linear,
    "norm": norm,
    "add": lambda x, y, alpha=1: x + alpha * y,
    "mul": lambda x, y: x * y,
    "scale": lambda x, factor: x * factor,
    "offset": lambda x, value: x + value,
    "activation": lambda x, function: FUNCTIONS[function](x),
    "softmax": lambda x: torch.softmax(x, -1),
    "lookup": lambda table, index: table[index],
    "rope": rope,
    "attention": attention,
    "append": lambda past, new, axis: torch.cat((past, new), axis),
    "reshape": lambda x, shape: x.reshape(shape),
    "permute": lambda x, order: x.permute(order),
    "slice": lambda x, axis, start, stop, step=1: x[(slice(None),) * axis + (slice(start, stop, step),)],
    "expand": lambda x, shape: x.expand(shape),
    "cat": lambda parts, axis: torch.cat(parts, axis),
    "mean": lambda x, axes: x.mean(axes),
    "sum": lambda x, axes: x.sum(axes),
    "mix": mix,
    "gather": lambda x, index, axis: x.index_select(axis, index),
    "select_rows": select_rows,
    "route": route,
    "argmax": argmax,
}
"""What every device operator gives; operands and attributes are those of `ir.DEVICE`."""
