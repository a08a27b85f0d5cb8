"""Means and sums over rows; pooling and resizing of token grids as products with constant matrices."""

import torch
from torch import Tensor

from ..edit import Editor
from ..ir import Node, Ref
from ..sizes import times

POOLS = {
    "avg_pool1d": 1,
    "avg_pool2d": 2,
    "avg_pool3d": 3,
    "adaptive_avg_pool1d": 1,
    "adaptive_avg_pool2d": 2,
    "adaptive_avg_pool3d": 3,
    "upsample_linear1d": 1,
    "upsample_nearest1d": 1,
    "upsample_bilinear2d": 2,
    "_upsample_bilinear2d_aa": 2,
    "_upsample_bicubic2d_aa": 2,
    "upsample_trilinear3d": 3,
    "upsample_nearest3d": 3,
    "upsample_nearest2d": 2,
    "upsample_nearest_exact2d": 2,
    "upsample_bicubic2d": 2,
}
"""Operators that are linear in their input, channel by channel -> axes that they work on."""


def find_reductions(e: Editor) -> None:
    """Means and sums over any axes; axes that are kept come back as a reshape."""
    for node in e.device():
        if node.op not in ("mean", "sum") or node.target is None:
            continue
        source = e.graph.nodes[node.inputs[0]]
        n = len(source.shape)
        dims = node.arguments.get("dim")
        axes = sorted(
            {int(a) % n for a in (range(n) if dims is None else dims if isinstance(dims, list | tuple) else [dims])}
        )
        left = [d for i, d in enumerate(source.shape) if i not in axes]
        if list(node.shape) == left:
            e.turn(node, node.op, x=Ref(source.name), axes=axes)
        else:
            reduced = e.insert(node, "reduced", node.op, left, x=Ref(source.name), axes=axes)
            e.turn(node, "reshape", x=reduced, shape=list(node.shape))


def find_pools(e: Editor) -> None:
    """[.., channels, *grid] -> [grid, channels], the matrix over the grid, and back; a batch counts as channels."""
    for node in e.device():
        if node.target is None or node.op.split(".")[0] not in POOLS:
            continue
        name = next(iter(node.arguments))
        source, axes = e.of(node.arguments[name]), POOLS[node.op]
        if source is None or any(not isinstance(d, int) for d in (*source.shape, *node.shape)):
            continue
        channels = int(times(source.shape[:-axes]))
        grid, out = ([int(d) for d in shape[-axes:]] for shape in (source.shape, node.shape))
        matrix = _matrix(node, name, grid)
        tokens, results = (int(torch.tensor(g).prod()) for g in (grid, out))
        flat = e.insert(node, "flat", "reshape", (channels, tokens), x=Ref(source.name), shape=[channels, tokens])
        rows = e.insert(node, "tokens", "permute", (tokens, channels), x=flat, order=[1, 0])
        weights = e.constant(node, "matrix", _Constant(matrix), (results, tokens))
        mixed = e.insert(node, "mixed", "mix", (results, channels), x=rows, matrix=weights, axis=0)
        back = e.insert(node, "back", "permute", (channels, results), x=mixed, order=[1, 0])
        e.turn(node, "reshape", x=back, shape=list(node.shape))


class _Constant:
    """A function without arguments that gives a tensor."""

    def __init__(self, value: Tensor) -> None:
        self.value = value

    def __call__(self) -> Tensor:
        return self.value


def _matrix(node: Node, name: str, grid: list[int]) -> Tensor:
    """float64[results, tokens]: what the operator makes of every unit grid."""
    tokens = int(torch.tensor(grid).prod())
    units = torch.eye(tokens, dtype=torch.float64).reshape(tokens, 1, *grid)
    if node.op.endswith("1d") or not node.op.startswith("upsample"):
        units = units.reshape(tokens, 1, *grid)
    assert node.target is not None
    with torch.no_grad():
        result = node.target(**(node.arguments | {name: units}))
    return result.reshape(tokens, -1).t().contiguous()
