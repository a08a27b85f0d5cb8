"""On-chip state of the machine, and the load and store units' meaning."""

import numpy as np

from hw.spec.config import BEAT_BYTES, BLOCK, GRANULE_LANES, Config
from hw.spec.csr import LD_BEATS, TRAFFIC, store_counter
from hw.spec.isa import WORD_MASK, Error, LdKind, StMode, Unit
from hw.spec.legal import COUNTS, MAX_WORK, first_beyond, load_beyond, read_beyond, size_beats, store_beyond
from hw.spec.run import MachineError
from sim.functional_checks import shortened, spread
from sim.functional_sequencer import Issued
from sim.memory_image import MemoryImage


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


def rows_of_beats(f: dict[str, int], most: int) -> list[tuple[int, int]]:
    """(beat address, beats) of the outer rows of an LD or RD descriptor, up to so many beats."""
    rows, rest = divmod(min(f["n_outer"] * f["n_inner"], most), f["n_inner"])
    starts = spread(f["addr"], (rows + (rest > 0), f["stride"])).tolist()
    counts = [f["n_inner"]] * rows + [rest] * (rest > 0)
    return list(zip(starts, counts, strict=True))


def load_fault(config: Config, f: dict[str, int]) -> tuple[int, Error] | None:
    """(beat, status) of the first beat with which an LD fails."""
    outside, absent = load_beyond(config, f), read_beyond(f, size_beats(config.aux_bytes))
    if absent is not None and (outside is None or absent <= outside):
        return absent, Error.BUS_READ
    return None if outside is None else (outside, Error.BUFFER_RANGE)


def load(state: State, entry: Issued) -> None:
    """LD: aux beats to PB granules."""
    f = entry.fields
    if fault := load_fault(state.config, f):
        raise MachineError(fault[1], Unit.LD, entry.pc)
    n = f["n_inner"]
    targets = spread(f["dst"], (f["n_outer"], f["dst_stride"])).tolist()
    for (address, _), target in zip(rows_of_beats(f, MAX_WORK), targets, strict=True):
        data = state.memory.read(state.config.aux_port, address * BEAT_BYTES, n * BEAT_BYTES)
        state.pb[target : target + n] = np.ascontiguousarray(data).view("<i4").reshape(n, GRANULE_LANES)
    state.count(f["n_outer"] * n, "read_beats_aux", LD_BEATS[LdKind(f["kind"])])


def beats_an_item(f: dict[str, int]) -> int:
    """Beats that an ST writes an item."""
    return 4 if f["mode"] == StMode.V else 1


def store_fault(config: Config, f: dict[str, int]) -> tuple[int, Error] | None:
    """(beat, status) of the first beat of an ST that cannot be written, of those before its source leaves SB."""
    absent, outside = absent_beat(config, f), store_beyond(config, f)
    if outside is not None and (absent is None or absent >= outside * beats_an_item(f)):
        return outside * beats_an_item(f), Error.BUFFER_RANGE
    return None if absent is None else (absent, Error.BUS_WRITE)


def absent_beat(config: Config, f: dict[str, int]) -> int | None:
    """The first beat of an ST, in its order, that is beyond its memory."""
    if f["mode"] == StMode.LIN:
        walk = (f["n_tok"], f["stride_tok"]), (f["n_head"], f["stride_head"]), (f["n_gran"], 1)
        return first_beyond(f["addr"], walk, size_beats(config.aux_bytes))
    size = size_beats(config.aux_bytes if f["mode"] == StMode.SC else config.channel_bytes)
    last_key = f["pos"] + f["n_tok"] - 1
    slots = last_key // BLOCK if f["mode"] == StMode.SC else last_key // BLOCK // config.units * f["stride_slot"] + 3
    most = f["addr"] + (f["n_head"] - 1) * f["stride_head"] + (f["n_gran"] - 1) * f["stride_gran"] + slots
    if most < size:
        return None  # nearly always
    beyond = np.flatnonzero(_beats(config, f) >= size)
    return int(beyond[0]) if len(beyond) else None


def _beats(config: Config, f: dict[str, int]) -> np.ndarray:
    """Beat addresses of an ST's first beats in SC, K or V, in order."""
    f = shortened(f, COUNTS[Unit.ST], MAX_WORK)
    if f["mode"] != StMode.SC:
        return cache_writes(config, f)[1]
    head = spread(f["addr"], (f["n_head"], f["stride_head"]))[None, :, None]
    block = spread(f["pos"], (f["n_tok"], 1))[:, None, None] >> 4
    return np.broadcast_to(head + block & WORD_MASK, (f["n_tok"], f["n_head"], f["n_gran"])).reshape(-1)


