"""What a finished graph may contain: device operators in their normal forms. Everything else is refused."""

from collections.abc import Iterator

from hw.spec.errors import InternalError, UserError

from .ir import CONSTANT, DEVICE, HOST, ON_DEVICE, Graph, Length, Node

ANYWHERE = (CONSTANT, HOST)
KINDS: dict[str, dict[str, tuple[str, ...]]] = {
    "linear": {"weight": (CONSTANT,), "bias": (CONSTANT,)},
    "norm": {"weight": (CONSTANT,), "bias": (CONSTANT,)},
    "mix": {"matrix": (CONSTANT,)},
    "rope": {"cos": ANYWHERE, "sin": ANYWHERE},
    "attention": {"mask": ANYWHERE},
    "gather": {"index": ANYWHERE},
}
"""Operands that are not activations: operator -> operand -> where it may be computed."""

ACCEPTED = {
    "matmul": "a product with a constant matrix, or q k^T ahead of a softmax and its result times v",
    "bmm": "a product with a constant matrix, or q k^T ahead of a softmax and its result times v",
    "linear": "a weight that is a parameter, or computed from parameters",
    "einsum": "a product with a constant, or the two products of attention",
    "div": "a quotient by a number or a constant, or a norm written as x * rsqrt(mean(x**2, -1) + epsilon)",
    "rsqrt": "x * rsqrt(mean(x**2, -1, keepdim=True) + epsilon)",
    "sqrt": "x / sqrt(mean(x**2, -1, keepdim=True) + epsilon)",
    "pow": "the exponents 2, 3 and 4",
    "log_softmax": "softmax",
    "topk": "x[scores.topk(k).indices.sort().values], or (w * (i == e)).sum(-1, keepdim=True) of (w, i) = p.topk(k), "
    "which may be divided by their sum where k is 2",
    "gt": "a choice between values by a mask that depends on lengths only, or relu",
    "lt": "a choice between values by a mask that depends on lengths only, or relu",
    "index": "an index of whole numbers that does not depend on activations",
    "scaled_dot_product_attention": "masks that do not depend on activations, no dropout",
}
"""Operator of torch -> what is accepted in its place."""
OTHERWISE = "write it with the operators of docs/howto/own-module.md"


def refuse_others(graph: Graph) -> None:
    """UserError for the first node that is not in a normal form of the device's operators."""
    for node in graph.device():
        for operand, kinds in KINDS.get(node.op, {}).items() if node.target is None else ():
            source = node.operand(operand)
            if source is not None and graph.nodes[source].kind not in kinds:
                raise UserError(
                    f"{described(node)}: its {operand} depends on activations: accepted is {_origin(kinds)}"
                )
    for node in graph.device():
        if node.target is not None or node.op not in DEVICE:
            accepted = ACCEPTED.get(node.op)
            what = f"accepted is {accepted}" if accepted else OTHERWISE
            raise UserError(f"{described(node)} has no rule: {what}")
        if fault := next(_faults(graph, node), ""):
            raise InternalError(f"{described(node)} is not in its normal form: {fault}")


def refuse_short_slices(graph: Graph) -> None:
    """UserError for a slice from the end that is longer than an axis may be: torch takes what there is then, and the
    shape of what it takes would be another one."""
    least = {symbol: limits.least for symbol, limits in graph.lengths.items()}
    for node in graph.nodes.values():
        if node.op != "slice" or node.target is None:
            continue
        source, a = graph.nodes[node.inputs[0]], node.arguments
        size = source.shape[int(a.get("dim", 0)) % len(source.shape)]
        for place in (a.get("start"), a.get("end")):
            if isinstance(size, Length) and isinstance(place, int) and place < 0 and size.at(least) < -place:
                raise UserError(
                    f"{described(node)} begins or ends {-place} places ahead of the end of {size}, which may be "
                    f"{size.at(least)}: let it be {-place} at least"
                )


def described(node: Node) -> str:
    """Where a node comes from, for messages: module, operator, shape, file and line."""
    shape = " x ".join(str(d) for d in node.shape) or "several results"
    return f"module {node.module}: operator {node.op} with result [{shape}]{f', {node.source}' if node.source else ''}"


def _origin(kinds: tuple[str, ...]) -> str:
    if HOST in kinds:
        return "what depends on parameters, lengths and inputs that are used for nothing else"
    return "what depends on parameters only"


def _faults(graph: Graph, node: Node) -> Iterator[str]:
    """What differs from the normal form of its operator."""
    x = graph.nodes[node.inputs[0]]
    match node.op:
        case "attention":
            for name in "qkv":
                if len(graph.nodes[node.arguments[name].name].shape) != 3:
                    yield f"{name} has not three axes"
            mask = node.operand("mask")
            if mask is not None and tuple(map(str, graph.nodes[mask].shape)) not in _places(graph, node):
                yield "its mask is neither [queries, keys] nor [heads, queries, keys]"
        case "add" | "mul":
            if x.kind != ON_DEVICE:
                yield "its first operand is no activation"
        case "rope":
            if len(x.shape) < 2 or len(graph.nodes[node.arguments["cos"].name].shape) != 2:
                yield "its tables have not two axes"


def _places(graph: Graph, node: Node) -> list[tuple[str, ...]]:
    """The shapes that a mask may have."""
    q, k = (graph.nodes[node.arguments[name].name].shape for name in "qk")
    shape = str(q[-3]), str(q[-2]), str(k[-2])
    return [shape[1:], shape]
