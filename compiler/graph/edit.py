"""What rewrites use to look at a graph and to change it."""

from collections.abc import Callable, Iterable
from typing import Any

import networkx as nx
import torch

from .ir import CONSTANT, HOST, ON_DEVICE, Graph, Length, Node, Ref, references
from .meaning import values_of

TABLES = {"rope": ("cos", "sin"), "attention": ("mask",), "gather": ("index",), "lookup": ("index",)}
"""Operands that the host computes: device operator -> names."""


class Editor:
    """One graph being rewritten."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    # --- looking -----------------------------------------------------------------------------------------

    def of(self, argument: Any) -> Node | None:
        """The node that an argument refers to."""
        return self.graph.nodes[argument.name] if isinstance(argument, Ref) else None

    def operand(self, node: Node, *names: str) -> Node | None:
        """The node behind the first of these arguments that is there."""
        return next((self.of(node.arguments[name]) for name in names if name in node.arguments), None)

    def is_op(self, argument: Any, *operators: str) -> Node | None:
        """The node that an argument refers to, if its operator is one of these, torch's or the device's."""
        node = self.of(argument) if not isinstance(argument, Node) else argument
        return node if node is not None and node.op in operators else None

    def form(self, argument: Any, *operators: str) -> Node | None:
        """The node that an argument refers to, if it is one of these operators of the device."""
        node = self.is_op(argument, *operators)
        return node if node is not None and node.target is None else None

    def single(self, node: Node) -> bool:
        """Whether one node reads it, and the module does not return it."""
        return len(self.graph.users(node.name)) == 1 and node.name not in self.graph.outputs

    def is_constant(self, argument: Any) -> bool:
        """Whether an argument refers to a node that depends on parameters and literals only."""
        node = self.of(argument)
        return node is not None and node.kind == CONSTANT

    def number_of(self, argument: Any) -> float | None:
        """A number, or the value of a constant of one element without axes that depends on no parameter."""
        node = self.of(argument)
        if node is None:
            return number(argument)
        if node.kind != CONSTANT or node.shape != () or self.has_parameters(node):
            return None
        return float(values_of(self.graph, [node.name], {}, {})[node.name])

    def has_parameters(self, node: Node) -> bool:
        """Whether its value depends on parameters, which are other ones when the graph is checked."""
        assert self.graph.module is not None
        parameters = {name for name, _ in self.graph.module.named_parameters(remove_duplicate=False)}
        return any(self.graph.nodes[name].weight in parameters for name in self.graph.ancestors(node.name))

    def may_be_table(self, table: Ref, x: Ref) -> bool:
        """Whether no input reaches the first value that reaches the other one too, except through tables."""
        return not set(self.graph.inputs) & self._behind_activations(table.name) & self._behind_activations(x.name)

    def _behind_activations(self, name: str) -> set[str]:
        """The nodes that it depends on, itself among them; those are left out that only make tables."""
        found, waiting = {name}, [name]
        while waiting:
            node = self.graph.nodes[waiting.pop()]
            tables = TABLES.get(node.op, ()) if node.target is None else ()
            kept = [value for argument, value in node.arguments.items() if argument not in tables]
            new = [ref.name for value in kept for ref in references(value) if ref.name not in found]
            found.update(new)
            waiting += new
        return found

    def may_be_negative(self, index: Ref) -> bool:
        """Whether a constant has negative values; what the host is given must have none."""
        node = self.graph.nodes[index.name]
        if node.kind != CONSTANT or self.has_parameters(node):
            return False
        return bool((values_of(self.graph, [node.name], {}, {})[node.name] < 0).any())

    def device(self) -> list[Node]:
        """The device's nodes as they are now, in order: a rewrite may change the graph meanwhile."""
        return list(self.graph.device())

    # --- changing ----------------------------------------------------------------------------------------

    def turn(self, node: Node, op: str, **arguments: Any) -> None:
        """The node becomes a device operator."""
        node.op, node.target = op, None
        node.arguments = {name: value for name, value in arguments.items() if value is not None}

    def bypass(self, node: Node, by: Node) -> None:
        """Whoever reads `node` reads `by` instead."""
        for user in self.graph.users(node.name):
            user.arguments = {name: _renamed(value, node.name, by.name) for name, value in user.arguments.items()}
        self.graph.outputs = tuple(by.name if name == node.name else name for name in self.graph.outputs)

    def insert(
        self, before: Node, name: str, op: str, shape: Iterable, kind: str = ON_DEVICE, target=None, /, **arguments: Any
    ) -> Ref:
        """A new node ahead of another one, from the same place in the user's code."""
        chosen, number = f"{before.name}.{name}", 1
        while chosen in self.graph.nodes:
            number += 1
            chosen = f"{before.name}.{name}{number}"
        made = Node(chosen, op, arguments, tuple(shape), kind, target, module=before.module, source=before.source)
        nodes = {}
        for key, node in self.graph.nodes.items():
            if key == before.name:
                nodes[chosen] = made
            nodes[key] = node
        self.graph.nodes = nodes
        return Ref(chosen)

    def insert_behind(self, after: Node, name: str, op: str, shape: Iterable, /, **arguments: Any) -> Ref:
        """A new device node behind another one."""
        names = list(self.graph.nodes)
        following = self.graph.nodes[names[names.index(after.name) + 1]]
        return self.insert(following, f"{after.name}.{name}", op, shape, **arguments)

    def fill(self, node: Node, value: float, dtype: torch.dtype | None = None) -> None:
        """The node becomes a tensor of one value, which depends on lengths only."""
        node.op, node.target = "full", torch.full
        node.arguments = {"size": list(node.shape), "fill_value": value, "dtype": dtype or torch.float32}

    def constant(self, before: Node, name: str, function: Callable, shape: Iterable, /, **arguments: Any) -> Ref:
        """A new constant, computed by a function of constants."""
        return self.insert(before, name, name, shape, CONSTANT, function, **arguments)


