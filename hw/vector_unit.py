"""The vector unit: a pass over words of int32 lanes, with row operands, a reduction and its finaliser."""

from amaranth.hdl import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hw.buffer_memory import READ_LATENCY, BufferMemory
from hw.interfaces import BufferRead, BufferWrite, UnitPort
from hw.row_scalars import SCALAR_LATENCY, RowScalars
from hw.spec.config import Config
from hw.spec.isa import CTL1, Dst, Mul2, Mul3, Reduce, Unit
from hw.spec.numerics import MAX_PRODUCT_SHIFT
from hw.spec.resources import buffer
from hw.spec.timing import VU_LATENCY
from hw.vector_address import VectorAddress
from hw.vector_arith import SCALE, delayed, registered, scale_operands
from hw.vector_lane import ADD, CONTROL, MASK, MUL2, MUL3, OUT_LATENCY, REDUCE_LATENCY, VectorLane
from hw.vector_reduce import FINALISER_LATENCY, Finaliser, VectorReduce, reduce_latency
from hw.verilog_writer import as_module

CONTROL1 = data.StructLayout({name: signed(bits) if name.startswith("adj") else bits for name, bits, _ in CTL1})
OPERANDS_AT = SCALAR_LATENCY
"""Stages: a value "at k" belongs to the word whose addresses came out k cycles ago. Lanes start here."""
SHIFT_AT = OPERANDS_AT + MASK - 1
"""Where lanes take the shift of squares."""
READ_AT = OPERANDS_AT - READ_LATENCY
WRITE_AT = OPERANDS_AT + OUT_LATENCY
REDUCE_AT = OPERANDS_AT + REDUCE_LATENCY


STOP_AT = 2
"""From an instruction's start to the last word's `VectorAddress.stop`, less the words."""
ADDRESS_AT = 3
"""From an instruction's start to its first word's addresses."""


def entry_write_at(lanes: int) -> int:
    """The last thing a word does: its row's entry is written."""
    return REDUCE_AT + reduce_latency(lanes) + FINALISER_LATENCY


def least_latency(lanes: int) -> int:
    """What VU_LATENCY must not be below."""
    return ADDRESS_AT - 1 + entry_write_at(lanes)


