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


@dataclass
class Compiled:
    """A model on a configuration: what a container stores."""

    layout: Layout
    program: Program

    @property
    def config(self) -> Config:
        return self.layout.config