def _renamed(argument: Any, old: str, new: str) -> Any:
    if isinstance(argument, Ref):
        return Ref(new) if argument.name == old else argument
    return [_renamed(part, old, new) for part in argument] if isinstance(argument, list | tuple) else argument


def classify(graph: Graph) -> None:
    """Kinds of all nodes; an input that only leads to tables is the host's."""
    network = graph.network()
    for node in graph.nodes.values():
        for operand in TABLES.get(node.op, ()) if node.target is None else ():
            source = node.operand(operand)
            others = [r for name in node.arguments if name not in TABLES[node.op] for r in [node.operand(name)]]
            if source is not None and source not in others and network.has_edge(source, node.name):
                network.remove_edge(source, node.name)
    results = set(graph.outputs)
    for node in graph.nodes.values():
        if node.op == "parameter":
            node.kind = CONSTANT
        elif node.op == "input":
            reached = nx.descendants(network, node.name) | {node.name}
            whole = node.dtype is not None and not node.dtype.is_floating_point
            node.kind = HOST if whole or not reached & results else ON_DEVICE
        else:
            node.kind = _kind(graph, node)


def _kind(graph: Graph, node: Node) -> str:
    if node.op == "lookup" and node.target is None:
        return ON_DEVICE  # its rows are brought like those of an input
    kinds = {graph.nodes[name].kind for name in node.inputs}
    if ON_DEVICE in kinds:
        return ON_DEVICE
    lengths = any(isinstance(d, Length) for d in node.shape) or _mentions_length(node.arguments)
    return HOST if HOST in kinds or lengths else CONSTANT


def _mentions_length(argument: Any) -> bool:
    if isinstance(argument, dict):
        return any(_mentions_length(value) for value in argument.values())
    if isinstance(argument, list | tuple):
        return any(_mentions_length(part) for part in argument)
    return isinstance(argument, Length)


def number(argument: Any) -> float | None:
    """A number that is no tensor and no length."""
    return float(argument) if isinstance(argument, int | float) and not isinstance(argument, bool) else None


def axis_of(node_shape: tuple, axis: int) -> int:
    """An axis counted from the first one."""
    return axis % max(1, len(node_shape))
