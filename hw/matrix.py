"""MX and RD: the matrix units, what feeds them, and where their results go."""

from amaranth.hdl import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hw.accumulator import ACC_BITS, delay_valid
from hw.accumulator_buffer import AccumulatorBuffer
from hw.dsp_group import delay
from hw.interfaces import BASE_BITS, AXI4Read, BufferRead, BufferWrite, UnitPort
from hw.matrix_control import DrainControl, OrderControl, StepControl
from hw.matrix_unit import COMMAND, MatrixUnit
from hw.operand_buffer import BLOCK_BITS, OperandBuffer
from hw.pipeline import copies, reset_domain
from hw.round_queue import RoundQueue
from hw.spec.config import BLOCK, Config
from hw.spec.isa import Error, MxMode, StreamFormat, Unit
from hw.spec.timing import MX_ACC_LATENCY, MX_DRAIN_LATENCY, RD_ADDRESS, UNIT_START
from hw.spec.weights import MAX_BUNDLE
from hw.verilog_writer import as_module
from hw.weight_reader import CAME

ROW_READ_LATENCY = 4
"""Cycles from a drain to its row: a register at both ends of both nets between core and unit."""
ROUND_DOMAINS = 4
"""Registers that reset the queue of rounds."""
TREE_STAGES = MX_DRAIN_LATENCY - ROW_READ_LATENCY - 1
TREE_LEVELS_A_STAGE = 2
"""Registers of the adder tree over units, and the adders between two of them."""
LOADS_A_COPY = 256
"""Bits of rows and of results that one register chooses."""


def registered(m, name, value, *, resets=True):
    """The value a cycle later: one end of a net between core and units."""
    register = Signal(len(value), name=f"{name}_register", reset_less=not resets)
    m.d.sync += register.eq(value)
    return register


