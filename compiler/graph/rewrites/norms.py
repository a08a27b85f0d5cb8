"""RMSNorm and LayerNorm: torch's own operators, and written out."""

import torch

from ..edit import Editor, number
from ..ir import Node, Ref


def find_norms(e: Editor) -> None:
    for node in e.device():
        if node.target is None:
            continue
        if node.op in ("rms_norm", "layer_norm"):
            _own(e, node)
        elif node.op == "mul":
            _written_out(e, node)
        elif node.op == "batch_norm":
            _batch_norm(e, node)
    e.graph.drop_dead()


def _own(e: Editor, node: Node) -> None:
    a = node.arguments
    shape = a["normalized_shape"]
    if len(shape) != 1 or any(name in a and not e.is_constant(a[name]) for name in ("weight", "bias") if a.get(name)):
        return
    kind, default = ("rms", None) if node.op == "rms_norm" else ("layer", 1e-5)
    epsilon = default if a.get("eps") is None else float(a["eps"])
    e.turn(node, "norm", x=a["input"], weight=a.get("weight"), bias=a.get("bias"), kind=kind, epsilon=epsilon)


def _written_out(e: Editor, node: Node) -> None:
    """x * rsqrt(mean(x**2) + eps), the factors in either order; a division by sqrt is written as one by torch."""
    pair = [e.of(v) for v in node.arguments.values()]
    for x, inverse in (pair, pair[::-1]) if len(pair) == 2 else ():
        if x is None or inverse is None or inverse.op != "rsqrt":
            continue
        total = e.is_op(next(iter(inverse.arguments.values())), "add")
        epsilon = None if total is None else number(total.arguments.get("other"))
        mean = None if total is None else e.is_op(total.arguments.get("self"), "mean")
        if mean is None or epsilon is None or "alpha" in total.arguments or not _over_last(mean):  # type: ignore[union-attr]
            continue
        if _squared(e, e.graph.nodes[mean.inputs[0]]) is x:
            e.turn(node, "norm", x=Ref(x.name), kind="rms", epsilon=epsilon)
            return


def _over_last(mean: Node) -> bool:
    return list(mean.arguments.get("dim") or ()) == [-1] and bool(mean.arguments.get("keepdim"))


def _squared(e: Editor, node: Node) -> Node | None:
    """x of x**2."""
    operands = list(node.arguments.values())
    if node.op == "pow" and number(operands[1]) == 2:
        return e.of(operands[0])
    if node.op == "square":
        return e.of(operands[0])
    return e.of(operands[0]) if node.op == "mul" and operands[0] == operands[1] else None


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


def _factor(running_mean, running_var, eps, shape, weight=None, bias=None):
    scale = 1 / torch.sqrt(running_var + eps)
    return (scale if weight is None else scale * weight).reshape(shape)


def _summand(running_mean, running_var, eps, shape, weight=None, bias=None):
    shift = -running_mean / torch.sqrt(running_var + eps)
    shift = shift if weight is None else shift * weight
    return (shift if bias is None else shift + bias).reshape(shape)


def fold_norm_weights(e: Editor) -> None:
    """norm(x) * w + b with constants a channel: the norm takes them over."""
    for node in e.device():
        if node.op not in ("mul", "add"):
            continue
        pair = [node.arguments["x"], node.arguments["y"]]
        for norm_ref, constant in (pair, pair[::-1]):
            norm = e.is_op(norm_ref, "norm")
            if norm is None or not e.single(norm) or not e.is_constant(constant) or node.arguments.get("alpha", 1) != 1:
                continue
            known = e.graph.nodes[constant.name].shape
            free = "bias" not in norm.arguments and (node.op == "add" or "weight" not in norm.arguments)
            if known == (node.shape[-1],) and free and node.shape == norm.shape:
                name = "weight" if node.op == "mul" else "bias"
                e.turn(node, "norm", **(norm.arguments | {name: constant}))
                break
    e.graph.drop_dead()
