"""Bytes a weight that a decode step streams, at every precision, and whether the front keeps up."""

from benchmarks.depends import TIMING
from benchmarks.linear_layer import LinearLayer, Shape, weights
from hw.spec.config import BLOCK, get
from hw.spec.memory import MemoryModel
from hw.spec.weights import BITS, index_beats
from sim.registry import backend

DEPENDS = (*TIMING, "benchmarks/linear_layer.py", "machine:u280")
FORMATS = ((8, 16), (4, 16), (3, 16), (2, 16), (4, 8))
"""(bits, non-zeros of 16)."""
SHAPES = ((4096, 4096), (11008, 4096), (4096, 11008))
"""(n_in, n_out) of LLaVA-1.5-7B's decoder layer: attention, down, gate and up."""


def measure() -> dict:
    """One entry a format, on `u280`, one token."""
    return {
        "what": "one token through each linear layer of LLaVA-1.5-7B on u280; bytes of the stream over all units, "
        "headers, scales and padding included. 11008 outputs are 21.5 steps of 512: the rest is padding",
        "memory": "fixed latency",
        "runs": [_one(shape, *form) for shape in SHAPES for form in FORMATS],
    }


def index_bits(nonzeros: int) -> float:
    """Mask or index bits a weight of the dense matrix: the smaller of a 16-bit mask and 4-bit indices."""
    return min(BLOCK, 4 * nonzeros) / BLOCK if nonzeros < BLOCK else 0.0


def _one(shape: tuple[int, int], bits: int, nonzeros: int) -> dict:
    assert bits in BITS and index_beats(nonzeros) >= 0
    machine = get("u280")
    n_in, n_out = shape
    linear = LinearLayer(machine, Shape(1, n_in, n_out, 1), weights(n_out, n_in, bits, nonzeros), late=True)
    image, _ = linear.image()
    result = backend("cycle", model=MemoryModel.of(machine, "fixed")).run(machine, image, linear.invocation())
    stream_bytes = linear.data.nbytes
    count = n_in * n_out
    ideal = count * (bits * nonzeros / BLOCK + index_bits(nonzeros)) / 8
    return {
        "config": "u280",
        "n_in": n_in,
        "n_out": n_out,
        "bits": bits,
        "nonzeros_of_16": nonzeros,
        "bytes_a_weight": stream_bytes / count,
        "payload_and_index_bytes_a_weight": ideal / count,
        "overhead": stream_bytes / ideal,
        "unpack_stall_cycles": result.counters["unpack_stall"],
        "weight_stall_cycles": result.counters["mx_weight_stall"],
        "cycles": result.cycles,
        "stream_beats": linear.stream_beats,
    }