class RowMerger(wiring.Component):
    """The units' rows -> words: the chosen group of units side by side (SPLIT_N), or their sum everywhere (SPLIT_K).

    Rows that are not chosen come as 0, so that the sum of all groups is the one that is: a word of it is on the way to
    the sum of all units, and no multiplexer chooses among groups.

    Numeric contract: int32, wrapping. Latency: ``TREE_STAGES + 1`` cycles. Throughput: a word a cycle. Back-pressure,
    reset: none.

    Parameters: ``config``. Members: ``rows``: int32[units, 16]; ``group``: of the rows in CHOICE cycles; ``sum``: all
    rows, which is not to change while rows are under way; ``o``: int32[lanes].
    """

    CHOICE = 2
    """Cycles from a group's number to its rows: which units are chosen is in registers, with copies of its own."""

    def __init__(self, config: Config):
        self.config = config
        self.levels = [(n - 1).bit_length() for n in (config.drain_cycles_a_row, config.granules_per_word)]
        """Adders up to a word of sums over groups, and from there up to the sum of all."""
        most = (TREE_STAGES - 1) * TREE_LEVELS_A_STAGE, TREE_LEVELS_A_STAGE
        if self.levels[0] > most[0] or self.levels[1] > most[1]:
            raise ValueError(
                f"{config.units} units, {config.granules_per_word} a word: the tree adds up to "
                f"{1 << most[0]} groups of up to {1 << most[1]}"
            )
        super().__init__(
            {
                "rows": In(data.ArrayLayout(BLOCK * ACC_BITS, config.units)),
                "group": In(range(config.drain_cycles_a_row)),
                "sum": In(1),
                "o": Out(data.ArrayLayout(signed(ACC_BITS), config.lanes)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        sums = [self._row(m, unit) for unit in range(self.config.units)]
        left, for_total = self.levels
        for stage in range(TREE_STAGES - 1):
            levels = min(left, TREE_LEVELS_A_STAGE)
            left -= levels
            sums = self._added(m, sums, levels, f"sum_{stage}")
        word = delay(m, Cat(*(lane for row in sums for lane in row)), 1, "word")
        (total,) = self._added(m, sums, for_total, "total")
        total = Cat(*total).replicate(self.config.granules_per_word)
        parts = [slice(at, at + LOADS_A_COPY) for at in range(0, len(word), LOADS_A_COPY)]
        chosen = copies(m, self.sum, len(parts), "sum")
        m.d.comb += self.o.eq(
            Cat(Mux(choice, total[part], word[part]) for choice, part in zip(chosen, parts, strict=True))
        )
        return m

    def _row(self, m, unit):
        """A unit's lanes, a cycle later, or 0 where its group is not chosen."""
        row = self.rows[unit]
        wanted = Signal(name=f"wanted_{unit}", reset_less=True)
        m.d.sync += wanted.eq(self.sum | (self.group == unit // self.config.granules_per_word))
        held = Signal(len(row), name=f"row_{unit}", reset_less=True)
        parts = range(0, len(row), LOADS_A_COPY)
        for at, choice in zip(parts, copies(m, wanted, len(parts), f"wanted_{unit}"), strict=True):
            part = slice(at, at + LOADS_A_COPY)
            m.d.sync += held[part].eq(Mux(choice, row[part], 0))
        return [held.word_select(lane, ACC_BITS) for lane in range(BLOCK)]

    def _added(self, m, rows, levels, name):
        """Halves of the rows added so many times, in registers."""
        for _ in range(levels):
            half = len(rows) // 2
            rows = [
                [(a + b)[:ACC_BITS] for a, b in zip(x, y, strict=True)]
                for x, y in zip(rows[:half], rows[half:], strict=True)
            ]
        return [
            [delay(m, value, 1, f"{name}_{i}_{lane}") for lane, value in enumerate(row)] for i, row in enumerate(rows)
        ]


class Matrix(wiring.Component):
    """The RD and MX units of the machine: every matrix unit, the operand buffer and the accumulator buffer.

    Numeric contract: int8 x int8 (weights above -128), exact int32 sums, wrapping; modes as in `hw.spec.isa.MxMode`.

    Latency and throughput: docs/machine.md, RD, matrix unit front and MX, with MX_ACC_LATENCY and MX_DRAIN_LATENCY.

    Back-pressure: addresses wait for FIFO room and arready; R is always ready. Errors: RD reports BUS_READ,
    STREAM_HEADER (what a unit's stream says) and ILLEGAL_DESCRIPTOR, MX ILLEGAL_DESCRIPTOR, BUFFER_RANGE and
    STREAM_HEADER (units that disagree, a stream that does not fit the instruction), as sticky levels; nothing is done
    or newly asked for afterwards. Reset: everything idle and empty; buffers keep their contents. Reset only while
    ``bus_idle``.

    Parameters: ``config``; ``primitive``: see :class:`hw.dsp48e2.DSP48E2`; ``shared``: write the matrix unit once
    (`hw.verilog_writer.as_module`; not for the Amaranth simulator).

    Members: ``rd``, ``mx``: dispatch; ``stop``: send no new address and take no round (after an error anywhere);
    ``bus_idle``; ``bases``, ``axi``: the units' channels; ``operands``: OB's write port, words of ``lanes`` int8;
    ``results``: AB's read port; ``weight_stall``, ``drain_stall``: MX waits for weights, for a bank, in this cycle;
    ``unpack_stall``: unit 0 holds a beat back because its weight buffer is full, told UNIT_REPORT cycles late;
    ``came``: of every unit, a beat of RAW, of STREAM has come, told as late.
    """

    def __init__(self, config: Config, *, primitive=False, shared=False):
        self.config = config
        self.primitive = primitive
        self.shared = shared
        words = config.granules_per_word
        super().__init__(
            {
                "rd": In(UnitPort(Unit.RD)),
                "mx": In(UnitPort(Unit.MX)),
                "stop": In(1),
                "bus_idle": Out(1),
                "bases": In(data.ArrayLayout(BASE_BITS, config.units)),
                "axi": Out(AXI4Read()).array(config.units),
                "operands": In(BufferWrite(config.ob_blocks // words, config.lanes, 8)),
                "results": In(BufferRead(config.ab_granules // words, config.lanes)),
                "weight_stall": Out(1),
                "drain_stall": Out(1),
                "unpack_stall": Out(1),
                "came": Out(data.ArrayLayout(CAME, config.units)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        unit = MatrixUnit(self.config, primitive=self.primitive)
        # A drain is two registers behind the cycle that it counts from: its own, and the unit's.
        if unit.step_latency != MX_ACC_LATENCY + 2:
            raise ValueError(
                f"MX_ACC_LATENCY = {MX_ACC_LATENCY}, but the matrix unit needs {unit.step_latency - 2} cycles"
            )
        units = [unit] + [MatrixUnit(self.config, primitive=self.primitive) for _ in range(1, self.config.units)]
        if self.shared:
            units = [as_module(each, "matrix_unit") for each in units]
        for number, each in enumerate(units):
            m.submodules[f"unit_{number}"] = each
            wiring.connect(m, wiring.flipped(self.axi[number]), each.axi)
            m.d.comb += each.base.eq(self.bases[number])
        stop = Signal()
        m.d.comb += [
            stop.eq(self.stop | self.rd.error | self.mx.error),
            self.bus_idle.eq(registered(m, "bus_idle", Cat(each.bus_idle for each in units), resets=False).all()),
        ]
        came = registered(m, "came", Cat(each.came for each in units), resets=False)
        m.d.comb += self.came.as_value().eq(came)
        m.d.sync += self.unpack_stall.eq(units[0].unpack_stall)
        self._rd(m, units, stop)
        self._mx(m, units, stop)
        return m

    def _rd(self, m, units, stop):
        busy, illegal, desc = Signal(), Signal(), self.rd.desc
        active = registered(m, "active", Cat(unit.active for unit in units), resets=False)
        # Units are reset a cycle behind what is here: then an old error of theirs must not come in.
        (units_reset,) = copies(m, ResetSignal(), 1, "units_reset", resets=False)
        header, bus = (
            registered(m, name, registered(m, f"unit_{name}", Mux(units_reset, 0, errors)).any())
            for name, errors in (
                (name, Cat(getattr(unit, name) for unit in units)) for name in ("header_error", "bus_error")
            )
        )
        started = Signal(RD_ADDRESS - UNIT_START + 1, name="rd_started")
        m.d.sync += started.eq(Cat(self.rd.start, started))
        with m.If(self.rd.start):
            m.d.sync += [
                busy.eq(1),
                illegal.eq((desc.n_outer == 0) | (desc.n_inner == 0) | (desc.fmt > max(StreamFormat))),
            ]
        with m.If(self.rd.done):
            m.d.sync += busy.eq(0)
        late_stop = registered(m, "unit_stop", stop)
        for unit in units:  # start and descriptor come out of registers
            m.d.comb += [unit.rd_start.eq(self.rd.start), unit.rd_desc.eq(desc), unit.stop.eq(late_stop)]
        m.d.comb += [
            self.rd.error.eq(illegal | header | bus),
            # The units are seen to be active from RD_ADDRESS + 1 cycles after the instruction's start on.
            self.rd.done.eq(busy & ~self.rd.error & ~active.any() & ~started.any()),
            self.rd.error_code.eq(
                Mux(
                    illegal,
                    Error.ILLEGAL_DESCRIPTOR,
                    Mux(bus, Error.BUS_READ, Mux(header, Error.STREAM_HEADER, Error.NONE)),
                )
            ),
        ]

    def _mx(self, m, units, stop):
        # Reset with the units: a round that one of them still tells of in the cycle before counts no more.
        domains = tuple(f"rounds_{number}" for number in range(ROUND_DOMAINS))
        for name in domains:
            reset_domain(m, name, ResetSignal())
        with_units = reset_domain(m, "control", ResetSignal())
        rounds, orders = RoundQueue(self.config, domains), OrderControl(self.config)
        steps, drain = StepControl(self.config), DrainControl(self.config)
        for name, control in (("rounds", rounds), ("orders", orders), ("steps", steps), ("drain", drain)):
            m.submodules[name] = with_units(control)
        m.submodules.operands = operands = OperandBuffer(self.config)
        for control in (orders, steps, drain):
            m.d.comb += [control.start.eq(self.mx.start), control.desc.eq(self.mx.desc)]
        for number, control in enumerate((orders, steps)):
            m.d.comb += [
                control.stop.eq(stop),
                control.arrived.eq(rounds.arrived),
                rounds.at[number].eq(control.place),
                control.round.eq(rounds.o[number]),
            ]
        m.d.comb += [
            rounds.done.eq(Cat(unit.done for unit in units)),
            steps.order.eq(orders.order),
            steps.order_valid.eq(orders.order_valid),
            steps.loaded.eq(orders.loaded),
            orders.take.eq(steps.take_order),
            orders.dense_done.eq(steps.dense_done),
            orders.sparse_done.eq(steps.sparse_done),
            steps.step_drained.eq(drain.step_drained),
            drain.group_done.eq(steps.group_done),
            operands.en.eq(steps.act_valid | orders.read | orders.second),
            operands.first.eq(orders.read),
            operands.second.eq(orders.second),
            operands.addr.eq(Mux(steps.act_valid, steps.act, orders.act)),
            operands.split.eq(orders.split),
            self.weight_stall.eq(steps.weight_stall),
            self.drain_stall.eq(steps.drain_stall),
        ]
        wiring.connect(m, wiring.flipped(self.operands), operands.write)
        command = Signal(COMMAND)
        m.d.comb += [
            command.read.eq(steps.read),
            command.at.eq(steps.read_at),
            command.free.eq(steps.free),
            command.load.eq(orders.load),
            command.load_at.eq(orders.load_at),
            command.load_half.eq(orders.load_half),
        ]
        command, step, valid = (
            registered(m, name, value)
            for name, value in (
                ("command", command.as_value()),
                ("step", steps.step.as_value()),
                ("valid", steps.step_valid),
            )
        )
        for number, unit in enumerate(units):
            m.d.comb += [
                rounds.kinds[number].eq(unit.kind),
                unit.command.eq(command),
                unit.step.eq(step),
                unit.step_valid.eq(valid),
                unit.window.eq(Cat(operands.own[number], operands.window.as_value()[BLOCK_BITS:])),
                unit.drain.eq(drain.drain),
                unit.drain_valid.eq(drain.drain_valid),
            ]
        self._results(m, units, drain)
        illegal, out_of_range, header = self._checks(m, orders, steps, drain)
        m.d.comb += [
            self.mx.error.eq(illegal | out_of_range | header),
            self.mx.error_code.eq(
                Mux(
                    illegal,
                    Error.ILLEGAL_DESCRIPTOR,
                    Mux(out_of_range, Error.BUFFER_RANGE, Mux(header, Error.STREAM_HEADER, Error.NONE)),
                )
            ),
            self.mx.done.eq(delay_valid(m, drain.all_drained, MX_DRAIN_LATENCY, "done") & ~self.mx.error),
        ]

    def _results(self, m, units, drain):
        """Rows to the accumulator buffer, whose write ends ``MX_DRAIN_LATENCY`` after the drain's cycle."""
        m.submodules.merger = merger = RowMerger(self.config)
        m.submodules.results = results = AccumulatorBuffer(self.config)
        words, total = self.config.granules_per_word, ROW_READ_LATENCY + TREE_STAGES
        split_k = Signal()
        m.d.sync += split_k.eq(self.mx.desc.mode == MxMode.SPLIT_K)
        m.d.comb += [
            merger.group.eq(delay(m, drain.group, ROW_READ_LATENCY - 1 - merger.CHOICE, "group")),
            merger.sum.eq(split_k),
        ]
        for number, unit in enumerate(units):
            m.d.comb += merger.rows[number].eq(unit.row.as_value())
        dst = delay(m, drain.dst, total, "dst")
        part = words.bit_length() - 1
        enables = Mux(split_k, 1 << dst[:part], (1 << words) - 1)
        m.d.comb += [
            results.write.data.eq(merger.o),
            results.write.addr.eq(dst[part:]),
            results.write.en.eq(
                Mux(delay_valid(m, drain.drain_valid & ~drain.range_error, total, "write"), enables, 0)
            ),
        ]
        wiring.connect(m, wiring.flipped(self.results), results.read)

    def _checks(self, m, orders, steps, drain):
        """Sticky errors. Operands and results that are not aligned to what their mode moves at once are illegal."""
        config, desc = self.config, self.mx.desc
        illegal, out_of_range, header = Signal(), Signal(), Signal()
        wrong = [getattr(desc, name) == 0 for name in ("n_rows", "kb", "ob", "n_outer")]
        wrong += [desc.n_rows > config.acc_rows, desc.n_last > desc.n_rows, desc.mode > max(MxMode)]
        wrong.append(desc.group > MAX_BUNDLE)
        for places in (
            1 << i for i in range(MAX_BUNDLE.bit_length() - 1)
        ):  # of n_rows above 2 * acc_rows / (2 * places)
            wrong.append((desc.group > places) & (desc.n_rows > config.acc_rows // places))

        def unaligned(value, unit):
            return value[: unit.bit_length() - 1] != 0

        wrong.append(
            (desc.mode == MxMode.SPLIT_K)
            & (
                unaligned(desc.act, config.units)
                | unaligned(desc.act_stride, config.units)
                | unaligned(desc.act_out, config.units)
            )
        )
        wrong.append(
            (desc.mode == MxMode.SPLIT_N)
            & (
                unaligned(desc.dst, config.granules_per_word)
                | unaligned(desc.dst_stride, config.granules_per_word)
                | unaligned(desc.dst_out, config.granules_per_word)
            )
        )
        with m.If(self.mx.start):
            m.d.sync += illegal.eq(Cat(*wrong).any())
        with m.If(orders.range_error | steps.range_error | drain.range_error):
            m.d.sync += out_of_range.eq(1)
        with m.If(steps.header_error):
            m.d.sync += header.eq(1)
        return illegal, out_of_range, header
