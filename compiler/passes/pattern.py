"""Patterns over the graph: what a pass looks for, said completely.

`op("gelu", self=op("linear", x=value("x")))` matches a gelu whose operand is a linear layer. An argument that a pattern
does not name has to be absent from the node, which is to say at its default: a pattern cannot overlook a scale, an
alpha or an axis. Sums and products match in either order of their operands.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from .. import ir
from ..ir import Ref

COMMUTE = {"add": ("self", "other"), "mul": ("self", "other")}
ABSENT = object()


@dataclass(frozen=True)
class Value:
    """Any tensor; wherever the name occurs it has to be the same one. of: what the node has to be, if not anything."""

    name: str
    of: str = ""


@dataclass(frozen=True)
class Constant:
    """Anything that is no tensor. default: what it is where the node does not name it."""

    name: str
    default: Any = ABSENT


@dataclass(frozen=True)
class Operator:
    """A node of that op with exactly these arguments; bound as `name` if there is one."""

    op: str
    arguments: dict[str, Any]
    name: str = ""

    def named(self, name: str) -> "Operator":
        return replace(self, name=name)


@dataclass(frozen=True)
class Optional:
    """The argument may be absent; then nothing is bound."""

    pattern: Any


@dataclass(frozen=True)
class Either:
    """The first of several patterns that matches."""

    patterns: tuple


def op(name: str, **arguments: Any) -> Operator:
    return Operator(name, arguments)


def value(name: str) -> Value:
    return Value(name)


def parameter(name: str) -> Value:
    return Value(name, "parameter")


def constant(name: str, default: Any = ABSENT) -> Constant:
    return Constant(name, default)


def either(*patterns: Any) -> Either:
    return Either(patterns)


Bound = dict[str, Any]
"""Names of a pattern: nodes, or the constants' values."""


def find(graph: ir.Graph, node: ir.Node, pattern: Operator) -> Bound | None:
    """What the pattern's names stand for if it matches at `node`; else None, and the node remembers the reason."""
    if node.op != pattern.op:
        return None
    search = _Search(graph)
    for bound in search.match(Ref(node.name), pattern, {}):
        return bound
    node.reason = search.reason or node.reason
    return None


class _Search:
    """One attempt; `reason`: the last argument that was in the way."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph, self.reason = graph, ""

    def match(self, argument: Any, pattern: Any, bound: Bound) -> Iterator[Bound]:
        """Every way in which the argument matches, as the names bound."""
        match pattern:
            case Operator():
                yield from self._operator(argument, pattern, bound)
            case Value():
                node = self.graph.nodes[argument.name] if isinstance(argument, Ref) else None
                if node is not None and pattern.of in ("", node.op):
                    yield from self._bind(pattern.name, node, bound)
                elif pattern.of:
                    self.reason = f"its {pattern.name} is no {pattern.of}"
            case Constant():
                if not any(ir.references(argument)):
                    yield from self._bind(pattern.name, argument, bound)
            case Optional():
                yield from self.match(argument, pattern.pattern, bound)
            case Either():
                for choice in pattern.patterns:
                    yield from self.match(argument, choice, bound)
            case list():
                if isinstance(argument, list) and len(argument) == len(pattern):
                    yield from self._all(list(zip(argument, pattern, strict=True)), bound)
                else:
                    self.reason = f"there are {len(argument)} tensors, {len(pattern)} is what there is a kernel for"
            case _:
                if argument == pattern:
                    yield bound

    def _bind(self, name: str, found: Any, bound: Bound) -> Iterator[Bound]:
        if name not in bound:
            yield bound | {name: found}
        elif bound[name] is found or bound[name] == found:
            yield bound

    def _operator(self, argument: Any, pattern: Operator, bound: Bound) -> Iterator[Bound]:
        node = self.graph.nodes[argument.name] if isinstance(argument, Ref) else None
        if node is None or node.op != pattern.op:
            return
        for arguments in _orders(node):
            if self._complete(node, arguments, pattern):
                pairs = [(arguments[name], each) for name, each in pattern.arguments.items() if name in arguments]
                defaults = {
                    each.name: each.default
                    for name, each in pattern.arguments.items()
                    if isinstance(each, Constant) and name not in arguments
                }
                named = {pattern.name: node} if pattern.name else {}
                yield from self._all(pairs, bound | defaults | named)

    def _complete(self, node: ir.Node, arguments: dict[str, Any], pattern: Operator) -> bool:
        """Whether node and pattern name the same arguments, constants of them equal."""
        for name, found in arguments.items():
            wanted = pattern.arguments.get(name, ABSENT)
            if wanted is ABSENT or (isinstance(wanted, int | float | str) and found != wanted):
                shown = "a tensor" if isinstance(found, Ref) else repr(found)
                self.reason = f"{name} of {node.name} is {shown}" + (
                    "" if wanted is ABSENT else f", {wanted!r} is what there is a kernel for"
                )
                return False
        missing = [
            name
            for name, each in pattern.arguments.items()
            if name not in arguments
            and not (isinstance(each, Optional) or (isinstance(each, Constant) and each.default is not ABSENT))
        ]
        if missing:
            self.reason = f"{node.name} has no {missing[0]}"
        return not missing

    def _all(self, pairs: list[tuple[Any, Any]], bound: Bound) -> Iterator[Bound]:
        if not pairs:
            yield bound
            return
        (argument, pattern), *rest = pairs
        for found in self.match(argument, pattern, bound):
            yield from self._all(rest, found)


def _orders(node: ir.Node) -> Iterator[dict[str, Any]]:
    """The node's arguments, and with its operands exchanged where that changes nothing."""
    yield node.arguments
    names = COMMUTE.get(node.op, ())
    if names and all(isinstance(node.arguments.get(name), Ref) for name in names):
        first, second = names
        yield node.arguments | {first: node.arguments[second], second: node.arguments[first]}
