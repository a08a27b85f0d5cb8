"""What the pipeline hands to layout and kernels: fused operators of each part of a model."""

from dataclasses import dataclass, field

from . import ir


@dataclass
class TextIr:
    """`layer`: one decoder layer, repeated n_layers times; `head` after `norm` on the last token."""

    hidden: int
    vocab: int
    n_layers: int
    layer: list
    norm: ir.Norm
    head: ir.Linear


@dataclass
class VisionIr:
    """`stem`: [patch Linear], and a pre Norm where there is one; `projector`: [Linear, Linear];
    drop_class selects the features.

    tiles: most images of one picture (LLaVA-NeXT: the newline token's row follows their features).
    """

    n_patches: int
    layer_width: int
    n_layers: int
    stem: list
    layer: list
    projector: list
    projector_func: str = "gelu"
    drop_class: bool = True
    tiles: int = 1


@dataclass
class ModelIr:
    name: str
    text: TextIr
    vision: VisionIr | None = None
    notes: list[str] = field(default_factory=list)
