"""A compiled model: its program, and where everything lies."""

from dataclasses import dataclass, field

from hw.spec.config import Config

from .layout import Layout


@dataclass
class Program:
    """Encoded instructions and where its entries start; `entries[name]`: entry, args, tile."""

    words: list[int]
    entries: dict[str, dict]
    operators: dict[int, str] = field(default_factory=dict)
    """pc of every ISSUE -> operator, for people who read a trace."""
    layer_loops: list[tuple[int, int]] = field(default_factory=list)
    """First pc in, and first pc behind, the body of every loop over layers."""
    ahead: set[int] = field(default_factory=set)
    """pcs of ISSUEs that work for the layer behind the one in whose pass of the loop they are."""

    def operator_changes(self) -> list[tuple[int, str]]:
        """pc of every ISSUE that is for another operator than the ISSUE before it, and that operator."""
        changes: list[tuple[int, str]] = []
        for pc, name in sorted(self.operators.items()):
            if not changes or changes[-1][1] != name:
                changes.append((pc, name))
        return changes


@dataclass
class Compiled:
    """A model on a configuration: what a container stores."""

    layout: Layout
    program: Program

    @property
    def config(self) -> Config:
        return self.layout.config
