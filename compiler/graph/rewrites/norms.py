"""RMSNorm, LayerNorm and their relatives: torch's own operators, and written out."""

from typing import Any

import torch
from torch import Tensor

from ..edit import Editor, axis_of, number
from ..ir import ON_DEVICE, Node, Ref
from ..sizes import times


def find_norms(e: Editor) -> None:
    """Ahead of all other rewrites that know sums and products: these would take a written-out norm apart."""
    for node in e.device():
        if node.target is None:
            continue
        if node.op in ("rms_norm", "layer_norm"):
            _own(e, node)
        elif node.op in ("mul", "div"):
            _written_out(e, node)
        elif node.op == "batch_norm":
            _batch_norm(e, node)
        elif node.op == "group_norm":
            _group_norm(e, node)
    e.graph.drop_dead()


def _own(e: Editor, node: Node) -> None:
    """Over several axes: these are joined, and separated afterwards."""
    a = node.arguments
    if any(not e.is_constant(a[name]) for name in ("weight", "bias") if a.get(name)):
        return
    sizes = [int(size) for size in a["normalized_shape"]]
    kind, default = ("rms", None) if node.op == "rms_norm" else ("layer", 1e-5)
    options = {"kind": kind, "epsilon": default if a.get("eps") is None else float(a["eps"])}
    weights = {name: a[name] for name in ("weight", "bias") if a.get(name)}
    if len(sizes) == 1:
        e.turn(node, "norm", x=a["input"], **weights, **options)
        return
    shape = [*node.shape[: -len(sizes)], int(times(sizes))]
    joined = e.insert(node, "joined", "reshape", shape, x=a["input"], shape=shape)
    flat = {name: e.constant(node, name, torch.flatten, shape[-1:], input=ref) for name, ref in weights.items()}
    made = e.insert(node, "norm", "norm", shape, x=joined, **flat, **_given(options))
    e.turn(node, "reshape", x=made, shape=list(node.shape))


def _given(arguments: dict) -> dict:
    return {name: value for name, value in arguments.items() if value is not None}


