"""A module in integers: steps in execution order, and what comes out of it."""

from dataclasses import dataclass, field

from ..graph.ir import Graph
from .steps import Hold, Layout, Step
from .views import View


@dataclass(frozen=True)
class Form:
    """How keys or values are held: key: keys, else values; mult: see `steps`."""

    key: bool
    layout: Layout
    mult: float

    def __str__(self) -> str:
        kind, turned = "keys" if self.key else "values", "" if self.layout.order is None else ", rotated"
        return f"{kind} of {self.layout.groups} x {self.layout.size} channels{turned} times {self.mult:g}"


@dataclass
class Integers:
    """A module in integers: steps in execution order, and what comes out of it."""

    graph: Graph
    steps: dict[str, Step]
    results: dict[str, View]
    """Outputs of the graph as views of values; those that are state have no view."""
    states: dict[str, str]
    """Outputs that are state: the name of the `Hold` step."""
    views: dict[str, View]
    """Every node of the graph that is computed, as a view of a value."""
    left: dict[str, str] = field(default_factory=dict)
    """Values that other entries read, by the place where they are left."""

    def held(self) -> dict[str, list[Hold]]:
        """The steps that append to an input, by its name: mostly one."""
        found: dict[str, list[Hold]] = {}
        for hold in self.of_kind(Hold):
            if hold.past:
                found.setdefault(self.steps[hold.past].node, []).append(hold)  # type: ignore[attr-defined]
        return found

    def forms(self) -> dict[str, Form]:
        """How state is held that this entry appends to, by the name of the input."""
        return {name: Form(hold.key, hold.layout, hold.mult) for name, (hold, *_) in self.held().items()}

    def of_kind(self, kind: type) -> list:
        return [step for step in self.steps.values() if isinstance(step, kind)]
