"""Views: reshape, permute, slice, expand, cat."""

from ..edit import Editor, axis_of
from ..ir import Dim, Length, Node, Range, Ref
from ..sizes import bounds, from_end, plus

RESHAPES = ("view", "reshape", "_unsafe_view", "flatten", "unflatten", "unsqueeze", "squeeze", "view_as", "reshape_as")
PERMUTATIONS = ("permute", "transpose", "t", "movedim", "swapaxes", "numpy_T", "mT", "adjoint")


def find_views(e: Editor) -> None:
    """torch's many ways to say the same."""
    for node in e.device():
        if node.target is None:
            continue
        if node.op in RESHAPES:
            e.turn(node, "reshape", x=Ref(node.inputs[0]), shape=list(node.shape))
        elif node.op in PERMUTATIONS:
            source = e.graph.nodes[node.inputs[0]]
            e.turn(node, "permute", x=Ref(source.name), order=order_of(node, source))
        elif node.op in ("slice", "narrow", "select"):
            _slice(e, node)
        elif node.op == "getitem":
            _part(e, node)
        elif node.op in ("expand", "expand_as", "broadcast_to"):
            e.turn(node, "expand", x=Ref(node.inputs[0]), shape=list(node.shape))
        elif node.op == "cat":
            _cat(e, node)
        elif node.op == "stack":
            _stack(e, node)
        elif node.op in ("pixel_shuffle", "pixel_unshuffle"):
            _pixels(e, node)
    e.graph.drop_dead()


def _cat(e: Editor, node: Node) -> None:
    """Without empty parts; torch.cat takes one of shape [0] among others of any shape."""
    axis = axis_of(node.shape, node.arguments.get("dim", 0))
    shapes = {part: e.graph.nodes[part.name].shape for part in node.arguments["tensors"]}
    parts = [p for p in node.arguments["tensors"] if shapes[p] != (0,) and shapes[p][axis] != 0]
    if len(parts) == 1:
        e.bypass(node, e.graph.nodes[parts[0].name])
    else:
        e.turn(node, "cat", parts=parts or node.arguments["tensors"], axis=axis)


def order_of(node: Node, source: Node) -> list[int]:
    """The axes of the source, in the order in which a permutation has them."""
    n, a = len(source.shape), node.arguments
    order = list(range(n))
    if node.op == "permute":
        return [int(i) % n for i in a["dims"]]
    if node.op == "movedim":
        from_, to = (list(v) if isinstance(v, list | tuple) else [v] for v in (a["source"], a["destination"]))
        rest = [i for i in order if i not in [int(f) % n for f in from_]]
        for f, t in sorted(zip(from_, to, strict=True), key=lambda pair: int(pair[1]) % n):
            rest.insert(int(t) % n, int(f) % n)
        return rest
    if node.op in ("transpose", "swapaxes"):
        first, second = (int(v) % n for v in list(a.values())[1:3])
    else:
        first, second = (n - 2, n - 1) if n > 1 else (0, 0)
    order[first], order[second] = order[second], order[first]
    return order


def _slice(e: Editor, node: Node) -> None:
    source, a = e.graph.nodes[node.inputs[0]], node.arguments
    axis = axis_of(source.shape, int(a.get("dim", 0)))
    size, step = source.shape[axis], a.get("step", 1)
    if node.op == "select":
        if size == 1:
            e.turn(node, "reshape", x=Ref(source.name), shape=list(node.shape))
            return
        start = from_end(a["index"], size)
        stop = plus(start, 1)
        shape = [1 if i == axis else d for i, d in enumerate(source.shape)]
        part = e.insert(node, "part", "slice", shape, x=Ref(source.name), axis=axis, start=start, stop=stop, step=1)
        e.turn(node, "reshape", x=part, shape=list(node.shape))
        return
    if node.op == "narrow":
        start, stop = bounds(a["start"], plus(from_end(a["start"], size), a["length"]), size)
    else:
        start, stop = bounds(_from_start(e, a.get("start"), size), _from_start(e, a.get("end"), size), size)
    if start == 0 and stop == size and step == 1:
        e.bypass(node, source)
        return
    e.turn(node, "slice", x=Ref(source.name), axis=axis, start=start, stop=stop, step=step)


