"""Two cascaded DSP48E2s behind a sparse multiplexer, with a reduction node: one group of a sparse chain."""

from amaranth.hdl import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hw.dsp48e2 import DSP48E2
from hw.spec.config import BLOCK
from hw.spec.weights import UNREACHED

MULTIPLIERS_PER_GROUP = 2
N_LANES = 2  # INT8 products packed in one multiplier
LANE_BITS = 18  # distance of the two lanes in P

ANY_INDEX = (True, True)

# Cycles from a group's input to ``p`` with ``skew_cycles=0``: the second slice's four registers.
GROUP_LATENCY = 4

ACTS = data.ArrayLayout(data.ArrayLayout(signed(8), BLOCK), N_LANES)


def weights_layout(n_multipliers):
    return data.ArrayLayout(data.ArrayLayout(signed(8), n_multipliers), N_LANES)


def indices_layout(n_multipliers):
    return data.ArrayLayout(range(BLOCK), n_multipliers)


def delay(m, value, n_cycles, name):
    """``value`` as it was ``n_cycles`` ago. Never reset, so that synthesis may use shift-register LUTs."""
    for cycle in range(n_cycles):
        stage = Signal.like(value, name=f"{name}_{cycle + 1}", reset_less=True)
        m.d.sync += stage.eq(value)
        value = stage
    return value


class DSPGroup(wiring.Component):
    """``p = sum over both multipliers of (x1 * 2**18 + x0) * y``, plus ``pcin`` unless ``break_``.

    ========  ===============================  ===============================  ============================
    mode      x1                               x0                               y
    ========  ===============================  ===============================  ============================
    dense     ``weights[1]`` (second row)      ``weights[0]`` (first row)       ``acts[0]`` at the position
    sparse    ``acts[1]`` at the index         ``acts[0]`` at the index         ``weights[row]``, see below
    ========  ===============================  ===============================  ============================

    Unless ``single``, a sparse multiplier's weight counts as zero where its index is its input of ``UNREACHED``: inputs
    ascend, so no encoder brings a weight there. A multiplier that is never ``single`` (``singles``) has its own weights
    at that place, and its index has to name it in dense steps: a choice of 16 is five LUTs a bit, one of 17 is six.

    Numeric contract: activations are int8[-128, 127], weights int8[-127, 127], ``p`` is exact. The two lanes of ``p``
    can be told apart after up to 8 products, never after 9.

    Latency: ``skew_cycles + 4`` from every input but ``pcin`` to ``p``. ``pcin`` is added ``GROUP_LATENCY - 2`` cycles
    before ``p``, so a group with two more skew cycles continues its predecessor's sum. Throughput: one step a cycle.

    Back-pressure: none. Reset: none; every register empties by itself in ``skew_cycles + 4`` cycles.

    Parameters: ``first_position``: position of the first multiplier in its 16-wide chain. ``skew_cycles``: delay of the
    selected operands ahead of the slices. ``singles``: which of the two multipliers may have any index (N = 1 puts a
    block's only weight there). ``primitive``: see :class:`hw.dsp48e2.DSP48E2`.

    Members: ``acts``: int8[2 tokens, 16]; ``weights``: int8[2 rows, 2 multipliers]; ``indices``: uint4[2 multipliers];
    ``sparse``: mode; ``row``: the one that a sparse step multiplies; ``single``: N = 1; ``break_``: start a new sum;
    ``pcin``, ``pcout``: cascade; ``p``: tap of the reduction node.
    """

    def __init__(self, *, first_position=0, skew_cycles=0, singles=ANY_INDEX, primitive=False):
        last_position = BLOCK - MULTIPLIERS_PER_GROUP
        if not 0 <= first_position <= last_position:
            raise ValueError(
                f"first_position={first_position}: a group of {MULTIPLIERS_PER_GROUP} multipliers fits at "
                f"positions 0 to {last_position} of a {BLOCK}-wide block"
            )
        self.first_position = first_position
        self.skew_cycles = skew_cycles
        self.singles = singles
        self.primitive = primitive
        super().__init__(
            {
                "acts": In(ACTS),
                "weights": In(weights_layout(MULTIPLIERS_PER_GROUP)),
                "indices": In(indices_layout(MULTIPLIERS_PER_GROUP)),
                "sparse": In(1),
                "row": In(1),
                "single": In(1),
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
        cascade = delay(m, ~self.break_, self.skew_cycles + first.cascade_delay, "cascade")
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
        """The sparse multiplexer of one multiplier: its operands, skewed."""
        row0, row1 = (self.weights[row][number] for row in range(N_LANES))
        x1, x0, y = (Signal(signed(8), name=f"{name}_{number}") for name in ("x1", "x0", "y"))
        reached = self.single | (self.indices[number] != UNREACHED[number])
        weight = Mux(reached, Mux(self.row, row1, row0), 0)
        m.d.comb += [
            x1.eq(self._chosen(number, self.acts[1], row1)),
            x0.eq(self._chosen(number, self.acts[0], row0)),
            y.eq(Mux(self.sparse, weight, self.acts[0][self.first_position + number])),
        ]
        return (delay(m, operand, self.skew_cycles, operand.name) for operand in (x1, x0, y))

    def _chosen(self, number, acts, weight):
        """A multiplier's weight (dense) or the activation at its index (sparse)."""
        index = self.indices[number]
        if self.singles[number]:
            return Mux(self.sparse, acts[index], weight)
        choice = [acts[place] for place in range(BLOCK)]
        choice[UNREACHED[number]] = weight
        return Array(choice)[index]
