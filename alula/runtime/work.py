"""The useful work of each phase, in multiply-accumulates: what a run's cycles are held against."""

from collections.abc import Sequence

from compiler import ir
from compiler.layout import MODULES, Layout
from ref_model.mask import BlockMask
from ref_model.reduction import Reduction, tokens_by_layer


def _linear_macs(layout: Layout, prefix: str, ops: list, tokens: Sequence[int], sparse: bool) -> int:
    """Multiply-accumulates in the linear layers of as many layers as there are counts of tokens; sparse: only with
    weights in streams."""
    linears = ir.linears(ops)
    if not sparse:
        return sum(tokens) * sum(op.n_in * op.n_out for op in linears)
    names = [(n, MODULES[prefix].format(i) + op.name, op) for i, n in enumerate(tokens) for op in linears]
    return round(sum(n * layout.sizes.shares[name] * op.n_in * op.n_out for n, name, op in names))


def text_macs(
    layout: Layout,
    n: int,
    start: int = 0,
    layers: int | None = None,
    head: bool = True,
    mask: BlockMask | None = None,
    sparse: bool = False,
    reduction: Reduction | None = None,
) -> int:
    """Multiply-accumulates of n tokens after `start` cached ones: linear layers, and two products a query and key.

    mask: only keys of present tiles count. Example: 1 token after 10 cached ones attends to 11 keys.
    sparse: of linear layers only those with weights that are in the streams. reduction: layers see fewer tokens.
    """
    text = layout.model.text
    count = text.n_layers if layers is None else layers
    attention = next(op for op in text.layer if isinstance(op, ir.Attention))
    tokens = tokens_by_layer(reduction, n, count)
    keys = sum(t * start + t * (t + 1) // 2 if mask is None else mask.pairs(start, t) for t in tokens)
    share = layout.sizes.shares[text.head.name] if sparse else 1
    return (
        _linear_macs(layout, "text", text.layer, tokens, sparse)
        + 2 * keys * attention.heads * attention.head_dim
        + head * round(share * text.head.n_in * text.head.n_out)
    )


def operator_shares(layout: Layout, phase: str, layers: int) -> dict[str, float]:
    """Share of a linear layer's products whose weights are in the streams, by operator: the mean over `layers` layers.

    Operators that share a weight stream have the share of both together.
    """
    if phase == "vision":
        sections = {"vision": layout.tower.layer, "stem": layout.tower.stem, "projector": layout.tower.projector}
        count = layout.tower.n_layers
    else:
        sections, count = {"text": layout.model.text.layer}, layers
    shares: dict[str, float] = {}
    for prefix, ops in sections.items():
        for stream in layout.geo.streams(ops):
            names = [[MODULES[prefix].format(i) + op.name for i in range(count)] for op in stream]
            sizes = [op.n_in * op.n_out for op in stream]
            kept = sum(
                size * sum(layout.sizes.shares[name] for name in mine) / count
                for mine, size in zip(names, sizes, strict=True)
            )
            shares |= dict.fromkeys([op.name for op in stream], kept / sum(sizes))
    head = layout.model.text.head.name
    return shares if phase == "vision" else shares | {head: layout.sizes.shares[head]}


def vision_macs(layout: Layout, layers: int | None = None, sparse: bool = False, features: int | None = None) -> int:
    """Multiply-accumulates of one image: stem, layers, projector of `features` rows (None: all); sparse as in
    `text_macs`."""
    vision = layout.tower
    features = vision.n_patches + (not vision.drop_class) if features is None else features
    return tower_macs(layout, layers, sparse) + projector_macs(layout, features, sparse)


def tower_macs(layout: Layout, layers: int | None = None, sparse: bool = False) -> int:
    """Those of stem and layers."""
    vision = layout.tower
    tokens, count = vision.n_patches + 1, vision.n_layers if layers is None else layers
    attention = next(op for op in vision.layer if isinstance(op, ir.Attention))
    return (
        _linear_macs(layout, "vision", vision.layer, [tokens] * count, sparse)
        + count * 2 * tokens * tokens * attention.heads * attention.head_dim
        + _linear_macs(layout, "stem", vision.stem, [vision.n_patches], sparse)
    )


def projector_macs(layout: Layout, features: int, sparse: bool = False) -> int:
    """Those of the projector on so many rows."""
    return _linear_macs(layout, "projector", layout.tower.projector, [features], sparse)
