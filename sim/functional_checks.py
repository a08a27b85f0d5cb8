"""What a unit refuses when it starts a descriptor: zero counts, undefined enumerations, addresses beyond a buffer."""

from enum import IntEnum
from functools import lru_cache
from operator import itemgetter

import numpy as np

from hw.spec.config import Config
from hw.spec.isa import CTL0, CTL1, Dst, Error, LdKind, MxMode, StKind, StMode, StreamFormat, Unit, unpack_bits
from hw.spec.run import MachineError
from sim.functional_sequencer import Issued

MASK = 0xFFFFFFFF
_COUNTS: dict[int, tuple[str, ...]] = {
    Unit.LD: ("n_outer", "n_inner"),
    Unit.ST: ("n_tok", "n_head", "n_gran"),
    Unit.RD: ("n_outer", "n_inner"),
    Unit.MX: ("n_rows", "kb", "ob", "n_outer"),
    Unit.VU: ("n_outer", "n_mid", "n_words"),
}
_MODES: dict[int, dict[str, type[IntEnum]]] = {
    Unit.LD: {"kind": LdKind}, Unit.ST: {"mode": StMode, "kind": StKind}, Unit.RD: {"fmt": StreamFormat},
    Unit.MX: {"mode": MxMode},
}
_COUNTS_OF = [itemgetter(*_COUNTS[unit]) for unit in Unit]
_MODES_OF = [[(name, frozenset(kind)) for name, kind in _MODES.get(unit, {}).items()] for unit in Unit]
_CONTROL: tuple[tuple[str, int, type[int]], ...] = CTL0
_ENUMERATED = [(name, kind) for name, _, kind in _CONTROL if issubclass(kind, IntEnum)]


def check(config: Config, entry: Issued) -> None:
    """Raises the MachineError with which the unit would refuse this descriptor."""
    unit, f = entry.unit, entry.fields
    bad = 0 in _COUNTS_OF[unit](f)
    for name, defined in _MODES_OF[unit]:
        bad = bad or f[name] not in defined
    if unit == Unit.MX:
        bad = bad or f["n_rows"] > config.acc_rows
        if f["mode"] == MxMode.SPLIT_K:
            bad = bad or any(f[name] % config.units for name in ("act", "act_stride", "act_out"))
    elif unit == Unit.VU:
        bad = bad or _bad_control(config, f)
    if bad:
        raise MachineError(Error.ILLEGAL_DESCRIPTOR, unit, entry.pc)


def control(f: dict[str, int]) -> dict:
    """The unpacked control words of a vector descriptor."""
    return unpack_bits(CTL0, f["ctl0"]) | unpack_bits(CTL1, f["ctl1"])


@lru_cache(maxsize=4096)
def _control_kind(ctl0: int) -> tuple[bool, bool]:
    """(whether a code is undefined, whether it writes operand blocks)."""
    ctl = unpack_bits(CTL0, ctl0)
    undefined = any(ctl[name] not in kind._value2member_map_ for name, kind in _ENUMERATED)
    return undefined, ctl["dst"] in (Dst.OB, Dst.OBH, Dst.OBL)


def _bad_control(config: Config, f: dict[str, int]) -> bool:
    undefined, into_blocks = _control_kind(f["ctl0"])
    return undefined or (into_blocks and any(f[d] % config.granules_per_word for d in ("d", "d_out", "d_mid")))


def limit(entry: Issued, indices: np.ndarray, size: int) -> np.ndarray:
    """The indices, all of which must be below a buffer's size."""
    if indices.size and int(indices.max()) >= size:
        raise MachineError(Error.BUFFER_RANGE, entry.unit, entry.pc)
    return indices


def spread(base: int, *dimensions: tuple[int, int]) -> np.ndarray:
    """base + sum of index*stride over (count, stride) dimensions, modulo 2**32: int64[counts]."""
    out = np.asarray(base, np.int64)
    for count, stride in dimensions:
        signed = stride - (1 << 32) if stride >> 31 else stride
        out = out[..., None] + np.arange(count, dtype=np.int64) * signed
    return out & MASK