def store(state: State, entry: Issued, most: int | None = None) -> None:
    """ST: SB granules to aux or to the channels, see `StMode`. most: of its beats, the first ones only, and of those
    the ones that can be written."""
    f = entry.fields
    if most is None and (fault := store_fault(state.config, f)):
        raise MachineError(fault[1], Unit.ST, entry.pc)
    if most is not None:
        if most <= 0:
            return
        f = shortened(f, COUNTS[Unit.ST], most)
    source = spread(f["src"], (f["n_tok"], f["src_tok"]), (f["n_head"], f["src_head"]), (f["n_gran"], 1))
    granules = state.sb[source if most is None else np.minimum(source, len(state.sb) - 1)]
    _STORES[StMode(f["mode"])](state, f, granules, most)


def _store_linear(state: State, f: dict[str, int], granules: np.ndarray, most: int | None) -> None:
    to = spread(f["addr"], (f["n_tok"], f["stride_tok"]), (f["n_head"], f["stride_head"]), (f["n_gran"], 1))
    _write(state, f, np.int64(state.config.aux_port), to * BEAT_BYTES, granules.view(np.uint8), most)


def _keys(config: Config, f: dict[str, int]) -> tuple[np.ndarray, ...]:
    """(unit, slot, key within its block), each int64[n_tok, 1, 1]."""
    key = spread(f["pos"], (f["n_tok"], 1))[:, None, None]
    return (key >> 4) % config.units, (key >> 4) // config.units, key & 15


def _cache_beats(f: dict[str, int], slot: np.ndarray) -> np.ndarray:
    """First beat address of every item: int64[n_tok, n_head, n_gran]."""
    base = spread(f["addr"], (f["n_head"], f["stride_head"]), (f["n_gran"], f["stride_gran"]))
    return base[None] + slot * f["stride_slot"] & WORD_MASK


def cache_writes(config: Config, f: dict[str, int]) -> tuple[np.ndarray, ...]:
    """(unit, beat address, mask of 32-byte words written) of every beat that a K or V store writes, in its order."""
    unit, slot, k = _keys(config, f)
    beats, words = _cache_beats(f, slot)[..., None], np.full((1, 1, 1, 1), 3)
    if f["mode"] == StMode.K:
        beats, words = beats + (k >> 2)[..., None], 1 << ((k & 3) >> 1)[..., None]
    else:
        beats = beats + np.arange(4)
    return tuple(np.broadcast_to(x, beats.shape).reshape(-1) for x in (unit[..., None], beats & WORD_MASK, words))


def _store_k(state: State, f: dict[str, int], granules: np.ndarray, most: int | None) -> None:
    unit, slot, k = _keys(state.config, f)
    to = (_cache_beats(f, slot) + (k >> 2) & WORD_MASK) * BEAT_BYTES + (k & 3) * BLOCK
    _write(state, f, unit, to, granules.astype(np.int8).view(np.uint8), most)


def _store_v(state: State, f: dict[str, int], granules: np.ndarray, most: int | None) -> None:
    unit, slot, k = _keys(state.config, f)
    lane = np.arange(GRANULE_LANES)
    beat = _cache_beats(f, slot)[..., None] + lane // 4 & WORD_MASK
    to = beat * BEAT_BYTES + lane % 4 * BLOCK + k[..., None]
    _write(state, f, unit[..., None], to, granules.astype(np.int8).view(np.uint8)[..., None], most)


def _store_scalar(state: State, f: dict[str, int], granules: np.ndarray, most: int | None) -> None:
    key = spread(f["pos"], (f["n_tok"], 1))[:, None, None]
    head = spread(f["addr"], (f["n_head"], f["stride_head"]))[None, :, None]
    to = (head + (key >> 4) & WORD_MASK) * BEAT_BYTES + (key & 15) * 4 + np.zeros((1, 1, f["n_gran"]), np.int64)
    data = np.ascontiguousarray(granules[..., :1]).view(np.uint8)
    _write(state, f, np.int64(state.config.aux_port), to, data, most)


_STORES = {StMode.LIN: _store_linear, StMode.K: _store_k, StMode.V: _store_v, StMode.SC: _store_scalar}


def _write(
    state: State,
    f: dict[str, int],
    port: np.ndarray | np.int64,
    addresses: np.ndarray,
    data: np.ndarray,
    most: int | None,
) -> None:
    """data: uint8[..., width], one row an address. most: see `store`."""
    port = np.broadcast_to(port, addresses.shape)
    rows = data.reshape(-1, data.shape[-1])
    flat, at = port.reshape(-1), addresses.reshape(-1)
    if most is not None:
        first = slice(most * beats_an_item(f) if f["mode"] == StMode.V else most)  # V: four lanes a beat
        flat, at, rows = flat[first], at[first], rows[first]
        there = at < np.array(state.memory.sizes_bytes)[flat]
        flat, at, rows = flat[there], at[there], rows[there]
    for number in np.unique(flat).tolist():
        chosen = flat == number
        state.memory.ports[number].scatter(at[chosen], rows[chosen])
        where = "write_bytes_aux" if number == state.config.aux_port else "write_bytes_channels"
        state.count(int(chosen.sum()) * rows.shape[1], where, store_counter(f["mode"], f["kind"]))
