"""A sparse DSP chain: sixteen packed multipliers in eight groups, cascaded, one 16-wide block row a cycle."""

from amaranth.hdl import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hw.dsp_group import (
    ENTRY,
    GROUP,
    GROUP_LATENCY,
    LANE_BITS,
    MULTIPLIERS_PER_GROUP,
    WRITE,
    DSPGroup,
    delay,
    indices_layout,
    weights_layout,
)
from hw.spec.config import MULTIPLIERS_PER_CHAIN

N_GROUPS = MULTIPLIERS_PER_CHAIN // MULTIPLIERS_PER_GROUP
MAX_PRODUCTS_PER_LANE = 8  # proven in tests/hw/test_chain_formal.py; 9 has a counterexample
DENSE_BREAKS = 0b0001_0001  # groups 0 and 4
CASCADE_GROUPS = 4
"""Groups in a cascade of a matrix unit: all rows break at group 4 anyhow."""

STEP = data.StructLayout(
    {
        "acts": data.ArrayLayout(signed(8), MULTIPLIERS_PER_CHAIN),  # of a dense step
        "weights": weights_layout(MULTIPLIERS_PER_CHAIN),  # int8[2 rows, 16]
        "indices": indices_layout(MULTIPLIERS_PER_CHAIN),  # uint4[16]
        "sparse": 1,
        "half": 1,
        "breaks": N_GROUPS,
        "row": 1,
    }
)
TABLES = data.StructLayout({"entries": data.ArrayLayout(ENTRY, N_GROUPS), "write": WRITE})
"""An entry of every group's tables."""
LANES = data.StructLayout({"lo": signed(LANE_BITS + 1), "hi": signed(LANE_BITS + 1)})
TAPS = data.ArrayLayout(LANES, N_GROUPS)
SUMS = data.StructLayout({"sum0": signed(LANE_BITS + 2), "sum1": signed(LANE_BITS + 2)})


def flow(shape):
    """A stream which is never refused. Amaranth's ``always_ready`` has a constant member, which cannot be a port."""
    return wiring.Signature({"payload": Out(shape), "valid": Out(1)})


def chain_latency(cascade_groups=N_GROUPS):
    """Cycles from a step on ``i`` to its taps on ``o``; the sums on ``o_sums`` follow one cycle later."""
    return MULTIPLIERS_PER_GROUP * (cascade_groups - 1) + GROUP_LATENCY


CHAIN_LATENCY = chain_latency()
CHAIN_SUMS_LATENCY = CHAIN_LATENCY + 1


def skew(group, cascade_groups):
    """Cycles by which a group's inputs come later than those of the first group of its cascade, whose sum it adds to:
    every multiplier takes one."""
    return MULTIPLIERS_PER_GROUP * (group % cascade_groups)


def unpack_lanes(p):
    """Overflow adjust: ``p == hi * 2**18 + lo`` with ``lo`` signed; a negative ``lo`` has borrowed one from ``hi``."""
    lo = p[:LANE_BITS].as_signed()
    hi = p[LANE_BITS : 2 * LANE_BITS + 1].as_signed() + p[LANE_BITS - 1]
    return {"lo": lo, "hi": hi}


