"""Small modules in place of parts of llava-tiny: mechanisms of models, and look-alikes of what kernels compute."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from compiler.parts import Part

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, FFN = 64, 4, 2, 16, 176
VISION, VISION_HEADS, VISION_FFN, PATCHES, PATCH = 48, 3, 80, 16, 588
Rows = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Case:
    """A module, and what compiling it has to end with.

    part: which one of the model's it replaces; build: the module and its inputs. refusal: what the UserError says (a
    regular expression); empty for one that compiles, which is to say that the verifier has found every pass true to it.
    """

    part: str
    build: Callable[[], Part]
    refusal: str = ""
