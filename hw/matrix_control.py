"""What the matrix units do in which cycle: tables to write, rounds to multiply, sums to drain.

    rounds -> `OrderControl` -> orders -> `StepControl` -> steps -> sums -> `DrainControl` -> rows

An **order** is a dense round, or a batch of sparse rounds for one pair of rows. Orders of a batch come as soon as the
pair's tables are being written, which is while the orders before are carried out.
"""

from amaranth.hdl import *
from amaranth.lib import data, wiring
from amaranth.lib.fifo import SyncFIFO
from amaranth.lib.wiring import In, Out

from hw.accumulator import accumulator_rows, step_layout
from hw.dsp_group import delay
from hw.interfaces import BUFFER_ADDRESS_BITS, descriptor_layout
from hw.matrix_unit import COMMAND
from hw.round import PLACE
from hw.round_queue import COUNT, ENTRY
from hw.spec.config import Config
from hw.spec.isa import MxMode, Unit
from hw.spec.timing import LOAD_INTERVAL, MAX_PLACES, MX_ACC_LATENCY, TABLE_LATENCY
from hw.spec.weights import MAX_BUNDLE, WINDOW

"""Addresses are sums of fields modulo 2**32 (`hw.spec.legal`); walks stop at the first beyond its buffer."""
ROW_BITS = 32
GROUP_SIZE = range(MAX_BUNDLE + 1)
ORDERS = 4
"""Orders that wait: enough for dense rounds of a row each to follow each other."""
LOAD_COMMAND = 4
"""Cycles from reading a pair's rows to telling the units that entries come: those reach them at the same time."""

ORDER = data.StructLayout(
    {
        "number": COUNT,  # of the (first) round
        "sparse": 1,
        "fits": 1,  # a round that does not is no work, but an error
        "act": BUFFER_ADDRESS_BITS,  # first block of the first row (dense)
        "pair": ROW_BITS - 1,  # of rows (sparse)
        "half": 1,  # table that it reads (sparse)
        "first_pair": 1,  # the batch's rounds may not have come yet
        "last_pair": 1,  # they are freed
        "fresh": 1,  # begins a group
        "size": GROUP_SIZE,  # steps of the group
        "last_turn": 1,  # of the outer loop: n_last rows
        "last": 1,  # ends a group
        "final": 1,  # ends the instruction
    }
)


class Rows:
    """Rows of a turn less one, and which of them is the last, as registers. Those of descriptors that are no errors
    are at most ``acc_rows``; others start nothing.

    ``number``: in the last turn, in all others, from the cycle after the descriptor on; ``single``: none but the first,
    a cycle later; ``ends``: the present row is the last.
    """

    def __init__(self, m, config: Config, desc, name: str):
        bits = max(1, (config.acc_rows - 1).bit_length())
        self.number = [Signal(bits, name=f"{name}_last_row_{turn}", reset_less=True) for turn in range(2)]
        self.single = [Signal(name=f"{name}_single_{turn}", reset_less=True) for turn in range(2)]
        self.left, self.ends = (
            Signal(bits, name=f"{name}_rows_left", reset_less=True),
            Signal(name=f"{name}_row_ends", reset_less=True),
        )
        for number, single, rows in zip(
            self.number, self.single, (desc.n_rows, Mux(desc.n_last == 0, desc.n_rows, desc.n_last)), strict=True
        ):
            m.d.sync += [number.eq(rows - 1), single.eq(number == 0)]

    def last(self, last_turn):
        """The last row of a turn."""
        return Mux(last_turn, self.number[1], self.number[0])

    def alone(self, last_turn):
        """Whether a turn's first row is its last."""
        return Mux(last_turn, self.single[1], self.single[0])

    def begin(self, last_turn):
        """The first row of a turn is next."""
        return [self.left.eq(self.last(last_turn)), self.ends.eq(self.alone(last_turn))]

    def advance(self):
        """The row behind the present one is next."""
        return [self.left.eq(self.left - 1), self.ends.eq(self.left == 1)]


def group_size(m, desc, left, name):
    """(steps of the group that begins with so many steps left in its turn, whether those are the turn's last, whether
    groups are of one step)."""
    size, wanted = Signal(GROUP_SIZE, name=f"{name}_size"), Signal(GROUP_SIZE, name=f"{name}_wanted", reset_less=True)
    single, ends = Signal(name=f"{name}_single", reset_less=True), Signal(name=f"{name}_ends")
    m.d.sync += [wanted.eq(Mux(desc.group == 0, 1, desc.group)), single.eq(desc.group <= 1)]
    m.d.comb += [ends.eq(left <= wanted), size.eq(Mux(ends, left, wanted))]
    return size, ends, single