class VectorUnit(wiring.Component):
    """Executes one vector descriptor: reads AB, PB, VB and row scalars, writes VB, SB or OB and row scalars.

    Numeric contract: `hw.spec.vector`, bit for bit. With level 1 a finaliser uses r0 of the outer row's last word.
    A pass must not read what one of its earlier words wrote.

    Latency and throughput: s is the cycle before `unit.start`, the instruction's start. One word a cycle from s + 3 on;
    `done` in s + words + VU_LATENCY, when every write has happened. Back-pressure: none; it never stalls.

    Errors: ILLEGAL_DESCRIPTOR reads and writes nothing and is done in s + VU_LATENCY. BUFFER_RANGE at word k: words
    from k on write nothing. `error` stays until the next start.

    Reset: idle; VB and row scalars keep their contents, 0 at power-up.

    Parameters: config; hierarchical: the lane becomes a Verilog module of its own, "vector_lane" (`convert` only).
    Members: `unit`; `ab`, `pb`: read ports in words; `sb`: in words; `ob`: int8, the address is that of the word's
    first block.
    """

    def __init__(self, config: Config, *, hierarchical=False):
        if (least := least_latency(config.lanes)) > VU_LATENCY:
            raise ValueError(f"VU_LATENCY = {VU_LATENCY} cycles, the pipeline of {config.lanes} lanes takes {least}")
        if config.lanes & (config.lanes - 1):
            raise ValueError(f"lanes = {config.lanes} is not a power of two")
        self.config, self.hierarchical = config, hierarchical
        granules, lanes = config.granules_per_word, config.lanes
        super().__init__(
            {
                "unit": In(UnitPort(Unit.VU)),
                "ab": Out(BufferRead(config.ab_granules // granules, lanes)),
                "pb": Out(BufferRead(config.pb_granules // granules, lanes)),
                "sb": Out(BufferWrite(config.sb_granules // granules, lanes)),
                "ob": Out(BufferWrite(config.ob_blocks, lanes, 8)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        desc = self.unit.desc
        self.ctl = data.View(CONTROL, registered(m, desc.ctl0[: CONTROL.size], "ctl0"))
        self.ctl1 = data.View(CONTROL1, registered(m, desc.ctl1[: CONTROL1.size], "ctl1"))
        self._walk(m)
        self._completion(m)
        self._row_operands(m)
        values = self._lanes(m, *self._buffers(m))
        self._reduction(m, values)
        return m

    def _walk(self, m):
        m.submodules.address = self.address = address = VectorAddress(self.config)
        m.d.comb += [
            address.start.eq(self.unit.start),
            address.desc.eq(self.unit.desc),
            self.unit.error.eq(address.error),
            self.unit.error_code.eq(address.error_code),
        ]
        self.valid = Signal(entry_write_at(self.config.lanes))
        """Bit k: a word without error, at k + 1. Only this is reset."""
        history = Signal(len(self.valid) - 1)  # shifts
        m.d.comb += self.valid.eq(Cat(address.ok, history))
        m.d.sync += history.eq(self.valid)

    def _valid_at(self, stage):
        return self.valid[stage - 1]

    def _completion(self, m):
        left, running = Signal(range(VU_LATENCY)), Signal()
        m.d.comb += self.unit.done.eq(running & (left == 0))
        with m.If(self.address.stop):
            m.d.sync += [left.eq(VU_LATENCY - STOP_AT), running.eq(1)]
        with m.Elif(running):
            m.d.sync += [left.eq(left - 1), running.eq(left != 0)]

    def _row_operands(self, m):
        m.submodules.row_scalars = self.rows = rows = RowScalars(self.config.rs_entries)
        m.d.comb += [
            rows.r0_addr.eq(self.address.r0_addr),
            rows.r1_addr.eq(self.address.r1_addr),
            rows.r0_kind.eq(self.ctl.row0),
            rows.r1_kind.eq(self.ctl.row1),
        ]
        adjust = self.ctl1.adj2
        shift3 = Mux(self.ctl1.sh3 > MAX_PRODUCT_SHIFT, MAX_PRODUCT_SHIFT, self.ctl1.sh3)
        mantissa, shift = scale_operands(rows.r1, adjust)
        by_row = self.ctl.mul3 == Mul3.R1
        self.scale2 = self._scale(m, self.ctl.mul2 == Mul2.R0, *scale_operands(rows.r0, adjust), 0, "scale2")
        self.scale3 = self._scale(m, by_row, mantissa, shift, Mux(self.ctl.mul3 == Mul3.V, shift3, 0), "scale3")
        self.scale2 = delayed(m, self.scale2, MUL2 - 2, "scale2_line")
        self.scale3 = delayed(m, self.scale3, MUL3 - 3, "scale3_line")
        self.r1 = delayed(m, rows.r1, ADD - 1, "r1_line")
        self.square_shift = delayed(m, rows.square_shift, MASK - 1, "square_shift_line")

    def _scale(self, m, used, mantissa, shift, unused_shift, name):
        """A multiplier's row operand, one where it is not used; one cycle."""
        scale = Signal(SCALE, name=name, reset_less=True)
        m.d.sync += [scale.mantissa.eq(Mux(used, mantissa, 1)), scale.shift.eq(Mux(used, shift, unused_shift))]
        return scale

    def _buffers(self, m):
        """Reads so that data arrives at OPERANDS_AT; writes VB. Returns the words' data."""
        depth, lanes = self.config.vb_granules // self.config.granules_per_word, self.config.lanes
        m.submodules.vb = vb = BufferMemory(buffer(self.config, "VB"), registered=True)
        vb_read, self.vb_write = BufferRead(depth, lanes).create(), BufferWrite(depth, lanes).create()
        m.d.comb += [
            vb.read_en.eq(vb_read.en),
            vb.read_addr.eq(vb_read.addr),
            Value.cast(vb_read.data).eq(vb.read_data),
            vb.write_en.eq(self.vb_write.en),
            vb.write_addr.eq(self.vb_write.addr),
            vb.write_data.eq(Value.cast(self.vb_write.data)),
        ]
        for port, name in ((self.ab, "a"), (self.pb, "p"), (vb_read, "v")):
            address = delayed(m, self.address[name][: len(port.addr)], READ_AT, f"{name}_addr")
            m.d.comb += [port.addr.eq(address), port.en.eq(self._valid_at(READ_AT))]
        return self.ab.data, self.pb.data, vb_read.data

    def _lanes(self, m, a, p, v):
        count = delayed(m, self.address.n_lanes, OPERANDS_AT + MASK - 1, "n_lanes")
        imm = Signal(SCALE, reset_less=True)
        factor = scale_operands(self.unit.desc.imm0, self.ctl1.adj1)
        for register, value in zip((imm.mantissa, imm.shift), factor, strict=True):
            m.d.sync += register.eq(value)
        lanes = []
        for i in range(self.config.lanes):
            lane = as_module(VectorLane(), "vector_lane") if self.hierarchical else VectorLane()
            m.submodules[f"lane_{i}"] = lane
            lanes.append(lane)
            m.d.comb += [
                lane.control.eq(self.ctl.as_value()),
                lane.adjust1.eq(self.ctl1.adj1),
                lane.imm.eq(imm),
                lane.a.eq(a[i]),
                lane.p.eq(p[i]),
                lane.v.eq(v[i]),
                lane.r0.eq(self.rows.r0),
                lane.r1.eq(self.r1),
                lane.scale2.eq(self.scale2),
                lane.scale3.eq(self.scale3),
                lane.square_shift.eq(self.square_shift),
                lane.valid.eq(registered(m, count > i, f"valid_{i}")),
            ]
        for i, lane in enumerate(lanes):
            m.d.comb += lane.swap_in.eq(lanes[i ^ 1].swap_out)
        self._writes(m, lanes)
        return [lane.contribution for lane in lanes]

    def _writes(self, m, lanes):
        address = delayed(m, self.address.d_addr[:32], WRITE_AT, "d_addr")
        valid, dst = self._valid_at(WRITE_AT), self.ctl.dst
        for port, selected in ((self.vb_write, dst == Dst.VB), (self.sb, dst == Dst.SB), (self.ob, dst >= Dst.OB)):
            m.d.comb += [port.en.eq(valid & selected), port.addr.eq(address)]
            m.d.comb += [port.data[i].eq(lane.out) for i, lane in enumerate(lanes)]

    def _reduction(self, m, values):
        lanes = self.config.lanes
        total_at, entry_at = REDUCE_AT + reduce_latency(lanes), entry_write_at(lanes)
        m.submodules.reduce = reduce = VectorReduce(lanes)
        m.submodules.finaliser = finaliser = Finaliser()
        m.d.comb += [
            reduce.kind.eq(self.ctl.reduce),
            reduce.valid.eq(self._valid_at(REDUCE_AT)),
            reduce.first.eq(delayed(m, self.address.first, REDUCE_AT, "first")),
            *(reduce.values[i].eq(value) for i, value in enumerate(values)),
            finaliser.fin.eq(self.ctl.fin),
            finaliser.imm1.eq(self.unit.desc.imm1),
            finaliser.total.eq(reduce.total),
            finaliser.square_shift.eq(delayed(m, self.square_shift, total_at - SHIFT_AT, "square_shift_fin")),
        ]
        last = delayed(m, self.address.last, entry_at, "last")
        address = delayed(m, self.address.w_addr[: len(self.rows.w_addr)], entry_at, "w_addr")
        m.d.comb += [
            self.rows.w_en.eq(self._valid_at(entry_at) & last & (self.ctl.reduce != Reduce.NONE)),
            self.rows.w_addr.eq(address),
            self.rows.w.eq(finaliser.entry),
        ]
