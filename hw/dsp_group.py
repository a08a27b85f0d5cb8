"""Two cascaded DSP48E2s behind tables of activations, with a reduction node: one group of a sparse chain."""

from amaranth.hdl import *
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out

from hw.dsp48e2 import DSP48E2
from hw.spec.config import BLOCK

MULTIPLIERS_PER_GROUP = 2
N_LANES = 2  # INT8 products packed in one multiplier
LANE_BITS = 18  # distance of the two lanes in P

HALVES = 2
"""Tables of a multiplier: one is read while the other is written."""
GROUP_LATENCY = 4
"""Cycles from a group's input to ``p``: the second slice's four registers."""

ENTRY = data.ArrayLayout(signed(8), N_LANES)  # an input's activations of two tokens
WRITE = data.StructLayout({"en": 1, "half": 1, "at": range(BLOCK)})
"""An entry comes: of which table, and its input."""


def weights_layout(n_multipliers):
    return data.ArrayLayout(data.ArrayLayout(signed(8), n_multipliers), N_LANES)


def indices_layout(n_multipliers):
    return data.ArrayLayout(range(BLOCK), n_multipliers)


GROUP = data.StructLayout(
    {
        "acts": data.ArrayLayout(signed(8), MULTIPLIERS_PER_GROUP),  # of a dense step
        "weights": weights_layout(MULTIPLIERS_PER_GROUP),
        "indices": indices_layout(MULTIPLIERS_PER_GROUP),
        "sparse": 1,
        "half": 1,
        "row": 1,
        "entry": ENTRY,
        "write": WRITE,
    }
)
"""What a group is fed with in a cycle: its part of a step, and of an entry."""


def delay(m, value, n_cycles, name):
    """``value`` as it was ``n_cycles`` ago. Never reset, so that synthesis may use shift-register LUTs."""
    for cycle in range(n_cycles):
        stage = Signal.like(value, name=f"{name}_{cycle + 1}", reset_less=True)
        m.d.sync += stage.eq(value)
        value = stage
    return value


class DSPGroup(wiring.Component):
    """``p = sum over both multipliers of (x1 * 2**18 + x0) * y``, plus ``pcin`` unless ``break_``.

    ========  ===============================  ===============================  =========================
    mode      x1                               x0                               y
    ========  ===============================  ===============================  =========================
    dense     ``weights[1]`` (second row)      ``weights[0]`` (first row)       ``acts`` of the multiplier
    sparse    table's second at the index      table's first at the index       ``weights[row]``
    ========  ===============================  ===============================  =========================

    Each multiplier has two tables of 16 entries, the activations of two tokens at each input of a block, in one LUT
    memory of 32 words: a choice of 16 costs a LUT for two bits, a multiplexer five a bit. A table is written an entry
    a cycle; which of the two a step reads is for its ``half`` to say.

    Numeric contract: activations are int8[-128, 127], weights int8[-127, 127], ``p`` is exact. The two lanes of ``p``
    can be told apart after up to 8 products, never after 9.

    Latency: GROUP_LATENCY = 4 cycles from every input but ``pcin`` to ``p``; an entry written in t is read from t + 1
    on. ``pcin`` is added ``GROUP_LATENCY - 2`` cycles before ``p``, so a group whose inputs come two cycles later
    continues its predecessor's sum. Throughput: one step and one entry a cycle.

    Back-pressure: none. Reset: none; every register empties by itself in four cycles, tables keep what they hold.

    Parameters: ``primitive``: see :class:`hw.dsp48e2.DSP48E2`.

    Members: ``acts``: int8[2 multipliers]; ``entry``, ``write``: of both multipliers' tables; ``weights``: int8[2 rows,
    2 multipliers]; ``indices``: uint4[2 multipliers]; ``sparse``: mode; ``half``: the table to read; ``row``: the one
    that a sparse step multiplies; ``break_``: start a new sum; ``pcin``, ``pcout``: cascade; ``p``: tap of the
    reduction node.
    """

    def __init__(self, *, primitive=False):
        self.primitive = primitive
        super().__init__(
            {
                **{name: In(field.shape) for name, field in GROUP},
                "break_": In(1),
                "pcin": In(signed(48)),
                "pcout": Out(signed(48)),
                "p": Out(signed(48)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        # The cascade adds one slice a cycle: the second slice's spare registers hold its operands for that cycle.
        first = DSP48E2(stages=1, primitive=self.primitive)
        second = DSP48E2(stages=2, primitive=self.primitive)
        m.submodules.first, m.submodules.second = first, second
        for number, slice_ in enumerate((first, second)):
            x1, x0, y = self._select(m, number)
            m.d.comb += [slice_.a.eq(x1 << LANE_BITS), slice_.d.eq(x0), slice_.b.eq(y)]
        cascade = delay(m, ~self.break_, first.cascade_delay, "cascade")
        m.d.comb += [
            first.pcin.eq(self.pcin),
            first.cascade.eq(cascade),
            second.pcin.eq(first.pcout),
            second.cascade.eq(1),
            self.pcout.eq(second.pcout),
            self.p.eq(second.p),
        ]
        return m

    def _select(self, m, number):
        """One multiplier's operands."""
        row0, row1 = (self.weights[row][number] for row in range(N_LANES))
        x1, x0, y = (Signal(signed(8), name=f"{name}_{number}") for name in ("x1", "x0", "y"))
        found = self._looked_up(m, number)
        m.d.comb += [
            x1.eq(Mux(self.sparse, found[1], row1)),
            x0.eq(Mux(self.sparse, found[0], row0)),
            y.eq(Mux(self.sparse, Mux(self.row, row1, row0), self.acts[number])),
        ]
        return x1, x0, y

    def _looked_up(self, m, number):
        """What a multiplier's table holds at its index."""
        m.submodules[f"table_{number}"] = table = memory.Memory(
            shape=unsigned(ENTRY.size), depth=HALVES * BLOCK, init=[], attrs={"ram_style": "distributed"}
        )
        write, read = table.write_port(), table.read_port(domain="comb")
        m.d.comb += [
            write.en.eq(self.write.en),
            write.addr.eq(Cat(self.write.at, self.write.half)),
            write.data.eq(self.entry.as_value()),
            read.addr.eq(Cat(self.indices[number], self.half)),
        ]
        return data.View(ENTRY, read.data)
