"""Choices between two values that the host makes: where, masked_fill."""

from math import inf

import torch
from torch import Tensor

from ..edit import Editor, number
from ..ir import ON_DEVICE, Node


def find_choices(e: Editor) -> None:
    """Behind attention, which has masks of its own."""
    for node in e.device():
        if node.op in ("where", "masked_fill") and node.target is not None:
            _where(e, node)
    e.graph.drop_dead()


def _where(e: Editor, node: Node) -> None:
    """A choice that the host makes: x times a mask, plus y times what the mask leaves out."""
    if node.op == "where":
        a = node.arguments
        condition, x, y = a["condition"], a["self"], a["other"]
    else:
        condition, y, x = node.arguments["mask"], node.arguments["self"], node.arguments["value"]
    mask = e.of(condition)
    if mask is None or mask.kind == ON_DEVICE or any(number(v) in (inf, -inf) for v in (x, y)):
        return
    parts = []
    for name, value, chosen in (("chosen", x, True), ("others", y, False)):
        target = _as_numbers if chosen else _others_as_numbers
        factor = e.insert(node, name, name, mask.shape, mask.kind, target, mask=condition)
        if number(value) is not None:
            parts.append(
                e.insert(node, f"{name}_value", "times", mask.shape, mask.kind, torch.mul, input=factor, other=value)
            )
        else:
            parts.append(e.insert(node, f"{name}_part", "mul", node.shape, x=value, y=factor))
    device = [part for part in parts if e.graph.nodes[part.name].kind == ON_DEVICE]
    first = device[0] if device else parts[0]
    e.turn(node, "add", x=first, y=parts[1 - parts.index(first)])


def _as_numbers(mask: Tensor) -> Tensor:
    return mask.to(torch.get_default_dtype())


def _others_as_numbers(mask: Tensor) -> Tensor:
    return (~mask).to(torch.get_default_dtype())