def beyond(act, config: Config):
    """Whether a block's address is beyond the operand buffer, whose size is a power of two."""
    return act[config.ob_blocks.bit_length() - 1 :].any()


class Places:
    """Accumulator rows of output steps: place p has the rows from p << ``shift`` on, step j is in place j modulo
    ``number`` (`hw.spec.timing.accumulator_places`)."""

    def __init__(self, m, config: Config, desc, name: str):
        bits = (config.acc_rows - 1).bit_length()
        self.rows = accumulator_rows(config)
        self.shift = Signal(range(bits + 1), name=f"{name}_shift", reset_less=True)
        self.number = Signal(range(MAX_PLACES + 1), name=f"{name}_places", reset_less=True)
        last = (desc.n_rows - 1)[:bits]
        with m.Switch(last):
            for length in reversed(range(bits + 1)):
                pattern = "0" * (bits - length) + ("1" if length else "") + "-" * (length - 1)
                with m.Case(pattern if bits else ""):
                    m.d.sync += self.shift.eq(length)
                    m.d.sync += self.number.eq(min(MAX_PLACES, 2 * config.acc_rows >> length))

    def row(self, step, row):
        """The accumulator row of a step's row."""
        place = (step & (self.number - 1))[: MAX_PLACES.bit_length() - 1]
        return ((place << self.shift) | row)[: len(Signal(self.rows))]


