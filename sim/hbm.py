"""`hw.spec.hbm`, compiled: the definition is plain Python, because hw/spec imports the standard library only."""

from fractions import Fraction

import numpy as np
from numba.extending import register_jitable

from hw.spec import hbm
from sim.compiled import njit

for _function in (
    hbm.slot_of,
    hbm.cycle_of,
    hbm.bank_of,
    hbm.row_of,
    hbm._free_column,
    hbm._free_activate,
    hbm.place,
    hbm.commit,
    hbm._drain,
    hbm._goes_on,
    hbm._differ,
    hbm._banks_differ,
):
    register_jitable(_function)

slot_of = njit(hbm.slot_of)
alike = njit(hbm.alike)
serve = njit(hbm.serve)
place = njit(hbm.place)
commit = njit(hbm.commit)


def new_channel(slots_a_cycle: Fraction) -> np.ndarray:
    """int64[STATE]: a channel at the start of a run."""
    return np.array(hbm.new_channel(slots_a_cycle), np.int64)
