"""`hw.spec.vector` executed word by word over NumPy buffers, and random passes for it."""

import random

import numpy as np

from hw.spec import numerics as nm
from hw.spec import vector
from hw.spec.isa import (
    CTL0,
    CTL1,
    FIELDS,
    Add,
    Dst,
    Error,
    Fin,
    Func,
    Mul1,
    Mul2,
    Mul3,
    Reduce,
    Row,
    Src,
    Unit,
    unpack_bits,
)

NAMES = FIELDS[Unit.VU]
REGION = 64
"""Words of VB, and entries, that random passes use; a pass reads one half and writes the other."""


class Machine:
    """Buffers and what one pass does to them. `stores`: (buffer, address, lanes) in order."""

    def __init__(self, config, ab, pb):
        self.config, self.lanes = config, config.lanes
        self.ab, self.pb = ab, pb
        words = config.vb_granules // config.granules_per_word
        self.vb = np.zeros((words, self.lanes), np.int64)
        self.rows = {}
        self.stores = []

    def entry(self, address):
        return self.rows.get(address, (0, 0))

    def run(self, d):
        """(number of words, error) of a pass."""
        ctl = unpack_bits(CTL0, d["ctl0"]) | unpack_bits(CTL1, d["ctl1"])
        if not d["n_outer"] * d["n_mid"] * d["n_words"]:
            return 0, Error.ILLEGAL_DESCRIPTOR
        for o in range(d["n_outer"]):
            total = None
            for mid in range(d["n_mid"]):
                at = {
                    name: d[name] + o * d[f"{name}_out"] + mid * d[f"{name}_mid"]
                    for name in ("a", "p", "v", "d", "r0", "r1", "w")
                }
                if not ctl["level"]:
                    total = None
                total = self._row(ctl, d, at, d["len0"] + o * d["len_step"], total)
                if ctl["reduce"] and not ctl["level"]:
                    self._finish(ctl, d, at["w"], total, at["r0"])
            if ctl["reduce"] and ctl["level"]:
                self._finish(ctl, d, d["w"] + o * d["w_out"], total, at["r0"])
        return d["n_outer"] * d["n_mid"] * d["n_words"], Error.NONE

    def _finish(self, ctl, d, w, total, r0):
        total = nm.clip(total, -(1 << 47), (1 << 47) - 1)
        self.rows[w] = tuple(int(x) for x in vector.finish(ctl, total, self.entry(r0)[0], d["imm1"]))

    def _row(self, ctl, d, at, length, total):
        r0_raw = self.entry(at["r0"])[0]
        r0, r1 = (
            np.full(self.lanes, vector.row_value(ctl[kind], *self.entry(at[name])), np.int64)
            for kind, name in (("row0", "r0"), ("row1", "r1"))
        )
        for i in range(d["n_words"]):
            a, p, v = (
                memory[at[name] + i] if at[name] + i < len(memory) else np.zeros(self.lanes, np.int64)
                for memory, name in ((self.ab, "a"), (self.pb, "p"), (self.vb, "v"))
            )
            source = {Src.A: a, Src.P: p, Src.V: v, Src.R0: r0}[ctl["src"]]
            out, tapped = vector.lane(ctl, a, p, v, source[np.arange(self.lanes) ^ 1], r0, r1, d["imm0"])
            valid = np.arange(self.lanes) + i * self.lanes < length
            self._store(ctl["dst"], at["d"], i, np.where(valid, out, 0))
            offered = [int(x) for x in vector.contribution(ctl["reduce"], tapped, r0_raw)[valid]]
            start = vector.identity(ctl["reduce"]) if total is None else total
            join = max if ctl["reduce"] in (Reduce.MAX, Reduce.ABSMAX) else lambda x: sum(x)
            total = join([start, *offered])
        return total

    def _store(self, dst, d, i, out):
        if dst == Dst.VB:
            self.vb[d + i] = out
        elif dst == Dst.SB:
            self.stores.append(("S", d + i, tuple(int(x) for x in out)))
        elif dst != Dst.NONE:
            self.stores.append(("O", d + i * self.config.granules_per_word, tuple(int(x) for x in out)))


