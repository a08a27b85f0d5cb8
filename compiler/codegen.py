"""Code generation: the entry points of a model into one program."""

from .host import Program
from .kernels import text, vision
from .kernels.builder import Builder
from .layout import Layout


def generate(layout: Layout) -> Program:
    """Encode `lm`, and `vision` when there is a tower."""
    builder = Builder(layout.config)
    entries = {"lm": text.emit(builder, layout)}
    if layout.model.vision is not None:
        entries["vision"] = vision.emit(builder, layout)
    return Program(builder.words(), entries, builder.operators)