class OrderControl(wiring.Component):
    """Turns the rounds that have come into orders, and reads the rows of activations that tables are written with.

    Latency: started in s, the first order is made in s + 1 at the earliest. A dense round's order is made when the
    round has come; a sparse batch's with its first round, one for each pair of rows, LOAD_INTERVAL cycles apart: in
    that cycle and the next the pair's rows are read. An order is on ``order`` from the next cycle on, with
    ``loaded`` if its tables will be there in time for steps behind a take in that cycle, TABLE_LATENCY cycles after
    the order was made. Throughput: an order a cycle.

    Back-pressure: ORDERS orders wait. A batch's tables are written while no dense round is worked on or waits, and
    while at most one other pair's are in use or waiting. Reset: idle.

    Parameters: ``config``.

    Members: ``start``, ``desc``: an MX instruction; ``stop``: make no orders; ``arrived``, ``place``, ``round``: the
    rounds that have come, and one of them; ``order``, ``order_valid``, ``loaded``, ``take``: the oldest order that is
    not taken; ``dense_done``, ``sparse_done``: the last cycle of a dense round's, of a pair's steps; ``read``,
    ``second``, ``act``: a pair's first, second row is read, its first block; ``load``, ``load_at``, ``load_half``: see
    `hw.matrix_unit.COMMAND`; ``split``: SPLIT_K; ``range_error``: ``act`` was beyond the buffer one cycle ago.
    """

    def __init__(self, config: Config):
        self.config = config
        super().__init__(
            {
                "start": In(1),
                "desc": In(descriptor_layout(Unit.MX)),
                "stop": In(1),
                "arrived": In(COUNT),
                "place": Out(PLACE),
                "round": In(ENTRY),
                "order": Out(ORDER),
                "order_valid": Out(1),
                "loaded": Out(1),
                "take": In(1),
                "dense_done": In(1),
                "sparse_done": In(1),
                "read": Out(1),
                "second": Out(1),
                "act": Out(BUFFER_ADDRESS_BITS),
                "split": Out(1),
                "load": Out(1),
                "load_at": Out(PLACE),
                "load_half": Out(1),
                "range_error": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        desc, kind = self.desc, self.round.kind
        m.submodules.orders = orders = SyncFIFO(width=ORDER.size, depth=ORDERS)
        at, active, scanning, there = Signal(COUNT), Signal(), Signal(), Signal()
        can, made, ahead, dense = Signal(), Signal(), Signal(range(4)), Signal(range(2 * ORDERS))
        pause, half = Signal(range(LOAD_INTERVAL)), Signal()
        order = Signal(ORDER)
        walk = self._walk(m, order, made, active, scanning)
        m.d.comb += [
            there.eq(at != self.arrived),
            self.place.eq(at),
            # The pair after the next may be written when the last step of the one in use is under way.
            can.eq(Mux(kind.sparse, (pause == 0) & (dense == 0) & (ahead - self.sparse_done < 2), orders.w_rdy)),
            made.eq(active & ~scanning & there & can & ~self.stop),
            orders.w_en.eq(made),
            orders.w_data.eq(order),
            self.order.as_value().eq(orders.r_data),
            self.order_valid.eq(orders.r_rdy),
            orders.r_en.eq(self.take),
            order.number.eq(at),
            order.sparse.eq(kind.sparse),
            order.half.eq(half),
        ]
        loads = made & kind.sparse
        m.d.sync += [
            self.split.eq(desc.mode == MxMode.SPLIT_K),
            pause.eq(Mux(loads, LOAD_INTERVAL - 1, Mux(pause == 0, 0, pause - 1))),
            half.eq(half ^ loads),
            ahead.eq(ahead + loads - self.sparse_done),
            dense.eq(dense + (made & ~kind.sparse) - self.dense_done),
        ]
        # The batch's further rounds are nobody's orders.
        with m.If(made & order.last_pair):
            m.d.sync += [at.eq(at + 1), scanning.eq(kind.more)]
        with m.If(scanning & there):
            m.d.sync += [at.eq(at + 1), scanning.eq(kind.more)]
        self._tables(m, order, loads, walk)
        return m

    def _walk(self, m, order, made, active, scanning):
        """Where the round to come is in its instruction; the address of the pair's first row."""
        desc, kind = self.desc, self.round.kind
        numbers = Rows(m, self.config, desc, "order")
        steps_left, turns_left, k_left, pair = (
            Signal(size, name=name, reset_less=True)
            for name, size in (
                ("steps_left", 32),
                ("turns_left", 32),
                ("k_left", 32),
                ("pair", range(self.config.acc_rows)),
            )
        )
        act, following, raw_base, window, pair_act = (
            Signal(BUFFER_ADDRESS_BITS, name=name, reset_less=True)
            for name in ("act_base", "next_act", "raw_base", "window_base", "pair_act")
        )
        fresh, raw_group, last, last_turn, turn_ends, first_pair, k_ends = (
            Signal(name=name)
            for name in ("fresh", "raw_group", "last", "last_turn", "turn_ends", "first_pair", "k_ends")
        )
        size, size_ends, single = group_size(m, desc, steps_left, "group")
        first = kind.window * WINDOW
        rows = numbers.last(last_turn)
        m.d.comb += [
            last.eq(Mux(kind.raw, k_ends, kind.last)),
            turn_ends.eq(last & size_ends),
            following.eq(act + desc.act_out),
            window.eq(act + first),
            order.pair.eq(pair),
            order.first_pair.eq(first_pair),
            order.last_pair.eq(~kind.sparse | (pair == rows[1:])),
            order.fresh.eq(fresh & first_pair),
            order.size.eq(size),
            order.last_turn.eq(last_turn),
            order.last.eq(last & order.last_pair),
            order.final.eq(order.last & turn_ends & last_turn),
            order.act.eq(Mux(kind.raw, raw_base, window)),
            order.fits.eq(
                self.round.agree
                & (fresh | (kind.raw == raw_group))
                & Mux(kind.raw, single, ~self.split & (first < desc.kb))
            ),
        ]
        with m.If(made):
            m.d.sync += [pair.eq(pair + 1), first_pair.eq(0)]
            m.d.sync += [pair_act.eq(Mux(first_pair, window, pair_act) + (desc.act_stride << 1))]
        with m.If(made & order.last_pair):
            m.d.sync += [pair.eq(0), first_pair.eq(1), fresh.eq(last)]
            m.d.sync += [k_left.eq(k_left - 1), k_ends.eq(k_left == 1)]
            m.d.sync += [raw_group.eq(kind.raw), raw_base.eq(raw_base + Mux(self.split, self.config.units, 1))]
            with m.If(last):
                m.d.sync += [k_left.eq(desc.kb - 1), k_ends.eq(desc.kb == 1)]
                m.d.sync += [raw_base.eq(act), steps_left.eq(steps_left - size)]
            with m.If(turn_ends):
                m.d.sync += [act.eq(following), raw_base.eq(following), steps_left.eq(desc.ob)]
                m.d.sync += [turns_left.eq(turns_left - 1), last_turn.eq(turns_left == 2), active.eq(~last_turn)]
        with m.If(self.start):
            m.d.sync += [active.eq(1), fresh.eq(1), pair.eq(0), first_pair.eq(1)]
            m.d.sync += [raw_base.eq(desc.act), act.eq(desc.act), steps_left.eq(desc.ob)]
            m.d.sync += [k_left.eq(desc.kb - 1), k_ends.eq(desc.kb == 1)]
            m.d.sync += [turns_left.eq(desc.n_outer), last_turn.eq(desc.n_outer == 1)]
        return Mux(first_pair, window, pair_act), rows

    def _tables(self, m, order, loads, walk):
        """Reads both rows of a pair and tells the units about the entries that come of them."""
        address, rows = walk
        other, second = Signal(BUFFER_ADDRESS_BITS, reset_less=True), Signal()
        read, outside = Signal(name="was_read"), Signal(name="was_outside")
        m.d.sync += [
            read.eq(self.read | second),
            outside.eq(beyond(self.act, self.config)),
            other.eq(address + self.desc.act_stride),
            # The second row of the last pair is one if the last row's number is odd.
            second.eq(loads & order.fits & (~order.last_pair | rows[0])),
        ]
        load = Signal(COMMAND)
        m.d.comb += [
            self.read.eq(loads & order.fits),
            self.second.eq(second),
            self.act.eq(Mux(second, other, address)),
            self.range_error.eq(read & outside),
            load.load.eq(self.read),
            load.load_at.eq(order.number),
            load.load_half.eq(order.half),
        ]
        late = data.View(COMMAND, delay(m, load.as_value(), LOAD_COMMAND, "load"))
        m.d.comb += [self.load.eq(late.load), self.load_at.eq(late.load_at), self.load_half.eq(late.load_half)]
        # Counted, as the orders of tables that are not there yet wait behind those whose are.
        line, loaded = Signal(TABLE_LATENCY - 1), Signal(range(4))
        m.d.sync += [line.eq(Cat(loads, line)), loaded.eq(loaded + line[-1] - (self.take & self.order.sparse))]
        m.d.comb += self.loaded.eq(loaded != 0)


class StepControl(wiring.Component):
    """Takes orders and runs the rows and passes of their rounds.

    A dense round's steps are its rows, and for each its passes. An order of a batch is for a pair of rows: round by
    round the passes, and for each both rows of the pair, ``token`` 0 and 1. The row behind an odd number of rows is a
    step, but not valid.

    Latency: a round's steps are in the cycles after its take, ``rows * passes`` or ``2 * passes`` of them, and the next
    take in the last of them at the earliest. Throughput: a step a cycle.

    Back-pressure: waits for orders and, with the first of a group, for places in the accumulators for all steps of the
    group (``step_drained``); with the first pair of a batch, for its rounds. Reset: idle.

    Parameters: ``config``.

    Members: ``start``, ``desc``: an MX instruction; ``order``, ``order_valid``, ``loaded``, ``take_order``: see
    :class:`OrderControl`; ``arrived``, ``place``, ``round``: the rounds that have come, and one of them; ``step``,
    ``step_valid``, ``act``, ``act_valid``: work, and the first operand block that a dense step reads; ``read``,
    ``read_at``, ``free``: see `hw.matrix_unit.COMMAND`, with a round's first step; ``dense_done``, ``sparse_done``,
    ``group_done``: the last cycle of a dense round, of an order of a batch, of a group; ``step_drained``: a step's
    place is free; ``stop``: take nothing more; ``range_error``: ``act`` was beyond the buffer one cycle ago;
    ``header_error``: the round taken one cycle ago does not fit: it is not the same in all units, not of the
    instruction's or the group's format, beyond its inputs or its group, or it ends a group of which a step has no
    round. Nothing more is taken then; ``weight_stall``, ``drain_stall``: the unit waits in this cycle for an order or a
    round, or for places.
    """

    def __init__(self, config: Config):
        self.config = config
        super().__init__(
            {
                "start": In(1),
                "desc": In(descriptor_layout(Unit.MX)),
                "stop": In(1),
                "order": In(ORDER),
                "order_valid": In(1),
                "loaded": In(1),
                "take_order": Out(1),
                "arrived": In(COUNT),
                "place": Out(PLACE),
                "round": In(ENTRY),
                "step": Out(step_layout(config)),
                "step_valid": Out(1),
                "act": Out(BUFFER_ADDRESS_BITS),
                "act_valid": Out(1),
                "read": Out(1),
                "read_at": Out(PLACE),
                "free": Out(1),
                "dense_done": Out(1),
                "sparse_done": Out(1),
                "group_done": Out(1),
                "step_drained": In(1),
                "range_error": Out(1),
                "header_error": Out(1),
                "weight_stall": Out(1),
                "drain_stall": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        kind, order, now = self.round.kind, Signal(ORDER, reset_less=True), Signal(ORDER)
        # inside: the round to take is the batch's next, which may be long in coming; else it is an order's first.
        busy, inside, round_last, take, fits = (
            Signal(name=name) for name in ("busy_step", "inside", "round_last", "take", "fits")
        )
        number, following = Signal(COUNT), Signal(COUNT)
        m.d.comb += [
            now.eq(Mux(inside, order.as_value(), self.order.as_value())),
            number.eq(Mux(inside, following, self.order.number)),
            self.place.eq(number),
            self.dense_done.eq(busy & round_last & ~order.sparse),
            self.sparse_done.eq(busy & round_last & order.sparse & ~inside),
            self.group_done.eq(busy & round_last & order.last & ~inside),
            self.take_order.eq(take & ~inside),
        ]
        with m.If(busy & round_last):
            m.d.sync += busy.eq(0)
        with m.If(take):
            m.d.sync += [order.eq(now), inside.eq(kind.more), following.eq(number + 1), busy.eq(fits)]
        starts = Signal()
        m.d.sync += [starts.eq(take & fits), self.header_error.eq(take & ~fits)]
        m.d.comb += [
            self.read.eq(starts),
            self.read_at.eq(following - 1),
            self.free.eq(starts & order.last_pair),
        ]
        places = Places(m, self.config, self.desc, "step")
        self._take(m, now, inside, following, busy, round_last, take, fits, places)
        place = self._group(m, now, inside, take, fits)
        self._rows(m, now, order, take, busy, round_last, places, place)
        return m

    def _take(self, m, now, inside, following, busy, round_last, take, fits, places):
        """When a round is taken: it has come, its tables are written, and its group has places."""
        active, failed, ready, free, want = (
            Signal(name=name) for name in ("active", "failed", "ready", "free", "want")
        )
        in_use = Signal(range(MAX_PLACES + 1))
        m.d.comb += [
            ready.eq(
                Mux(
                    inside,
                    ~now.first_pair | (following != self.arrived),
                    self.order_valid & (~self.order.sparse | self.loaded),
                )
            ),
            free.eq(inside | ~self.order.fresh | (in_use + self.order.size <= places.number)),
            want.eq(active & ~failed & ~self.stop & (~busy | round_last)),
            take.eq(want & ready & free),
            self.weight_stall.eq(want & ~ready),
            self.drain_stall.eq(want & ready & ~free),
        ]
        began = Mux(self.take_order & self.order.fresh, self.order.size, 0)
        m.d.sync += in_use.eq(in_use + began - self.step_drained)
        with m.If(take):
            m.d.sync += [failed.eq(~fits), active.eq(~(now.final & ~self.round.kind.more))]
        with m.If(self.start):
            m.d.sync += active.eq(1)

    def _group(self, m, now, inside, take, fits):
        """Whether a round is right for its group, whose steps must all have rounds in the end; its step's place."""
        kind, first = self.round.kind, Signal()
        base, following = Signal(range(MAX_PLACES), name="group_place"), Signal(range(MAX_PLACES))
        # Steps that have rounds, a bit each: ahead of the present batch, and with what is taken of that.
        ahead, batch, before, behind = (
            Signal(MAX_BUNDLE, name=name, reset_less=True)
            for name in ("steps_ahead", "steps_of_batch", "before", "behind")
        )
        wanted, held = Signal(MAX_BUNDLE, name="wanted"), Signal(MAX_BUNDLE, name="held", reset_less=True)
        fresh, whole, place = Signal(), Signal(), Signal(range(MAX_PLACES), name="step_place")
        m.d.comb += [
            fresh.eq(~inside & now.fresh),
            before.eq(Mux(fresh, 0, ahead)),
            behind.eq(before | Mux(inside, batch, 0) | (1 << kind.step)),
            wanted.eq(Mux(inside, held, Cat(step < self.order.size for step in range(MAX_BUNDLE)))),
            # Steps that fit are of the group: none but this one may be wanted still.
            whole.eq((wanted & ~(before | Mux(inside, batch, 0)) & ~(1 << kind.step)) == 0),
            first.eq(~(before >> kind.step)[0]),
            fits.eq(now.fits & self.round.agree & (kind.step < now.size) & (whole | ~now.last | kind.more)),
        ]
        with m.If(take):
            m.d.sync += [
                held.eq(wanted),
                batch.eq(behind),
                ahead.eq(Mux(now.last_pair & ~kind.more, behind, before)),
                self.step.first.eq(first),
                place.eq(Mux(fresh, following, base) + kind.step),
            ]
        with m.If(take & fresh):
            m.d.sync += [base.eq(following), following.eq(following + now.size)]
        with m.If(self.start):
            m.d.sync += following.eq(0)
        return place

    def _rows(self, m, now, order, take, busy, round_last, places, place):
        """Rows and passes of a round, and the operand address of a dense one."""
        step, row = self.step, Signal(accumulator_rows(self.config), reset_less=True)
        read, outside = Signal(name="was_read"), Signal(name="was_outside")
        act = Signal(BUFFER_ADDRESS_BITS, reset_less=True)
        last_pass, passes = Signal(), self.config.passes
        rows = Rows(m, self.config, self.desc, "step")
        m.d.comb += [
            last_pass.eq(step.pass_ == passes - 1),
            step.row.eq(places.row(place, row)),
            step.sparse.eq(order.sparse),
            step.half.eq(order.half),
            step.token.eq(order.sparse & row[0]),
            # The second row of the last pair is one if the last row's number is odd.
            self.step_valid.eq(busy & (~step.token | ~order.last_pair | rows.last(order.last_turn)[0])),
            self.act.eq(act),
            self.act_valid.eq(busy & ~order.sparse),
            self.range_error.eq(read & outside),
        ]
        m.d.sync += [read.eq(self.act_valid), outside.eq(beyond(act, self.config))]
        with m.If(busy):
            # Whether the next cycle's step is the round's last.
            with m.If(order.sparse):
                m.d.sync += round_last.eq(last_pass & ~step.token)
            with m.Elif(last_pass):
                m.d.sync += round_last.eq((rows.left == 1) & (passes == 1))
            with m.Else():
                m.d.sync += round_last.eq((step.pass_ == passes - 2) & rows.ends)
            with m.If(~order.sparse | step.token):
                m.d.sync += step.pass_.eq(Mux(last_pass, 0, step.pass_ + 1))
            with m.If(order.sparse):
                m.d.sync += row[0].eq(~row[0])
            with m.Elif(last_pass):
                m.d.sync += [row.eq(row + 1), act.eq(act + self.desc.act_stride), *rows.advance()]
        with m.If(take):
            m.d.sync += [
                step.pass_.eq(0),
                row.eq(Mux(now.sparse, Cat(Const(0, 1), now.pair), 0)),
                act.eq(now.act),
                *rows.begin(now.last_turn),
                round_last.eq(~now.sparse & rows.alone(now.last_turn) & (passes == 1)),
            ]


class DrainControl(wiring.Component):
    """Reads finished output steps out of the accumulators, row by row.

    Latency: the steps of a group done in t are drained from t + MX_ACC_LATENCY on (``drain`` itself is registered, a
    cycle later), or right after their predecessors. Throughput: a word of ``lanes`` a cycle (SPLIT_N), a granule a
    cycle (SPLIT_K).

    Back-pressure: none. Reset: idle.

    Parameters: ``config``.

    Members: ``start``, ``desc``: an MX instruction; ``group_done``: see :class:`StepControl`; ``drain``,
    ``drain_valid``: the row to read, a cycle late; ``group``, ``dst``: word of the row and its granule in the
    accumulator buffer, with ``drain``; ``step_drained``: the last drain cycle of a step, ``all_drained``: and of the
    instruction (in time); ``range_error``: ``dst`` is beyond the buffer (with ``drain``).
    """

    def __init__(self, config: Config):
        self.config = config
        super().__init__(
            {
                "start": In(1),
                "desc": In(descriptor_layout(Unit.MX)),
                "group_done": In(1),
                "drain": Out(accumulator_rows(config)),
                "drain_valid": Out(1),
                "group": Out(range(config.drain_cycles_a_row)),
                "dst": Out(range(config.ab_granules)),
                "step_drained": Out(1),
                "all_drained": Out(1),
                "range_error": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config, desc = self.config, self.desc
        split_k = Signal()
        line, ready = Signal(MX_ACC_LATENCY - 1, name="done_line"), Signal(range(MAX_PLACES + 1))
        size = self._group_size(m, line[-1])
        m.d.sync += [
            split_k.eq(desc.mode == MxMode.SPLIT_K),
            line.eq(Cat(self.group_done, line)),
            ready.eq(ready + Mux(line[-1], size, 0) - self.step_drained),
        ]

        steps_left, outer_left = (Signal(32, name=f"{name}_left", reset_less=True) for name in ("steps", "outer"))
        row, group = Signal(accumulator_rows(config), reset_less=True), Signal.like(self.group, reset_less=True)
        address, row_base, step_base, dst, next_step = (
            Signal(BUFFER_ADDRESS_BITS, name=name, reset_less=True)
            for name in ("address", "row_base", "step_base", "dst_base", "next_step")
        )
        active, row_last, outer_last, step = Signal(), Signal(), Signal(), Signal(range(MAX_PLACES))
        # Counters run down to 1, and whether they are there is known beforehand.
        last_turn, last_step, one_step = (Signal(name=name) for name in ("last_turn", "last_step", "one_step"))
        places, rows = Places(m, config, desc, "drain"), Rows(m, config, desc, "drain")
        m.d.sync += one_step.eq(desc.ob == 1)
        m.d.comb += [
            active.eq(ready != 0),
            row_last.eq(split_k | (group == config.drain_cycles_a_row - 1)),
            self.step_drained.eq(active & row_last & rows.ends),
            outer_last.eq(self.step_drained & last_step),
            self.all_drained.eq(outer_last & last_turn),
            next_step.eq(Mux(outer_last, dst + desc.dst_out, step_base + Mux(split_k, 1, config.units))),
        ]
        with m.If(active):
            m.d.sync += [group.eq(group + 1), address.eq(address + config.granules_per_word)]
            with m.If(row_last):
                m.d.sync += [
                    group.eq(0),
                    row.eq(row + 1),
                    address.eq(row_base + desc.dst_stride),
                    row_base.eq(row_base + desc.dst_stride),
                    *rows.advance(),
                ]
        with m.If(self.step_drained):
            m.d.sync += [
                row.eq(0),
                step.eq(step + 1),
                steps_left.eq(steps_left - 1),
                last_step.eq(steps_left == 2),
                *rows.begin(Mux(last_step, outer_left == 2, last_turn)),
                address.eq(next_step),
                row_base.eq(next_step),
                step_base.eq(next_step),
            ]
        with m.If(outer_last):
            m.d.sync += [steps_left.eq(desc.ob), last_step.eq(one_step), dst.eq(next_step)]
            m.d.sync += [outer_left.eq(outer_left - 1), last_turn.eq(outer_left == 2)]
        # The first row is drained long after the rows of the turns are known.
        with m.If(delay(m, self.start, 2, "begins")):
            m.d.sync += rows.begin(last_turn)
        with m.If(self.start):
            m.d.sync += [
                row.eq(0),
                step.eq(0),
                group.eq(0),
                steps_left.eq(desc.ob),
                outer_left.eq(desc.n_outer),
                last_step.eq(desc.ob == 1),
                last_turn.eq(desc.n_outer == 1),
                dst.eq(desc.dst),
                address.eq(desc.dst),
                row_base.eq(desc.dst),
                step_base.eq(desc.dst),
            ]
        late_address = Signal.like(self.dst, reset_less=True)
        m.d.comb += self.dst.eq(late_address)
        m.d.sync += [
            self.drain_valid.eq(active),
            self.drain.eq(places.row(step, row)),
            self.group.eq(group),
            late_address.eq(address),
            self.range_error.eq(active & (address >= config.ab_granules)),
        ]
        return m

    def _group_size(self, m, done):
        """Steps of the group that is done: groups end in the order of their steps."""
        left = Signal(32, name="group_steps_left", reset_less=True)
        size, ends, _ = group_size(m, self.desc, left, "done")
        with m.If(done):
            m.d.sync += left.eq(Mux(ends, self.desc.ob, left - size))
        with m.If(self.start):
            m.d.sync += left.eq(self.desc.ob)
        return size