def _group_norm(e: Editor, node: Node) -> None:
    """LayerNorm over the channels and places of each group; then a factor and a summand a channel."""
    a, groups = node.arguments, int(node.arguments["num_groups"])
    if any(not isinstance(d, int) for d in node.shape):
        return
    batch, channels, *places = (int(d) for d in node.shape)
    shape = [batch, groups, channels // groups * int(times(places))]
    joined = e.insert(node, "joined", "reshape", shape, x=a["input"], shape=shape)
    value = e.insert(node, "norm", "norm", shape, x=joined, kind="layer", epsilon=float(a.get("eps", 1e-5)))
    value = e.insert(node, "apart", "reshape", node.shape, x=value, shape=list(node.shape))
    for name, op in (("weight", "mul"), ("bias", "add")):
        if a.get(name):
            wide = [channels, *([1] * len(places))]
            factor = e.constant(node, name, torch.reshape, wide, input=a[name], shape=wide)
            value = e.insert(node, f"{name}ed", op, node.shape, x=value, y=factor)
    e.turn(node, "reshape", x=value, shape=list(node.shape))


# --- written out ----------------------------------------------------------------------------------------


def _written_out(e: Editor, node: Node) -> None:
    """x * rsqrt(mean(x**2) + eps) in its forms; with x - mean(x) in the place of x it is a LayerNorm."""
    pair = [e.of(v) for v in node.arguments.values()]
    if len(pair) != 2 or "rounding_mode" in node.arguments:
        return
    for x, factor in (pair, pair[::-1]) if node.op == "mul" else (pair,):
        if x is None or factor is None:
            continue
        inside = _root(e, factor) if node.op == "div" else _inverse_root(e, factor)
        found = None if inside is None else _with_epsilon(e, inside)
        if found is None:
            continue
        for value, rest in _with_factors(e, x):
            if (known := _normalised(e, value, found[0])) is not None:
                _turn(e, node, *known, found[1], rest)
                return


def _with_factors(e: Editor, x: Node) -> list[tuple[Node, Any]]:
    """(x, None), and (y, z) where x is a product of y and z of the same shape: a factor may come before the norm."""
    found: list[tuple[Node, Any]] = [(x, None)]
    if x.op == "mul" and x.target is not None:
        values = list(x.arguments.values())
        for y, z in (values, values[::-1]):
            value = e.of(y)
            if value is not None and value.shape == x.shape and (isinstance(z, Ref) or number(z) is not None):
                found.append((value, z))
    return found


def _normalised(e: Editor, x: Node, mean: Node) -> tuple[Node, str] | None:
    """(operand, kind) of the norm of x by this mean of squares or variance."""
    centred = _centred(e, x)
    if mean.op == "mean" and _over_last(e, mean) and _squared(e, e.graph.nodes[mean.inputs[0]]) is x:
        return (x, "rms") if centred is None else (centred, "layer")
    if mean.op == "var" and centred is not None and _is_variance(e, mean, centred):
        return centred, "layer"
    return None


def _turn(e: Editor, node: Node, source: Node, kind: str, epsilon: float, factor: Any) -> None:
    a = {"x": Ref(source.name), "kind": kind, "epsilon": epsilon}
    if factor is None:
        e.turn(node, "norm", **a)
        return
    made = e.insert(node, "norm", "norm", source.shape, **a)
    if number(factor) is not None:
        e.turn(node, "scale", x=made, factor=float(factor))
    else:
        e.turn(node, "mul", x=made, y=factor)


def _root(e: Editor, node: Node) -> Node | None:
    """y of sqrt(y) and y ** 0.5."""
    operands = list(node.arguments.values())
    if node.op == "sqrt" or (node.op == "pow" and number(operands[1]) == 0.5):
        return e.of(operands[0])
    return None


def _inverse_root(e: Editor, node: Node) -> Node | None:
    """y of rsqrt(y), y ** -0.5 and 1 / sqrt(y)."""
    operands = list(node.arguments.values())
    if node.op == "rsqrt" or (node.op == "pow" and number(operands[1]) == -0.5):
        return e.of(operands[0])
    if node.op == "reciprocal":
        source = e.of(operands[0])
        return None if source is None else _root(e, source)
    if node.op == "mul" and number(operands[1]) == 1 and (inner := e.is_op(operands[0], "reciprocal")) is not None:
        return _inverse_root(e, inner)  # torch's form of 1 / y
    return None


def _with_epsilon(e: Editor, node: Node) -> tuple[Node, float] | None:
    """(mean, epsilon) of their sum."""
    if node.op != "add" or node.target is None or "alpha" in node.arguments:
        return None
    x, y = node.arguments["self"], node.arguments["other"]
    if number(x) is not None:
        x, y = y, x
    mean, epsilon = e.of(x), number(y)
    return None if mean is None or epsilon is None else (mean, epsilon)


def _over_last(e: Editor, mean: Node) -> bool:
    source, dims = e.graph.nodes[mean.inputs[0]], mean.arguments.get("dim")
    dims = dims if isinstance(dims, list | tuple) else [] if dims is None else [dims]
    last = len(source.shape) - 1
    return [axis_of(source.shape, int(d)) for d in dims] == [last] and bool(mean.arguments.get("keepdim"))


def _squared(e: Editor, node: Node) -> Node | None:
    """x of x**2."""
    operands = list(node.arguments.values())
    if node.op == "pow" and number(operands[1]) == 2:
        return e.of(operands[0])
    if node.op == "square":
        return e.of(operands[0])
    return e.of(operands[0]) if node.op == "mul" and operands[0] == operands[1] else None


def _centred(e: Editor, node: Node) -> Node | None:
    """x of x - mean(x)."""
    if node.op != "sub" or node.target is None or "alpha" in node.arguments:
        return None
    x, mean = e.of(node.arguments["self"]), e.is_op(node.arguments["other"], "mean")
    same = x is not None and mean is not None and mean.inputs[0] == x.name and _over_last(e, mean)
    return x if same else None


def _is_variance(e: Editor, node: Node, x: Node) -> bool:
    """Whether it is the variance of x over the last axis, divided by the number of channels."""
    a = node.arguments
    unbiased = a["unbiased"] if "unbiased" in a else a.get("correction", 1) != 0
    return node.inputs[0] == x.name and not unbiased and _over_last(e, node)


# --- batch norm and weights -----------------------------------------------------------------------------


def _batch_norm(e: Editor, node: Node) -> None:
    """In evaluation a factor and a summand a channel; channels are the second axis."""
    a = node.arguments
    names = [n for n in ("weight", "bias", "running_mean", "running_var") if a.get(n) is not None]
    if a.get("training") or "running_mean" not in names or any(not e.is_constant(a[n]) for n in names):
        return
    width, lead = node.shape[1], len(node.shape) - 2
    shape = (width, *([1] * lead))
    known = {n: a[n] for n in names} | {"eps": a["eps"], "shape": list(shape)}
    factor = e.constant(node, "factor", _factor, shape, **known)
    added = e.constant(node, "summand", _summand, shape, **known)
    scaled = e.insert(node, "scaled", "mul", node.shape, x=a["input"], y=factor)
    e.turn(node, "add", x=scaled, y=added)


def _factor(
    running_mean: Tensor, running_var: Tensor, eps: float, shape, weight: Tensor | None = None, bias=None
) -> Tensor:
    scale = 1 / torch.sqrt(running_var + eps)
    return (scale if weight is None else scale * weight).reshape(shape)


def _summand(
    running_mean: Tensor, running_var: Tensor, eps: float, shape, weight: Tensor | None = None, bias=None
) -> Tensor:
    shift = -running_mean / torch.sqrt(running_var + eps)
    shift = shift if weight is None else shift * weight
    return (shift if bias is None else shift + bias).reshape(shape)


def fold_norm_weights(e: Editor) -> None:
    """norm(x) * w + b with constants a channel: the norm takes them over."""
    for node in e.device():
        if node.op not in ("mul", "add") or node.target is not None or node.kind != ON_DEVICE:
            continue
        pair = [node.arguments["x"], node.arguments["y"]]
        for norm_ref, constant in (pair, pair[::-1]):
            norm = e.form(norm_ref, "norm")
            if norm is None or not e.single(norm) or not e.is_constant(constant) or node.arguments.get("alpha", 1) != 1:
                continue
            known = e.graph.nodes[constant.name].shape
            free = "bias" not in norm.arguments and (node.op == "add" or "weight" not in norm.arguments)
            if known == (node.shape[-1],) and free and node.shape == norm.shape:
                name = "weight" if node.op == "mul" else "bias"
                e.turn(node, "norm", **(norm.arguments | {name: constant}))
                break
    e.graph.drop_dead()
