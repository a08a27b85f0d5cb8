"""From the graph to integers: a rule for every operator, found by name in `RULES`.

A rule reads the views of its operands, adds steps and returns the view of its result. What it needs to know about its
surroundings was decided before by `compiler.integer.plan`: the layout that a value's readers want, and the constant
factor that a linear layer or a norm can take over from the attention behind it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hw.spec import numerics as nm
from hw.spec.config import GRANULE_LANES
from hw.spec.errors import UserError
from hw.spec.isa import Fin, Reduce, Row
from ref_model.quantise import QuantLinear, QuantNorm, fixed

from ..graph.ir import CONSTANT, HOST, Dim, Graph, Node
from . import steps as s
from .integers import Form, Integers
from .steps import Array, Layout, Param, Step
from .views import View, is_heads, is_rows, rows_view, tensor

Rule = Callable[["Translator", Node], View]
RULES: dict[str, Rule] = {}
"""The rule of every device operator; files of `compiler.integer.rules` fill it."""


def rule(*operators: str) -> Callable[[Rule], Rule]:
    """Registers the rule of these operators."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(operators, function))
        return function

    return register


def refused(node: Node, reason: str, accepted: str) -> UserError:
    """The message for an operator that the machine cannot execute as it stands."""
    shape = " x ".join(str(d) for d in node.shape) or "scalar"
    where = f", {node.source}" if node.source else ""
    return UserError(f"module {node.module or 'model'}: {node.op} with result [{shape}]{where}: {reason}: {accepted}")


@dataclass
class Plan:
    """What is decided about nodes before they are translated."""

    layouts: dict[str, Layout] = field(default_factory=dict)
    """Of values that some reader wants in groups or in another order."""
    factors: dict[str, float] = field(default_factory=dict)
    """Constant factors that linear layers and norms take over."""


