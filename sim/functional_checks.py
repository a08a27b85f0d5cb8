"""Descriptors at their start, and addresses of many places at once."""

import numpy as np

from hw.spec.config import Config
from hw.spec.errors import InternalError
from hw.spec.isa import WORD_MASK, Error, Unit
from hw.spec.legal import MAX_WORK, control, illegal, max_beats, signed, work
from hw.spec.run import MachineError
from sim.functional_sequencer import Issued


def check(config: Config, entry: Issued) -> None:
    """Raises the MachineError with which the unit would refuse this descriptor."""
    if illegal(config, entry.unit, entry.fields):
        raise MachineError(Error.ILLEGAL_DESCRIPTOR, entry.unit, entry.pc)


def beyond_simulators(config: Config, entry: Issued) -> InternalError:
    """For an instruction that is too large for a simulator to do (`hw.spec.legal`)."""
    unit = Unit(entry.unit)
    most = max_beats(config) if unit == Unit.RD else MAX_WORK
    return InternalError(
        f"{unit.name} at pc {entry.pc} moves {work(unit, entry.fields)} beats, items or words: simulators follow {most}"
    )


def shortened(fields: dict[str, int], names: tuple[str, ...], most: int) -> dict[str, int]:
    """The descriptor with its counts (from the outermost to the innermost) cut to about the first `most` steps."""
    out = dict(fields)
    for name in reversed(names):
        out[name] = min(out[name], most)
        most = -(-most // out[name])
    return out


def spread(base: int, *dimensions: tuple[int, int]) -> np.ndarray:
    """base + sum of index*stride over (count, stride) dimensions, modulo 2**32: int64[counts]."""
    out = np.asarray(base, np.int64)
    for count, stride in dimensions:
        out = out[..., None] + np.arange(count, dtype=np.int64) * signed(stride)
    return out & WORD_MASK


__all__ = ["beyond_simulators", "check", "control", "shortened", "spread"]
