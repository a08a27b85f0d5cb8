"""LLaVA in integers, written by hand: the oracle that the golden model of `alula.golden` is held against.

Written from docs/machine.md ("Operators as passes") on NumPy integers; it knows nothing of graphs, instructions,
buffers, tiles or units.
"""

from .model import GoldenText, GoldenVision

__all__ = ["GoldenText", "GoldenVision"]
