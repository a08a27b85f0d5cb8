"""A small accelerator top to try the RTL test bench on: it copies from port 0 to aux and notes when each beat came."""

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.fifo import SyncFIFOBuffered
from amaranth.lib.wiring import In, Out

from sim.rtl.testbench import top_signals

START = 0x00
SOURCE, N_REQUESTS, N_BEATS, TARGET, GAP, THROTTLE = (0x10 + 8 * i for i in range(6))
N_RESPONSES, END_CYCLE, WORST_RESPONSE = 0x100, 0x104, 0x108

STAMP_CYCLE, STAMP_RESPONSE, STAMP_LAST = slice(0, 8), 8, 9
"""Bytes of the second of the two beats written for each beat read."""


class CopyEngine(wiring.Component):
    """Reads N_REQUESTS bursts of N_BEATS from SOURCE on, an address every GAP + 1 cycles.

    Each beat becomes a write burst of two from TARGET on: the data, then its stamp. `rready` is low while
    trace_cycle & THROTTLE is not 0. An event of unit `rd` is a read burst (address accepted to last beat taken), one of
    `st` a write burst (last beat accepted to its response).
    """

    def __init__(self, n_ports: int):
        self.n_ports = n_ports
        flows = {"in": In, "out": Out}
        super().__init__({name: flows[way](bits) for name, (bits, way) in top_signals(n_ports).items()})

    def _port(self, index: int, name: str):
        return getattr(self, f"m{index:02d}_axi_{name}")

    def elaborate(self, platform):
        m = Module()
        m.d.sync += self.trace_cycle.eq(self.trace_cycle + 1)
        self.start = Signal()
        self.registers = Array(Signal(32, name=f"register{i}") for i in range(6))
        self.n_responses = Signal(32)
        self.end_cycle = Signal(32)
        self.worst = Signal(2)
        m.submodules.fifo = self.fifo = SyncFIFOBuffered(width=512 + 64 + 2 + 1, depth=512)
        self._control(m)
        self._read(m)
        self._write(m)
        return m

    def _control(self, m):
        names = ("awready", "wready", "arready", "bvalid", "rvalid")
        s = {name: getattr(self, f"s_axi_control_{name}") for name in names}
        readable = {N_RESPONSES: self.n_responses, END_CYCLE: self.end_cycle, WORST_RESPONSE: self.worst}
        write = Signal()
        m.d.comb += [
            write.eq(self.s_axi_control_awvalid & self.s_axi_control_wvalid & ~s["bvalid"]),
            s["awready"].eq(write),
            s["wready"].eq(write),
            s["arready"].eq(~s["rvalid"]),
            self.start.eq(write & (self.s_axi_control_awaddr == START)),
        ]
        with m.If(write):
            m.d.sync += s["bvalid"].eq(1)
            with m.If(self.s_axi_control_awaddr >= SOURCE):
                m.d.sync += self.registers[(self.s_axi_control_awaddr - SOURCE)[3:6]].eq(self.s_axi_control_wdata)
        with m.Elif(self.s_axi_control_bready):
            m.d.sync += s["bvalid"].eq(0)
        with m.If(self.s_axi_control_arvalid & s["arready"]):
            m.d.sync += s["rvalid"].eq(1)
            with m.Switch(self.s_axi_control_araddr):
                for offset, value in readable.items():
                    with m.Case(offset):
                        m.d.sync += self.s_axi_control_rdata.eq(value)
        with m.Elif(self.s_axi_control_rready):
            m.d.sync += s["rvalid"].eq(0)

    def _read(self, m):
        source, n_requests, n_beats, _, gap, throttle = self.registers
        left, wait, index, address = Signal(32), Signal(32), Signal(32), Signal(64)
        port = {name: self._port(0, name) for name in ("arvalid", "arready", "rready", "rvalid", "rlast")}
        m.d.comb += [
            port["arvalid"].eq((left != 0) & (wait == 0)),
            self._port(0, "araddr").eq(address),
            self._port(0, "arlen").eq(n_beats - 1),
            self._port(0, "arsize").eq(6),
            self._port(0, "arburst").eq(1),
            port["rready"].eq((self.trace_cycle & throttle) == 0),
            self.fifo.w_en.eq(port["rvalid"] & port["rready"]),
            self.fifo.w_data.eq(Cat(self._port(0, "rdata"), self.trace_cycle, self._port(0, "rresp"), port["rlast"])),
            self.trace_rd_start.eq(port["arvalid"] & port["arready"]),
            self.trace_rd_tag.eq(index),
            self.trace_rd_done.eq(self.fifo.w_en & port["rlast"]),
        ]
        with m.If(self.start):
            m.d.sync += [left.eq(n_requests), address.eq(source), index.eq(0), wait.eq(0)]
        with m.Elif(port["arvalid"] & port["arready"]):
            m.d.sync += [left.eq(left - 1), address.eq(address + 64 * n_beats), index.eq(index + 1), wait.eq(gap)]
        with m.Elif(wait != 0):
            m.d.sync += wait.eq(wait - 1)

    def _write(self, m):
        aux = self.n_ports - 1
        second, busy, index, address = Signal(), Signal(), Signal(32), Signal(64)
        valid, beat = self._port(aux, "wvalid"), self.fifo.r_data
        m.d.comb += [
            valid.eq(self.fifo.r_rdy),
            self._port(aux, "awvalid").eq(valid & ~second),
            self._port(aux, "awaddr").eq(address),
            self._port(aux, "awlen").eq(1),
            self._port(aux, "awsize").eq(6),
            self._port(aux, "awburst").eq(1),
            self._port(aux, "wdata").eq(Mux(second, Cat(beat[512:578], Const(0, 6), beat[578]), beat[:512])),
            # The last byte of a stamp is never written: strobes are tried too.
            self._port(aux, "wstrb").eq(Mux(second, 2**63 - 1, 2**64 - 1)),
            self._port(aux, "wlast").eq(second),
            self._port(aux, "bready").eq(1),
            self.fifo.r_en.eq(valid & second),
            self.trace_st_start.eq(valid & second),
            self.trace_st_tag.eq(index),
            self.trace_st_done.eq(self._port(aux, "bvalid")),
        ]
        m.d.comb += self.irq.eq(busy & (self.n_responses == (self.registers[1] * self.registers[2])[:32]))
        with m.If(valid):
            m.d.sync += second.eq(~second)
        with m.If(valid & second):
            m.d.sync += [address.eq(address + 128), index.eq(index + 1)]
        with m.If(self._port(aux, "bvalid")):
            m.d.sync += [self.n_responses.eq(self.n_responses + 1), self.end_cycle.eq(self.trace_cycle)]
            m.d.sync += self.worst.eq(self.worst | self._port(aux, "bresp"))
        with m.If(self.start):
            m.d.sync += [busy.eq(1), address.eq(self.registers[3]), self.n_responses.eq(0), index.eq(0), second.eq(0)]
