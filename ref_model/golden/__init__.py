"""The integer golden model: what the hardware must say, bit for bit.

Written from docs/machine.md ("Operators as passes") on NumPy integers; it knows nothing of instructions,
buffers, tiles or units.
"""

from .model import GoldenText, GoldenVision

__all__ = ["GoldenText", "GoldenVision"]
