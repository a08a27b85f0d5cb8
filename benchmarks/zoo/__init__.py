"""The zoo: small modules, each with one mechanism of published vision-language models.

They are what a compiler of any module is measured by. `CASES` has them all by name.
"""

from . import decoders, projectors, tokens, vision
from .case import Case

CASES: dict[str, Case] = decoders.CASES | vision.CASES | projectors.CASES | tokens.CASES
"""Every module by its name, decoders first."""

__all__ = ["CASES", "Case"]
