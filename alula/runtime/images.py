"""The machine's memory before the first run: program, tables and weights, from a model or from a container."""

from collections.abc import Iterable

from compiler import pack
from compiler.container import Container
from compiler.program import Compiled
from hw.spec.config import BEAT_BYTES, Config
from sim.memory_image import MemoryImage

from . import timing_only


def model_image(compiled: Compiled, quant) -> MemoryImage:
    """Memory of a compiled model. quant: a `ref_model.quantise.QuantModel`; None for runs that only measure time, which
    need no values."""
    if quant is None:
        return timing_only.image(compiled.layout, compiled.program.words)
    return _attached(compiled.config, pack.pieces(compiled.layout, quant, compiled.program.words))


def container_image(container: Container, config: Config) -> MemoryImage:
    """Memory of a container's model, weights attached from the file without copying; UserError for another
    configuration than the one it was compiled for."""
    return _attached(config, container.pieces(config))


def _attached(config: Config, pieces: Iterable[pack.Piece]) -> MemoryImage:
    memory = MemoryImage(config)
    for port, beat, data in pieces:
        memory.attach(port, beat * BEAT_BYTES, data)
    return memory


__all__ = ["container_image", "model_image"]
