"""A module in integers: steps in execution order, and what comes out of it."""

from dataclasses import dataclass, field

from ..graph.ir import Graph
from .steps import Step
from .views import View


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

    def of_kind(self, kind: type) -> list:
        return [step for step in self.steps.values() if isinstance(step, kind)]
