"""The vector unit's passes: `hw.spec.vector` on NumPy arrays, some rows at a time."""

import numpy as np

from hw.spec import vector
from hw.spec.isa import Dst, Error, Mul1, Reduce, Row, Src
from hw.spec.legal import control, operands, vector_beyond
from hw.spec.run import MachineError
from sim.functional_checks import spread
from sim.functional_sequencer import Issued
from sim.functional_state import State

CHUNK = 1 << 17
"""Elements handled together: few enough for a cache, many enough to hide NumPy's overhead."""
SUM_MAX = (1 << 47) - 1


class Pass:
    """One VU instruction: which operands it uses, and its addresses over (outer, mid)."""

    def __init__(self, state: State, entry: Issued):
        self.state, self.entry, self.f = state, entry, entry.fields
        self.ctl = control(self.f)
        self.used = operands(self.ctl)
        f = self.f
        self.rows = {
            name: spread(f[name], (f["n_outer"], f[f"{name}_out"]), (f["n_mid"], f[f"{name}_mid"]))
            for name in self.used | {"d"}
        }
        self.buffers = {"a": state.words(state.ab), "p": state.words(state.pb), "v": state.words(state.vb)}

    def run(self) -> None:
        f, lanes = self.f, self.state.config.lanes
        row = f["n_words"] * lanes
        if self.ctl["level"] or row * f["n_mid"] <= CHUNK:
            n = max(1, CHUNK // (row * f["n_mid"]))
            for o in range(0, f["n_outer"], n):
                self._part(slice(o, o + n), slice(None))
            return
        n = max(1, CHUNK // row)
        for o in range(f["n_outer"]):
            for m in range(0, f["n_mid"], n):
                self._part(slice(o, o + 1), slice(m, m + n))

    def _operand(self, name: str, part: tuple) -> np.ndarray | int:
        """int64[outer, mid, words, lanes] of a buffer operand, 0 when the pass does not use it."""
        if name not in self.used:
            return 0
        index = self.rows[name][part][..., None] + np.arange(self.f["n_words"])
        return self.buffers[name][index].astype(np.int64)

    def _entry(self, name: str, part: tuple) -> tuple:
        """(raw, value as row0/row1 says) of a row operand: int64[outer, mid, 1, 1], or zeros."""
        if name not in self.used:
            return 0, 0
        index = self.rows[name][part]
        raw = self.state.raw[index][..., None, None]
        fin = self.state.fin[index][..., None, None]
        return raw, vector.row_value(Row(self.ctl["row0" if name == "r0" else "row1"]), raw, fin)

    def _part(self, outer: slice, mid: slice) -> None:
        part, ctl = (outer, mid), self.ctl
        a, p, v = (self._operand(name, part) for name in ("a", "p", "v"))
        r0_raw, r0 = self._entry("r0", part)
        _, r1 = self._entry("r1", part)
        swap: np.ndarray | int = 0
        if ctl["mul1"] == Mul1.ROPE:
            source = {Src.A: a, Src.V: v, Src.P: p, Src.R0: r0}[ctl["src"]]
            swap = _neighbours(source) if ctl["src"] != Src.R0 else source
        out, tapped = vector.lane(ctl, a, p, v, swap, r0, r1, self.f["imm0"])
        shape = (*self.rows["d"][part].shape, self.f["n_words"], self.state.config.lanes)
        valid = self._valid(outer, shape)
        out, tapped = np.broadcast_to(out, shape), np.broadcast_to(tapped, shape)
        self._write(part, out if valid is None else out * valid)
        if ctl["reduce"] != Reduce.NONE:
            self._reduce(part, tapped, valid, r0_raw)

    def _valid(self, outer: slice, shape: tuple[int, ...]) -> np.ndarray | None:
        """bool[outer, 1, words, lanes] of valid lanes, None when all are."""
        lengths = spread(self.f["len0"], (self.f["n_outer"], self.f["len_step"]))[outer]
        n = shape[2] * shape[3]
        if int(lengths.min()) >= n:
            return None
        return (np.arange(n) < lengths[:, None]).reshape(-1, 1, *shape[2:])

    def _write(self, part: tuple, out: np.ndarray) -> None:
        dst, to, state = self.ctl["dst"], self.rows["d"][part], self.state
        if dst == Dst.NONE:
            return
        n_words = self.f["n_words"]
        if dst in (Dst.VB, Dst.SB):
            buffer = self.buffers["v"] if dst == Dst.VB else state.words(state.sb)
            buffer[to[..., None] + np.arange(n_words)] = out
            return
        n = n_words * state.config.granules_per_word
        state.ob[to[..., None] + np.arange(n)] = out.reshape(*to.shape, n, -1)

    def _reduce(self, part: tuple, x: np.ndarray, valid: np.ndarray | None, r0_raw) -> None:
        """Reduces (mid,) words and lanes; writes the entries."""
        kind = self.ctl["reduce"]
        offered = vector.contribution(kind, x, r0_raw)
        if valid is not None:
            offered = np.where(valid, offered, vector.identity(kind))
        axes = (1, 2, 3) if self.ctl["level"] else (2, 3)
        total = offered.max(axis=axes) if kind in (Reduce.MAX, Reduce.ABSMAX) else offered.sum(axis=axes)
        total = total.clip(-SUM_MAX - 1, SUM_MAX)
        raw0 = np.zeros_like(total)
        if "r0" in self.used:
            raw0 = raw0 + (r0_raw[:, -1, 0, 0] if self.ctl["level"] else r0_raw[..., 0, 0])
        raw, fin = vector.finish(self.ctl, total, raw0, self.f["imm1"])
        to = self.rows["w"][part]
        if self.ctl["level"]:
            to = spread(self.f["w"], (self.f["n_outer"], self.f["w_out"]))[part[0]]
        self.state.raw[to], self.state.fin[to] = raw, fin


def _neighbours(x: np.ndarray) -> np.ndarray:
    """Every lane's neighbour, lane ^ 1."""
    return x.reshape(*x.shape[:-1], -1, 2)[..., ::-1].reshape(x.shape)


def vector_pass(state: State, entry: Issued) -> None:
    """VU: see `hw.spec.vector`."""
    if vector_beyond(state.config, entry.fields) is not None:
        raise MachineError(Error.BUFFER_RANGE, entry.unit, entry.pc)
    Pass(state, entry).run()
