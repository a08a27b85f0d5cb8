"""On-chip state of the machine, and the load and store units' meaning."""

import numpy as np

from hw.spec.config import BEAT_BYTES, BLOCK, GRANULE_LANES, Config
from hw.spec.csr import LD_BEATS, TRAFFIC, store_counter
from hw.spec.isa import Error, LdKind, StMode, Unit
from hw.spec.run import MachineError
from sim.functional_checks import MASK, limit, spread
from sim.functional_sequencer import Issued
from sim.memory_image import MemoryImage, OutOfRange


class State:
    """Buffers (granules of 16 int32, blocks of 16 int8), row-scalar entries {raw, fin} and traffic counts."""

    def __init__(self, config: Config, memory: MemoryImage):
        self.config, self.memory = config, memory
        self.ab, self.pb, self.vb, self.sb = (
            np.zeros((n, GRANULE_LANES), np.int32)
            for n in (config.ab_granules, config.pb_granules, config.vb_granules, config.sb_granules)
        )
        self.ob = np.zeros((config.ob_blocks, BLOCK), np.int8)
        self.raw = np.zeros(config.rs_entries, np.int64)
        self.fin = np.zeros(config.rs_entries, np.int64)
        self.counters = dict.fromkeys(TRAFFIC, 0)

    def count(self, amount: int, *names: str) -> None:
        """Adds to each of the counters."""
        for name in names:
            self.counters[name] += amount

    def words(self, buffer: np.ndarray) -> np.ndarray:
        """The buffer as vector-unit words: int32[words, lanes]."""
        return buffer.reshape(-1, self.config.lanes)


def rows_of_beats(f: dict[str, int]) -> list[int]:
    """Beat address of every outer row of an LD or RD descriptor."""
    return spread(f["addr"], (f["n_outer"], f["stride"])).tolist()


def load(state: State, entry: Issued) -> None:
    """LD: aux beats to PB granules."""
    f = entry.fields
    n = f["n_inner"]
    to = spread(f["dst"], (f["n_outer"], f["dst_stride"]), (n, 1))
    limit(entry, to[:, -1], len(state.pb))
    for address, target in zip(rows_of_beats(f), to[:, 0].tolist(), strict=True):
        try:
            data = state.memory.read(state.config.aux_port, address * BEAT_BYTES, n * BEAT_BYTES)
        except OutOfRange:
            raise MachineError(Error.BUS_READ, Unit.LD, entry.pc) from None
        state.pb[target : target + n] = np.ascontiguousarray(data).view("<i4").reshape(n, GRANULE_LANES)
    state.count(f["n_outer"] * n, "read_beats_aux", LD_BEATS[LdKind(f["kind"])])


def store(state: State, entry: Issued) -> None:
    """ST: SB granules to aux or to the channels, see `StMode`."""
    f = entry.fields
    source = spread(f["src"], (f["n_tok"], f["src_tok"]), (f["n_head"], f["src_head"]), (f["n_gran"], 1))
    granules = state.sb[limit(entry, source, len(state.sb))]
    try:
        _STORES[StMode(f["mode"])](state, f, granules)
    except OutOfRange:
        raise MachineError(Error.BUS_WRITE, Unit.ST, entry.pc) from None


def _store_linear(state: State, f: dict[str, int], granules: np.ndarray) -> None:
    to = spread(f["addr"], (f["n_tok"], f["stride_tok"]), (f["n_head"], f["stride_head"]), (f["n_gran"], 1))
    _write(state, f, np.int64(state.config.aux_port), to * BEAT_BYTES, granules.view(np.uint8))


def _keys(config: Config, f: dict[str, int]) -> tuple[np.ndarray, ...]:
    """(unit, slot, key within its block), each int64[n_tok, 1, 1]."""
    key = spread(f["pos"], (f["n_tok"], 1))[:, None, None]
    return (key >> 4) % config.units, (key >> 4) // config.units, key & 15


def _cache_beats(f: dict[str, int], slot: np.ndarray) -> np.ndarray:
    """First beat address of every item: int64[n_tok, n_head, n_gran]."""
    base = spread(f["addr"], (f["n_head"], f["stride_head"]), (f["n_gran"], f["stride_gran"]))
    return base[None] + slot * f["stride_slot"] & 0xFFFFFFFF


def cache_writes(config: Config, f: dict[str, int]) -> tuple[np.ndarray, ...]:
    """(unit, beat address, mask of 32-byte words written) of every beat that a K or V store writes, in its order."""
    unit, slot, k = _keys(config, f)
    beats, words = _cache_beats(f, slot)[..., None], np.full((1, 1, 1, 1), 3)
    if f["mode"] == StMode.K:
        beats, words = beats + (k >> 2)[..., None], 1 << ((k & 3) >> 1)[..., None]
    else:
        beats = beats + np.arange(4)
    return tuple(np.broadcast_to(x, beats.shape).reshape(-1) for x in (unit[..., None], beats & MASK, words))


def _store_k(state: State, f: dict[str, int], granules: np.ndarray) -> None:
    unit, slot, k = _keys(state.config, f)
    to = (_cache_beats(f, slot) + (k >> 2)) * BEAT_BYTES + (k & 3) * BLOCK
    _write(state, f, unit, to, granules.astype(np.int8).view(np.uint8))


def _store_v(state: State, f: dict[str, int], granules: np.ndarray) -> None:
    unit, slot, k = _keys(state.config, f)
    lane = np.arange(GRANULE_LANES)
    beat = _cache_beats(f, slot)[..., None] + lane // 4
    to = beat * BEAT_BYTES + lane % 4 * BLOCK + k[..., None]
    _write(state, f, unit[..., None], to, granules.astype(np.int8).view(np.uint8)[..., None])


def _store_scalar(state: State, f: dict[str, int], granules: np.ndarray) -> None:
    key = spread(f["pos"], (f["n_tok"], 1))[:, None, None]
    head = spread(f["addr"], (f["n_head"], f["stride_head"]))[None, :, None]
    to = (head + (key >> 4)) * BEAT_BYTES + (key & 15) * 4 + np.zeros((1, 1, f["n_gran"]), np.int64)
    _write(state, f, np.int64(state.config.aux_port), to, np.ascontiguousarray(granules[..., :1]).view(np.uint8))


_STORES = {StMode.LIN: _store_linear, StMode.K: _store_k, StMode.V: _store_v, StMode.SC: _store_scalar}


def _write(
    state: State, f: dict[str, int], port: np.ndarray | np.int64, addresses: np.ndarray, data: np.ndarray
) -> None:
    """data: uint8[..., width], one row an address."""
    port = np.broadcast_to(port, addresses.shape)
    rows = data.reshape(-1, data.shape[-1])
    flat, at = port.reshape(-1), addresses.reshape(-1)
    for number in np.unique(flat).tolist():
        chosen = flat == number
        state.memory.ports[number].scatter(at[chosen], rows[chosen])
        where = "write_bytes_aux" if number == state.config.aux_port else "write_bytes_channels"
        state.count(int(chosen.sum()) * rows.shape[1], where, store_counter(f["mode"], f["kind"]))