class SkewedChain(wiring.Component):
    """Eight running sums over sixteen packed multipliers, cut where ``breaks`` says; every group's inputs come when the
    cascade needs them: those of a step that is fed to group 0 in t are fed to group g in t + ``skew(g)``.

    Chains side by side that are fed from one memory of weights share what skews their inputs: the memory is read in
    eight parts, each later than the one before.

    Tap ``g`` is the sum over groups ``b .. g``, where ``b`` is the nearest group at or before ``g`` whose break bit is
    set; bit 0 counts as set, and so does bit 4 with ``cascade_groups`` = 4. Group ``g`` holds positions ``2g`` and
    ``2g + 1``, and has tables of its own (:class:`hw.dsp_group.DSPGroup`).

    Numeric contract: activations int8[-128, 127], weights int8[-127, 127]; at most 8 products (4 groups) without a
    break. Taps and sums are then exact. The caller keeps the contract; nothing is checked or saturated here.

    Latency: ``chain_latency(cascade_groups)`` cycles from the inputs of group 0 to ``taps``, all taps of a step
    together; one more to ``sums``, where ``sum = taps[3] + taps[7]``. Throughput: one step a cycle.

    Back-pressure: none. Reset: none.

    Parameters: ``cascade_groups``: groups in one unbroken cascade. 8 lets sums cross every boundary. With 4, group 4
    always breaks, and skew and latency halve. ``primitive``: see :class:`hw.dsp48e2.DSP48E2`.

    Members: ``groups``: GROUP of each; ``breaks``: bit g comes with the inputs of group g; ``taps``: TAPS; ``sums``:
    SUMS.
    """

    def __init__(self, *, cascade_groups=N_GROUPS, primitive=False):
        if cascade_groups not in (4, 8):
            raise ValueError(f"cascade_groups={cascade_groups}: a chain of {N_GROUPS} groups cascades 4 or 8 of them")
        self.cascade_groups = cascade_groups
        self.primitive = primitive
        super().__init__(
            {
                "groups": In(data.ArrayLayout(GROUP, N_GROUPS)),
                "breaks": In(N_GROUPS),
                "taps": Out(TAPS),
                "sums": Out(SUMS),
            }
        )

    def elaborate(self, platform):
        m = Module()
        previous, latency, taps = None, chain_latency(self.cascade_groups), []
        for number in range(N_GROUPS):
            late = skew(number, self.cascade_groups)
            m.submodules[f"group_{number}"] = group = DSPGroup(primitive=self.primitive)
            for name, _ in GROUP:
                m.d.comb += Value.cast(getattr(group, name)).eq(Value.cast(self.groups[number][name]))
            if late == 0:
                m.d.comb += group.break_.eq(1)
            else:
                m.d.comb += [group.break_.eq(self.breaks[number]), group.pcin.eq(previous.pcout)]
            previous = group

            # Deskewed still packed: one bit fewer a tap than unpacked, and the adders see settled registers.
            tap = delay(m, group.p[: 2 * LANE_BITS + 1], latency - GROUP_LATENCY - late, f"tap_{number}")
            taps.append(unpack_lanes(tap))
            m.d.comb += [self.taps[number][lane].eq(value) for lane, value in taps[number].items()]

        for row, lane in (("sum0", "lo"), ("sum1", "hi")):
            total = Signal.like(self.sums[row], name=row, reset_less=True)
            m.d.sync += total.eq(taps[N_GROUPS // 2 - 1][lane] + taps[N_GROUPS - 1][lane])
            m.d.comb += self.sums[row].eq(total)
        return m


class SparseChain(wiring.Component):
    """A chain by itself: :class:`SkewedChain` with the registers that skew a step's inputs.

    Dense, lane ``lo`` is ``weights[0] . acts``, lane ``hi`` ``weights[1] . acts``; sparse, with ``a[t]`` the groups'
    tables of token t, ``lo`` is ``weights[row] . a[0][indices]``, ``hi`` ``weights[row] . a[1][indices]``.
    A row of N non-zeros that emits a sum of its own fills N / 2 groups and is read at the last of them. Rows that fill
    the chain, dense or sparse, break at groups 0 and 4 (``DENSE_BREAKS``) and are read as ``sum0`` and ``sum1``.

    Numeric contract: as :class:`SkewedChain`.

    Latency: ``latency`` cycles (``CHAIN_LATENCY`` = 18) from ``i`` to ``o``, all taps of a step together;
    ``sums_latency`` (one more) to ``o_sums``. Throughput: one step a cycle.

    Back-pressure: none; both ends are always ready (``flow``). A cycle without ``valid`` is a bubble and passes as one.

    Reset: valid bits only. Payload without ``valid`` is arbitrary.

    Parameters: as :class:`SkewedChain`.

    Members: ``i``: steps (``STEP``); ``tables``: entries to write; ``o``: taps (``TAPS``); ``o_sums``: sums over the
    whole row (``SUMS``).
    """

    def __init__(self, *, cascade_groups=N_GROUPS, primitive=False):
        self.chain = SkewedChain(cascade_groups=cascade_groups, primitive=primitive)
        super().__init__(
            {
                "i": In(flow(STEP)),
                "tables": In(TABLES),
                "o": Out(flow(TAPS)),
                "o_sums": Out(flow(SUMS)),
            }
        )

    @property
    def latency(self):
        return chain_latency(self.chain.cascade_groups)

    @property
    def sums_latency(self):
        return self.latency + 1

    def elaborate(self, platform):
        m = Module()
        m.submodules.chain = chain = self.chain
        for number in range(N_GROUPS):
            late = skew(number, chain.cascade_groups)
            m.d.comb += [
                chain.groups[number].eq(delay(m, self._part(m, number), late, f"group_{number}")),
                chain.breaks[number].eq(delay(m, self.i.payload.breaks[number], late, f"break_{number}")),
            ]
        valid = Signal(self.sums_latency)
        m.d.sync += valid.eq(Cat(self.i.valid, valid))
        m.d.comb += [
            self.o.payload.eq(chain.taps),
            self.o.valid.eq(valid[-2]),
            self.o_sums.payload.eq(chain.sums),
            self.o_sums.valid.eq(valid[-1]),
        ]
        return m

    def _part(self, m, number):
        """A group's own slice of the step, and of the entries."""
        step, part = self.i.payload, Signal(GROUP, name=f"part_{number}")
        m.d.comb += [
            part.entry.eq(self.tables.entries[number]),
            part.write.eq(self.tables.write),
            part.sparse.eq(step.sparse),
            part.half.eq(step.half),
            part.row.eq(step.row),
        ]
        for multiplier in range(MULTIPLIERS_PER_GROUP):
            position = MULTIPLIERS_PER_GROUP * number + multiplier
            m.d.comb += [
                part.acts[multiplier].eq(step.acts[position]),
                part.indices[multiplier].eq(step.indices[position]),
            ]
            for row, weights in enumerate(part.weights):
                m.d.comb += weights[multiplier].eq(step.weights[row][position])
        return part.as_value()