def _from_start(e: Editor, place: Dim | None, size: Dim) -> Dim | None:
    """A place that counts from the end at all lengths, as -n does, counted from the start."""
    if not isinstance(place, Length):
        return place
    limits = e.graph.lengths.items()
    ends = [place.at({symbol: at(range_) for symbol, range_ in limits}) for at in (_least, _most)]
    return plus(size, place) if max(ends) < 0 else place


def _least(limits: Range) -> int:
    return limits.least


def _most(limits: Range) -> int:
    return limits.most


def _part(e: Editor, node: Node) -> None:
    """One of several results: a part of chunk and split, a place of unbind."""
    source = e.graph.nodes[node.inputs[0]]
    if source.op not in ("chunk", "split", "split_with_sizes", "unbind", "tensor_split"):
        return
    whole, index = e.graph.nodes[source.inputs[0]], int(node.arguments["index"])
    axis = axis_of(whole.shape, int(source.arguments.get("dim", 0)))
    size = whole.shape[axis]
    if source.op == "unbind":
        shape = [1 if i == axis else d for i, d in enumerate(whole.shape)]
        part = e.insert(node, "part", "slice", shape, x=Ref(whole.name), axis=axis, start=index, stop=index + 1, step=1)
        e.turn(node, "reshape", x=part, shape=list(node.shape))
        return
    if not isinstance(size, int):
        return
    sizes = _sizes(source, size)
    if sizes is None:
        return
    start = sum(sizes[:index])
    e.turn(node, "slice", x=Ref(whole.name), axis=axis, start=start, stop=start + sizes[index], step=1)


def _sizes(node: Node, size: int) -> list[int] | None:
    """The lengths of the parts of an axis."""
    a = node.arguments
    if node.op == "split_with_sizes":
        return [int(s) for s in a["split_sizes"]]
    if node.op == "tensor_split":
        if not isinstance(a.get("sections"), int):
            return None
        count = a["sections"]
        return [size // count + (at < size % count) for at in range(count)]
    each = -(-size // int(a["chunks"])) if node.op == "chunk" else int(a["split_size"])
    return [min(each, size - at) for at in range(0, size, each)]


def _pixels(e: Editor, node: Node) -> None:
    """Squares of r x r pixels from channels, or into channels: two reshapes with a permutation between them."""
    source = e.graph.nodes[node.inputs[0]]
    if any(not isinstance(d, int) for d in source.shape):
        return
    *lead, channels, height, width = (int(d) for d in source.shape)
    at = len(lead)
    if node.op == "pixel_shuffle":
        r = int(node.arguments["upscale_factor"])
        split, order = [*lead, channels // r**2, r, r, height, width], [0, 3, 1, 4, 2]
    else:
        r = int(node.arguments["downscale_factor"])
        split, order = [*lead, channels, height // r, r, width // r, r], [0, 2, 4, 1, 3]
    order = [*range(at), *(at + i for i in order)]
    squares = e.insert(node, "squares", "reshape", split, x=Ref(source.name), shape=split)
    moved = e.insert(node, "moved", "permute", [split[i] for i in order], x=squares, order=order)
    e.turn(node, "reshape", x=moved, shape=list(node.shape))


def _stack(e: Editor, node: Node) -> None:
    axis = axis_of(node.shape, int(node.arguments.get("dim", 0)))
    shape = [1 if i == axis else d for i, d in enumerate(node.shape)]
    parts = [e.insert(node, "row", "reshape", shape, x=part, shape=shape) for part in node.arguments["tensors"]]
    e.turn(node, "cat", parts=parts, axis=axis)