def values(rng, n_words, lanes):
    """int32 words of many magnitudes, extremes among them."""

    def one():
        kind = rng.randrange(8)
        if kind == 0:
            return rng.choice((nm.INT32_MIN, nm.INT32_MAX, 0, 1, -1, -nm.GATE_LIMIT, nm.GATE_LIMIT, nm.GATE_LIMIT - 1))
        if kind < 4:
            return rng.randrange(-20 << 16, 20 << 16)
        return rng.randrange(-(1 << 31), 1 << 31) >> rng.randrange(32)

    return np.array([[one() for _ in range(lanes)] for _ in range(n_words)], np.int64)


def parameters(rng, n_words, lanes):
    """Scale words of every kind, RoPE words, biases."""

    def one():
        kind = rng.randrange(4)
        if kind == 0:
            return int(values(rng, 1, 1)[0, 0])
        if kind == 1:
            return ((nm.rope_word(rng.uniform(0, 7), bool(rng.randrange(2)))) ^ 1 << 31) - (1 << 31)
        return nm.pack_scale(rng.randrange(1 << 16), rng.randrange(-2, 50), rng.randrange(2))

    return np.array([[one() for _ in range(lanes)] for _ in range(n_words)], np.int64)


def descriptor(control, **fields):
    """A pass of one word; `control` may hold fields of both control words."""
    names1 = [name for name, *_ in CTL1]
    out = dict.fromkeys(NAMES, 0) | {"n_outer": 1, "n_mid": 1, "n_words": 1, "len0": 1 << 20}
    out["ctl0"] = pack(CTL0, {k: v for k, v in control.items() if k not in names1})
    out["ctl1"] = pack(CTL1, {k: v for k, v in control.items() if k in names1})
    return out | fields


def pack(layout, fields):
    word, at = 0, 0
    for name, bits, _ in layout:
        word |= (int(fields.get(name, 0)) & (1 << bits) - 1) << at
        at += bits
    return word


def random_pass(rng: random.Random, number: int, lanes: int):
    """Reads one half of VB and of the entries and writes the other, in turn."""
    pick = lambda kind: rng.choice(list(kind)) if rng.random() < 0.6 else kind(0)  # noqa: E731
    adjust = lambda: rng.choice((rng.randrange(-16, 17), rng.randrange(-128, 128), 0))  # noqa: E731
    control = {
        "src": rng.choice(list(Src)),
        "mul1": pick(Mul1),
        "mul2": pick(Mul2),
        "add": pick(Add),
        "func": pick(Func),
        "mul3": pick(Mul3),
        "row0": rng.choice(list(Row)),
        "row1": rng.choice(list(Row)),
        "tap": rng.randrange(2),
        "reduce": rng.choice(list(Reduce)),
        "fin": rng.choice(list(Fin)),
        "dst": rng.choice(list(Dst)),
        "clip8": int(rng.random() < 0.2),
        "level": rng.randrange(2),
        "adj1": adjust(),
        "adj2": adjust(),
        "sh3": rng.randrange(0, 62),
    }
    n = {"n_outer": rng.randrange(1, 5), "n_mid": rng.randrange(1, 5), "n_words": rng.randrange(1, 5)}
    length = n["n_words"] * lanes
    half, other = REGION // 2 * (number % 2), REGION // 2 * (1 - number % 2)
    d = descriptor(
        control,
        **n,
        len0=rng.choice((0, length, rng.randrange(length + 8))),
        len_step=rng.choice((0, 1, rng.randrange(40))),
        imm0=rng.choice((rng.getrandbits(32), int(parameters(rng, 1, 1)[0, 0]) & 0xFFFFFFFF)),
        imm1=rng.choice((0, rng.getrandbits(32), nm.encode_scale(1 / rng.randrange(1, 5000)), rng.randrange(1 << 16))),
    )
    for name in ("a", "p", "v", "d", "r0", "r1", "w"):
        base = {"v": half, "r0": half, "r1": half, "w": other}.get(name, 0)
        if name == "d":
            base = other if control["dst"] == Dst.VB else 0
        d |= {name: base + rng.randrange(8), f"{name}_out": rng.randrange(4), f"{name}_mid": rng.randrange(4)}
    return d


def dump():
    """Passes that store VB's region and the entries."""
    yield descriptor({"src": Src.V, "dst": Dst.SB}, n_words=REGION)
    for kind in (Row.RAW, Row.FIN):
        yield descriptor({"src": Src.R0, "dst": Dst.SB, "row0": kind}, n_mid=REGION, r0_mid=1, d_mid=1)
