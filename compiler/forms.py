"""What the kernels of each part of a model take: which operators, and in which order."""

from collections.abc import Sequence

from hw.spec.errors import UserError

from . import ir

LAYER = "norm, attention, residual, norm, mlp, residual"
FORMS = {
    "layer": f"{LAYER}; the attention causal, over a cache",
    "head": "rms norm, linear without bias",
    "stem": "linear, tokens, and a norm or none",
    "vision_layer": f"{LAYER}; the attention over the rows themselves",
    "projector": "mlp without a gate, linear",
}


def check(found: dict[str, list[ir.Fused]]) -> None:
    """UserError for a part of another form, or parts whose widths do not fit together."""
    for name, ops in found.items():
        if not _fits(name, ops):
            shown = ", ".join(_shown(op) for op in ops)
            raise UserError(
                f"module {name}: its operators are {shown}; kernels take {FORMS[name]}: write it in that "
                "form, or add kernels for this one"
            )
    _check_widths(found)


def _fits(part: str, ops: Sequence[ir.Fused]) -> bool:
    match part, ops:
        case "layer" | "vision_layer", [
            ir.Norm(),
            ir.Attention() as attention,
            ir.Residual(),
            ir.Norm(),
            ir.GatedMlp() | ir.PlainMlp(),
            ir.Residual(),
        ]:
            return attention.causal == (part == "layer")
        case "head", [ir.Norm(kind="rms"), ir.Linear(bias=False)]:
            return True
        case "stem", [ir.Linear(), ir.Tokens()] | [ir.Linear(), ir.Tokens(), ir.Norm()]:
            return True
        case "projector", [ir.PlainMlp(), ir.Linear()]:
            return True
    return False


def _check_widths(parts: dict[str, list]) -> None:
    """The rows that a part leaves are those that the next one takes."""
    widths = [("layer", parts["layer"][0].width, "head", parts["head"][0].width)]
    if "stem" in parts:
        projector = parts["projector"]
        widths += [
            ("stem", parts["stem"][0].n_out, "vision_layer", parts["vision_layer"][0].width),
            ("vision_layer", parts["vision_layer"][0].width, "projector", projector[0].fc.n_in),
            ("projector", projector[1].n_out, "layer", parts["layer"][0].width),
        ]
    for first, given, second, taken in widths:
        if given != taken:
            raise UserError(f"module {second}: its rows are {taken} wide, those of {first} {given}: make them equal")


def _shown(op: ir.Fused) -> str:
    match op:
        case ir.Norm():
            return f"{op.kind} norm"
        case ir.Attention():
            return f"{'causal ' if op.causal else ''}attention"
        case ir.GatedMlp():
            return "gated mlp"
        case ir.PlainMlp():
            return f"mlp with {op.func}"
        case ir.Linear():
            return "linear with bias" if op.bias else "linear"
    return type(op).__name__.lower()