class Translator:
    """The state of one translation.

    constants: values of constant nodes. given: weights that are quantised already, by the path of their module; the
    constants need not have these. takes: inputs that are rows which another entry has left, with the place where they
    are. leaves: places, with the output that other entries find there. forms: of inputs that are state which
    other entries append to, and this one only reads. roles: whether an input that attention elsewhere reads is keys.
    """

    def __init__(
        self,
        graph: Graph,
        plan: Plan,
        constants: Mapping[str, Array],
        given: Mapping[str, QuantLinear | QuantNorm] | None = None,
        takes: Mapping[str, str] | None = None,
        leaves: Mapping[str, str] | None = None,
        forms: Mapping[str, Form] | None = None,
        roles: Mapping[str, bool] | None = None,
    ) -> None:
        self.graph, self.plan, self.constants, self.given = graph, plan, constants, given or {}
        self.takes, self.leaves, self.forms, self.roles = takes or {}, leaves or {}, forms or {}, roles or {}
        self.steps: dict[str, Step] = {}
        self.views: dict[str, View] = {}
        self.holds: dict[str, str] = {}
        """State that a node of the graph stands for."""
        self._made: dict[tuple, str] = {}
        self._node = Node("", "")

    def run(self) -> Integers:
        """Every device node through its rule."""
        for node in self.graph.device():
            self._node = node
            if node.op not in RULES:
                raise refused(node, "the machine has no rule for it", "write it with the operators of docs/howto")
            self.views[node.name] = RULES[node.op](self, node)
        left = {place: self._left(output) for place, output in self.leaves.items()}
        results = {o: self._result(o) for o in self.graph.outputs if o not in self.holds}
        states = {o: self.holds[o] for o in self.graph.outputs if o in self.holds}
        living = self._living([v.base for v in results.values()] + [*states.values()])
        views = {
            node.name: self.views[node.name] for node in self.graph.device() if self.views[node.name].base in living
        }
        self._check_taken(living)
        return Integers(self.graph, living, results, states, views, left)

    def _result(self, name: str) -> View:
        """The view of an output; what the host brought goes through the machine, too."""
        view = self.view(name)
        step = self.steps[view.base]
        if not isinstance(step, s.Input):
            return view
        copied = self.add(s.Joined, step.rows, step.layout, (view.base,), mult=step.mult, name=f"{name}.copied")
        return View(copied, view.axes, view.row, view.channel)

    def _left(self, output: str) -> str:
        """The plain rows of an output, which other entries read."""
        node = self.graph.nodes[output]
        if output in self.holds:
            raise refused(node, "another entry takes it, it is state", "an input of the same name in both entries")
        self.views[output] = self._result(output)
        rows = self.rows(output)
        rows = self.at_mult(self.in_layout(node, output, rows, Layout(1, self.steps[rows].layout.width)))
        self.views[output] = rows_view(rows, node.shape)
        return rows

    def _check_taken(self, living: Mapping[str, Step]) -> None:
        """UserError for rows of another entry that the host would have to read: only the machine has them."""
        kept = {step.node for step in living.values() if isinstance(step, s.Kept)}
        brought = {node for step in living.values() if not isinstance(step, s.Kept) for node in s.nodes_read(step)}
        for name in self.takes:
            where = f"module {self.graph.nodes[name].module}: it takes {name!r} from another entry"
            if any(name in self.graph.ancestors(node) for node in brought):
                raise UserError(f"{where}, and the host needs it for a mask, a table or a list: bring it as an input")
            if name not in kept:
                raise UserError(f"{where}, and no result depends on it: leave it out")

    def _living(self, wanted: list[str]) -> dict[str, Step]:
        """The steps that some result depends on."""
        found: set[str] = set()
        while wanted:
            name = wanted.pop()
            if name not in found:
                found.add(name)
                wanted += self.steps[name].operands
        return {name: step for name, step in self.steps.items() if name in found}

    # --- steps -------------------------------------------------------------------------------------------

    def add(
        self, kind: type[Step], rows: Dim, layout: Layout, *operands, mult: float = 1.0, name: str = "", **more
    ) -> str:
        """A new step; returns its name. The same step twice is one."""
        key: tuple = (kind, str(rows), layout, operands, mult, tuple(more.items()))
        try:
            known = self._made.get(key)
        except TypeError:  # an operand that cannot be compared
            known, key = None, ()
        if known is not None:
            return known
        base = name or f"{self._node.name}.{kind.__name__.lower()}"
        chosen, number = base, 1
        while chosen in self.steps:
            number += 1
            chosen = f"{base}{number}"
        self.steps[chosen] = kind(chosen, rows, layout, *operands, mult=mult, operator=self._node.name, **more)
        if key:
            self._made[key] = chosen
        return chosen

    def then(self, kind: type[Step], x: str, *operands, mult: float | None = None, **more) -> str:
        """A step of the same rows and layout as its first operand."""
        before = self.steps[x]
        return self.add(
            kind, before.rows, before.layout, x, *operands, mult=before.mult if mult is None else mult, **more
        )

    def entry(
        self, x: str, kind: Reduce, fin: Fin = Fin.NONE, entry: str = "", constant: int = 0, whole: bool = True
    ) -> str:
        """A reduction of `x`; whole: one entry a row, else one a group."""
        return self.then(s.Reduction, x, kind, fin, entry, constant, whole, mult=1.0)

    def absmax(self, x: str, whole: bool = True) -> str:
        """Largest magnitudes of rows (or groups), with the factors that bring them to 127."""
        return self.entry(x, Reduce.ABSMAX, Fin.QRECIP, whole=whole)

    def int8(self, x: str, whole: bool = True) -> tuple[str, str]:
        """(int8 rows, entries) of wide rows: 127 stands for the largest magnitude of a row (or of a group)."""
        entry = self.absmax(x, whole)
        return self.then(s.ToInt8, self.then(s.ScaleRows, x, entry, Row.FIN)), entry

    def at_mult(self, x: str, mult: float = 1.0) -> str:
        """The same real values with that multiplier."""
        have = self.steps[x].mult
        return x if have == mult else self.then(s.ScaleAll, x, nm.encode_scale(mult / have), mult=mult)

    def param(self, name: str, array: Array) -> Param:
        return Param(f"{self._node.name}.{name}", array)

    # --- operands ----------------------------------------------------------------------------------------

    def constant(self, name: str) -> Array:
        """float64 values of a constant node."""
        return np.asarray(self.constants[name], np.float64)

    def given_to(self, node: Node) -> Any:
        """What a node's weight was quantised to before; None where it was not."""
        name = node.operand("weight")
        while name is not None and self.graph.nodes[name].op == "flatten":
            name = self.graph.nodes[name].inputs[0]
        return None if name is None else self.given.get(self.graph.nodes[name].weight.removesuffix(".weight"))

    def is_constant(self, name: str | None) -> bool:
        return name is not None and self.graph.nodes[name].kind == CONSTANT

    def is_table(self, name: str | None) -> bool:
        """Whether the host computes it: it is an input of the machine like others."""
        return name is not None and self.graph.nodes[name].kind in (CONSTANT, HOST)

    def view(self, name: str) -> View:
        """Where a node's tensor lies. What comes from the host gets a value of its own, as it is asked for."""
        if name not in self.views:
            self.views[name] = self.brought(self.graph.nodes[name])
        return self.views[name]

    def brought(self, node: Node) -> View:
        """The node's tensor in rows of its own, which are in memory before the program starts."""
        *rows, width = node.shape if node.shape else (1,)
        if not isinstance(width, int):
            raise refused(node, f"its rows have {width} channels", "rows of a constant number of channels")
        if node.name in self.takes:
            plain = Layout(1, int(width))
            base = self.add(
                s.Kept, _flat(node, rows), plain, name=node.name, node=node.name, place=self.takes[node.name]
            )
            return rows_view(base, node.shape)
        layout = self.plan.layouts.get(node.name, Layout(1, int(width)))
        base = self.add(s.Input, _flat(node, rows), layout, name=node.name, node=node.name)
        return rows_view(base, node.shape)

    def rows(self, name: str) -> str:
        """The value whose rows are the node's, all axes but the last one flattened."""
        view = self.view(name)
        step = self.steps[view.base]
        if is_rows(view, step.rows, step.layout.width):
            return view.base
        return self._moved(name).base

    def heads(self, name: str) -> str:
        """The value of which [heads, rows, channels] is a view."""
        view, node = self.view(name), self.graph.nodes[name]
        step = self.steps[view.base]
        heads = 1 if len(node.shape) < 3 else int(node.shape[-3])
        lies = is_heads(_three(view), step.rows, heads, int(node.shape[-1]))
        if lies and (step.layout.groups, step.layout.size) == (heads, node.shape[-1]):
            return view.base
        if isinstance(step, s.Input) and step.plain and len(node.shape) == 3:
            layout = self.plan.layouts.get(name, Layout(heads, int(node.shape[-1])))
            return self.add(s.Input, node.shape[1], layout, node=name, order=(1, 0, 2), name=f"{name}.heads")
        raise refused(
            node, "its heads do not lie side by side in the rows of one value", "split heads by view and transpose"
        )

    def is_input(self, name: str) -> bool:
        """Whether the host brings it, or what it is a view of."""
        view = self.view(name)
        step = self.steps[view.base]
        return isinstance(step, s.Input) and step.plain

    def in_layout(self, reader: Node, name: str, value: str, layout: Layout) -> str:
        """The rows of node `name`, which are `value`'s, in another grouping of the same channels."""
        step = self.steps[value]
        if step.layout == layout:
            return value
        if self.is_input(name):
            return self.add(s.Input, step.rows, layout, node=name, name=f"{name}.grouped")
        if step.layout.width != layout.width or step.layout.order is not None or layout.order is not None:
            raise refused(reader, "the channels of its operands lie in different orders", "operands of the same shape")
        return self.add(s.Regrouped, step.rows, layout, value, mult=step.mult)

    def flat(self, node: Node) -> Dim:
        """The number of rows of a node's tensor, all axes but the last one."""
        return _flat(node, node.shape[:-1])

    def regrouped(self, node: Node, view: View, shape: tuple[int, int], groups: int) -> str:
        """The tensor of a view as rows of pieces, `groups` of them a row."""
        step = self.steps[view.base]
        index, size = pieces(node, places_of(node, view, step), (shape[0] * groups, shape[1] // groups), step)
        if size != shape[1] // groups:
            raise refused(node, "its rows lie in pieces", "rows that were not regrouped before")
        index = index.reshape(shape[0], groups)
        return self.add(s.Rearranged, shape[0], Layout(groups, size), view.base, index=index, mult=step.mult)

    def _moved(self, name: str) -> View:
        """The node's tensor in rows of its own. Views of what the host brings are the host's work."""
        node, view = self.graph.nodes[name], self.views[name]
        step = self.steps[view.base]
        if isinstance(step, s.Input):
            self.views[name] = self.brought(node)
            return self.views[name]
        index, size = pieces(node, places_of(node, view, step), node.shape, step)
        moved = self.add(s.Rearranged, len(index), Layout(index.shape[1], size), view.base, mult=step.mult, index=index)
        self.views[name] = rows_view(moved, node.shape)
        return self.views[name]


def places_of(node: Node, view: View, step: Step) -> Array:
    """Numbers of the operand's channels, counted row by row, in the shape of the view."""
    if any(not isinstance(d, int) for d in (*view.shape, step.rows)):
        raise refused(
            node, "it moves channels between rows of a symbolic number", "constant lengths where rows are regrouped"
        )
    width = step.layout.width
    return tensor(view, np.arange(int(step.rows) * width).reshape(-1, width), {})


def pieces(node: Node, places: Array, shape, step: Step) -> tuple[Array, int]:
    """(int64[rows, pieces a row], channels of a piece) that rows of such places are made of."""
    places = places.reshape(-1, int(shape[-1]))
    size = int(np.gcd.reduce([step.layout.size, places.shape[1], *_run_starts(places)]))
    if step.layout.order is not None or (size % GRANULE_LANES and size != step.layout.size):
        raise refused(
            node,
            f"it moves pieces of {size} channels",
            f"pieces of a multiple of {GRANULE_LANES} channels, or whole rows",
        )
    return places[:, ::size] // size, size


def _run_starts(places: Array) -> list[int]:
    """Where runs of neighbouring channels begin: places in the result's rows, and places in the operand."""
    breaks = np.ones(places.shape, bool)
    breaks[:, 1:] = np.diff(places, axis=1) != 1
    columns = np.nonzero(breaks.any(axis=0))[0]
    return [*columns.tolist(), *np.unique(places[breaks]).tolist()]


def _flat(node: Node, rows) -> Dim:
    """The number of rows that axes make together."""
    symbols = [d for d in rows if not isinstance(d, int)]
    number = int(np.prod([d for d in rows if isinstance(d, int)], initial=1))
    if not symbols:
        return number
    if len(symbols) == 1 and number == 1:
        return symbols[0]
    raise refused(node, "its rows are a product of lengths", "one symbolic length among the axes in front of the last")


def _three(view: View) -> View:
    """With an axis of one head where there are only rows."""
    return view if len(view.axes) > 2 else View(view.base, ((), *view.axes), view.row, view.channel)


def fixed_rows(values: Array, mult: float) -> Array:
    """Real values as wide integers with that multiplier."""
    return fixed(np.asarray(values, np.float64) * mult)
