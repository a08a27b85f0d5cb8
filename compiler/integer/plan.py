"""What is decided before a graph is translated: layouts that readers want, factors that producers take over."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from hw.spec import numerics as nm
from ref_model.quantise import QUERY_FACTOR, value_factor

from ..graph.ir import ON_DEVICE, Graph, Node
from .integers import Form
from .steps import Array, Layout
from .translate import Plan

VIEWS = ("reshape", "permute", "slice", "expand")
SAME_CHANNELS = ("add", "mul", "scale", "offset", "activation", "softmax", "norm")
"""Operators whose result has the channels of their operands."""


def make_plan(
    graph: Graph,
    constants: Mapping[str, Array],
    forms: Mapping[str, Form] | None = None,
    roles: Mapping[str, bool] | None = None,
) -> Plan:
    """forms: of state that the graph reads, and that others append to. roles: whether state is keys, by its input."""
    planner = _Planner(graph, constants, roles or {})
    planner.plan.layouts.update({name: form.layout for name, form in (forms or {}).items()})
    # The order of channels that a rotation needs comes first: groups alone leave it open.
    for operator, arrange in (
        ("rope", planner.arrange_rope),
        ("attention", planner.arrange_attention),
        ("append", planner.arrange_state),
        ("norm", planner.arrange_norm),
    ):
        for node in graph.device():
            if node.op == operator:
                arrange(node)
    for node in graph.device():
        if node.op == "attention":
            planner.fold(node)
        elif planner.is_written_only(node) and not planner.roles[node.arguments["past"].name]:
            planner.fold_values(node.name)
    return planner.plan


def paired(size: int, width: int, style: str) -> tuple[int, ...] | None:
    """Channels of a head in an order in which a rotary pair lies side by side; None: as they are."""
    if style != "half":
        return None
    half = width // 2
    return tuple(c for i in range(half) for c in (i, i + half)) + tuple(range(width, size))


def query_factor(attention: Node) -> float:
    """What queries are multiplied with: scores come out in units of log2, with a soft cap c in units of c / 2."""
    softcap = attention.arguments.get("softcap")
    scale = float(attention.arguments["scale"])
    return QUERY_FACTOR * scale if softcap is None else QUERY_FACTOR / nm.LOG2_E * scale * 2 / float(softcap)


class _Planner:
    def __init__(self, graph: Graph, constants: Mapping[str, Array], roles: Mapping[str, bool]) -> None:
        self.graph, self.constants, self.roles, self.plan = graph, constants, roles, Plan()

    def is_written_only(self, node: Node) -> bool:
        """Whether it appends to state that only other entries read."""
        return node.op == "append" and node.arguments["past"].name in self.roles and not self.graph.users(node.name)

    # --- layouts -----------------------------------------------------------------------------------------

    def arrange_norm(self, node: Node) -> None:
        """A norm over parts of a row wants these parts as groups."""
        view = self.graph.nodes[node.arguments["x"].name]
        source = self.graph.nodes[view.inputs[0]] if view.op == "reshape" else view
        if source is not view and source.shape and isinstance(source.shape[-1], int):
            groups, rest = divmod(source.shape[-1], int(view.shape[-1]))
            if groups > 1 and not rest:
                self._arrange(view.name, Layout(groups, int(view.shape[-1])))

    def arrange_rope(self, node: Node) -> None:
        a, heads = node.arguments, int(node.shape[-3]) if len(node.shape) > 2 else 1
        size = int(node.shape[-1])
        self._arrange(a["x"].name, Layout(heads, size, paired(size, int(a["width"]), a["style"])))

    def arrange_attention(self, node: Node) -> None:
        """Heads are groups. Queries and keys meet channel by channel: what rotates one of them orders both."""
        names = {operand: node.arguments[operand].name for operand in "qkv"}
        shapes = {operand: self.graph.nodes[name].shape for operand, name in names.items()}
        plain = {operand: Layout(int(shape[-3]), int(shape[-1])) for operand, shape in shapes.items()}
        orders = [self._order_of(names[operand], plain[operand]).order for operand in "qk"]
        order = next((each for each in orders if each is not None), None)
        for operand, name in names.items():
            self._arrange(name, replace(plain[operand], order=None if operand == "v" else order))

    def arrange_state(self, node: Node) -> None:
        """Heads are groups, as for the attention that reads them elsewhere."""
        if self.is_written_only(node):
            plain = Layout(int(node.shape[-3]), int(node.shape[-1]))
            key = self.roles[node.arguments["past"].name]
            self._arrange(node.name, self._order_of(node.name, plain) if key else plain)

    def _arrange(self, name: str, layout: Layout) -> None:
        """The value behind a node gets the layout, and so do those that it is computed from channel by channel."""
        node = self.graph.nodes[name]
        if node.kind != ON_DEVICE:
            return
        if node.op in VIEWS or node.op == "rope":
            self._arrange(node.inputs[0], layout)
        elif node.op == "append":
            self._arrange(node.arguments["new"].name, layout)
        elif node.op in SAME_CHANNELS:
            for operand in ("x", "y"):
                source = node.operand(operand)
                if source is not None:
                    self._arrange(source, layout)
        elif self._has_width(name, layout):
            self.plan.layouts.setdefault(name, layout)

    def _order_of(self, name: str, layout: Layout) -> Layout:
        """The layout of heads that may come through a rope: in its order."""
        node = self.graph.nodes[name]
        while node.op in VIEWS or node.op == "append":
            node = self.graph.nodes[node.arguments["new"].name if node.op == "append" else node.inputs[0]]
        if node.op == "rope":
            return Layout(
                layout.groups, layout.size, paired(layout.size, int(node.arguments["width"]), node.arguments["style"])
            )
        return self.plan.layouts.get(node.name, layout) if node.op == "input" else layout

    def _has_width(self, name: str, layout: Layout) -> bool:
        """Whether the node's rows have so many channels: its last axis, or all heads of [heads, rows, channels]."""
        shape = self.graph.nodes[name].shape
        width = shape[-1] if shape else 1
        if width == layout.width:
            return True
        return len(shape) > 2 and (shape[-3], width) == (layout.groups, layout.size)

    # --- factors -----------------------------------------------------------------------------------------

    def fold(self, node: Node) -> None:
        """Queries in units of log2, values below 2**5: producers that nobody else reads take these factors over."""
        producer = self._producer(node.arguments["q"].name, ("linear", "norm"))
        if producer is not None:
            self.plan.factors[producer.name] = query_factor(node)
        self.fold_values(node.arguments["v"].name)

    def fold_values(self, name: str) -> None:
        producer = self._producer(name, ("linear",))
        if producer is not None:
            self.plan.factors[producer.name] = self._value_factor(producer)

    def _producer(self, name: str, wanted: tuple[str, ...]) -> Node | None:
        node = self.graph.nodes[name]
        while True:
            if node.kind != ON_DEVICE or len(self.graph.users(node.name)) > 1:
                return None
            if node.op in wanted:
                return node if node.name not in self.graph.outputs and node.name not in self.plan.factors else None
            if node.op == "append":
                node = self.graph.nodes[node.arguments["new"].name]
            elif node.op in VIEWS or node.op == "rope":
                node = self.graph.nodes[node.inputs[0]]
            else:
                return None

    def _value_factor(self, linear: Node) -> float:
        """See `ref_model.quantise.value_factor`: the inputs have unit variance behind a norm."""
        if linear.arguments["weight"].name not in self.constants:
            return 1.0  # it was quantised before, and took its factor over then
        weight = np.asarray(self.constants[linear.arguments["weight"].name], np.float64)
        bias_node = linear.operand("bias")
        bias = None if bias_node is None else np.asarray(self.constants[bias_node], np.float64)
        before, gain = self.graph.nodes[linear.arguments["x"].name], np.ones(weight.shape[1])
        if before.op == "norm" and before.kind == ON_DEVICE:
            weight_node, added = before.operand("weight"), before.operand("bias")
            gain = gain if weight_node is None else np.asarray(self.constants[weight_node], np.float64)
            if added is not None:
                bias = (0 if bias is None else bias) + weight @ np.asarray(self.constants[added], np.float64)
        return value_factor(weight, gain, bias)
