"""Code generation: the entry points of a model into one program."""

from .kernels import text, vision
from .kernels.builder import Builder
from .layout import Layout
from .program import Program


def generate(layout: Layout) -> Program:
    """Encode `lm`, and `vision` when there is a tower.

    The pipeline of the vision layers is unrolled: what the instruction memory does not hold goes tile by tile.
    """
    for pipelined in (True, False):
        builder = Builder(layout.config, layout.grouped)
        entries = {"lm": text.emit(builder, layout)}
        if layout.model.vision is not None:
            entries["vision"] = vision.emit(builder, layout, pipelined)
        if len(builder.program) <= layout.config.imem_instructions:
            break
    return Program(builder.words(), entries, builder.operators, builder.layer_loops, builder.ahead)
