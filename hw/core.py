"""The machine without its control registers: sequencer, dispatcher, units, and the auxiliary read port they share."""

from amaranth.hdl import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hw.control import ARGUMENTS, INCREMENT_BITS
from hw.fetch import Fetch
from hw.interfaces import BASE_BITS, BEAT_BITS, ERROR_BITS, AXI4Read, AXI4Write
from hw.load_unit import LoadUnit
from hw.matrix import Matrix
from hw.pipeline import copies, reset_through
from hw.sequencer import Sequencer
from hw.spec.config import Config
from hw.spec.csr import COUNTERS, KV_BYTES, LD_BEATS, RD_BEATS, ST_BYTES
from hw.spec.isa import ARGUMENT_REGISTERS, Error, StreamFormat, Unit
from hw.store_unit import StoreUnit
from hw.unit_queue import N_UNITS, Dispatcher
from hw.vector_unit import VectorUnit

SEQUENCER_DETAIL = len(Unit)
REPORT = data.StructLayout({"code": ERROR_BITS, "detail": 32, "pc": 32})
"""What an error tells."""


class AuxRead(wiring.Component):
    """The auxiliary read port, used by one master at a time: program fetch, LDS, LD.

    Contract: at most one master presents an address at a time, and it has nothing open when another one does: the
    machine's order guarantees that. Beats are those of the master that is `fetching` or `loading` (LDS), of LD
    otherwise. With `run` low no new address is taken.
    Latency: none for addresses, AUX_BEAT = 1 cycle for beats, which are registered. Back-pressure: arready goes to all.
    Reset: nothing open.

    Members: fetch, lds, ld (masters); fetching, loading, run; bus; idle: no beat is awaited.
    """

    fetch: In(AXI4Read())
    lds: In(AXI4Read())
    ld: In(AXI4Read())
    fetching: In(1)
    loading: In(1)
    run: In(1)
    bus: Out(AXI4Read())
    idle: Out(1)

    def elaborate(self, platform):
        m = Module()
        bus, awaited = self.bus, Signal(32)
        data_, resp, last = Signal(BEAT_BITS, reset_less=True), Signal(2, reset_less=True), Signal(reset_less=True)
        valid, sent = Signal(), Signal(bus.arlen.shape().width + 1)
        m.d.sync += [data_.eq(bus.rdata), resp.eq(bus.rresp), last.eq(bus.rlast), valid.eq(bus.rvalid)]
        owners = (
            (self.fetch, self.fetching),
            (self.lds, self.loading & ~self.fetching),
            (self.ld, ~self.fetching & ~self.loading),
        )
        for master, owns in owners:
            m.d.comb += [
                master.rdata.eq(data_),
                master.rresp.eq(resp),
                master.rlast.eq(last),
                master.rvalid.eq(valid & owns),
                master.arready.eq(bus.arready & self.run),
            ]
            with m.If(master.arvalid):
                m.d.comb += [bus.araddr.eq(master.araddr), bus.arlen.eq(master.arlen), bus.arvalid.eq(self.run)]
        with m.If(bus.arvalid & bus.arready):
            m.d.comb += sent.eq(bus.arlen + 1)
        m.d.comb += [bus.rready.eq(1), self.idle.eq(awaited == 0)]
        m.d.sync += awaited.eq(awaited + sent - valid)
        return m


class Core(wiring.Component):
    """Everything that one START runs.

    Contract: docs/machine.md. Reset before each run (only while `quiet`); buffers and instruction memory keep their
    contents. Every block is reset through a register of its own, a cycle behind the core.
    Latency and throughput: `hw.spec.timing`; `run` is high from cycle 0 on. Errors, the end and `quiet` are told
    END_LATENCY = 2 cycles late, counts one cycle late (traffic: two).
    Back-pressure: only the memories'. With `run` low nothing starts, and open bus transactions finish.

    Parameters: config; primitive, shared: see `hw.matrix.Matrix`.
    Members: run, load, and the argument registers by name; channel_bases: the channels' base registers, which stay as
    they are while a program runs; reads (addresses of channels with their bases), writes: memory ports, the channels'
    first, then aux;
    halted; error, error_code, error_detail, error_pc; quiet; counts (see `hw.control.Control`);
    starts, dones, tags (trace).
    """

    def __init__(self, config: Config, *, primitive=False, shared=False):
        self.config, self.primitive, self.shared = config, primitive, shared
        ports = config.units + 1
        super().__init__(
            {
                "run": In(1),
                "load": In(1),
                **{name: In(32) for name in ARGUMENTS},
                "channel_bases": In(data.ArrayLayout(BASE_BITS, config.units)),
                "reads": Out(AXI4Read()).array(ports),
                "writes": Out(AXI4Write()).array(ports),
                "halted": Out(1),
                "error": Out(1),
                "error_code": Out(ERROR_BITS),
                "error_detail": Out(32),
                "error_pc": Out(32),
                "quiet": Out(1),
                "counts": Out(data.StructLayout(dict.fromkeys(COUNTERS[1:], INCREMENT_BITS))),
                "starts": Out(N_UNITS),
                "dones": Out(N_UNITS),
                "tags": Out(data.ArrayLayout(32, N_UNITS)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config = self.config
        fetch, sequencer, dispatcher = Fetch(config), Sequencer(config), Dispatcher(config)
        load, store, aux = LoadUnit(config), StoreUnit(config), AuxRead()
        matrix = Matrix(config, primitive=self.primitive, shared=self.shared)
        vector = VectorUnit(config, hierarchical=self.shared)
        blocks = {"fetch": fetch, "sequencer": sequencer, "dispatcher": dispatcher, "load": load, "store": store}
        blocks |= {"matrix": matrix, "vector": vector, "aux": aux}
        for name, block in blocks.items():
            m.submodules[name] = reset_through(m, name, ResetSignal(), block)
        for unit, block in (
            (Unit.LD, load.unit),
            (Unit.ST, store.unit),
            (Unit.RD, matrix.rd),
            (Unit.MX, matrix.mx),
            (Unit.VU, vector.unit),
        ):
            wiring.connect(m, getattr(dispatcher, unit.name.lower()), block)
        for user, buffer in ((vector.pb, load.buffer), (vector.sb, store.buffer), (vector.ab, matrix.results)):
            wiring.connect(m, user, buffer)
        m.d.comb += [
            # The vector unit counts blocks, and writes whole words of them.
            matrix.operands.en.eq(vector.ob.en),
            matrix.operands.data.eq(vector.ob.data),
            matrix.operands.addr.eq(vector.ob.addr >> config.granules_per_word.bit_length() - 1),
        ]
        for master, port in ((fetch.bus, aux.fetch), (sequencer.bus, aux.lds), (load.bus, aux.ld)):
            wiring.connect(m, master, port)
        wiring.connect(m, aux.bus, wiring.flipped(self.reads[config.aux_port]))
        for channel in range(config.units):
            wiring.connect(m, matrix.axi[channel], wiring.flipped(self.reads[channel]))
            # A register near the control registers: the matrix units are on all dies.
            m.d.comb += matrix.bases[channel].eq(*copies(m, self.channel_bases[channel], 1, f"base_{channel}"))
        for port in range(config.units + 1):
            wiring.connect(m, store.buses[port], wiring.flipped(self.writes[port]))
        m.d.comb += [
            fetch.run.eq(self.run),
            fetch.skip.eq(self.flags[0]),
            fetch.address.eq(self.program_addr),
            fetch.length.eq(self.program_length),
            fetch.pc.eq(sequencer.pc),
            aux.fetching.eq(fetch.active),
            aux.loading.eq(sequencer.lds_active),
            aux.run.eq(self.run),
            dispatcher.run.eq(self.run),
            store.run.eq(self.run),
            matrix.stop.eq(~self.run),
            self.starts.eq(dispatcher.starts),
            self.dones.eq(dispatcher.dones & self.run.replicate(N_UNITS)),
            self.tags.eq(dispatcher.tags),
        ]
        self._sequencer(m, sequencer, fetch, dispatcher)
        quiet = Signal()
        m.d.sync += [quiet.eq(aux.idle & matrix.bus_idle & store.bus_idle), self.quiet.eq(quiet)]
        self._errors(m, sequencer, fetch, dispatcher)
        counts = Signal(data.StructLayout(dict.fromkeys(COUNTERS[1:], INCREMENT_BITS)), reset_less=True)
        counted = self._counts(sequencer, dispatcher, matrix) | self._traffic(m, aux, load, matrix, store)
        m.d.sync += [counts[name].eq(amount) for name, amount in counted.items()]
        m.d.comb += self.counts.eq(counts)
        return m

    def _sequencer(self, m, sequencer, fetch, dispatcher):
        m.d.comb += [
            sequencer.load.eq(self.load),
            sequencer.run.eq(self.run),
            sequencer.go.eq(fetch.go),
            sequencer.words.eq(fetch.words),
            sequencer.entry.eq(self.entry),
            sequencer.length.eq(self.program_length),
            sequencer.limit.eq(self.instruction_limit),
            sequencer.watchdog.eq(self.watchdog),
            *[sequencer.arguments[i].eq(getattr(self, f"arg{i + 1}")) for i in range(ARGUMENT_REGISTERS)],
            sequencer.full.eq(dispatcher.full),
            sequencer.idle.eq(dispatcher.idle),
            *[
                getattr(dispatcher, name).eq(getattr(sequencer, name))
                for name in ("set_en", "set_field", "set_value", "push", "wait", "signal", "tag")
            ],
        ]

    def _errors(self, m, sequencer, fetch, dispatcher):
        """The one reported of a cycle, in registers: units in their order, then fetch, then the sequencer."""
        found, told = (Signal(REPORT, name=name, reset_less=True) for name in ("found", "told"))
        halted, illegal, bus_error, failed, error = (
            Signal(name=name) for name in ("halted_1", "illegal", "bus_error", "failed", "error_2")
        )
        m.d.sync += [
            halted.eq(sequencer.halted),
            illegal.eq(fetch.illegal),
            bus_error.eq(fetch.bus_error),
            failed.eq(sequencer.error),
            found.code.eq(sequencer.error_code),
            found.detail.eq(sequencer.halt_code),
            found.pc.eq(sequencer.error_pc),
            self.halted.eq(halted),
            error.eq(dispatcher.error | illegal | bus_error | failed | (halted & (found.detail != 0))),
            told.detail.eq(Mux(halted, found.detail, SEQUENCER_DETAIL)),
            told.pc.eq(found.pc),
        ]
        with m.If(dispatcher.error):
            m.d.sync += [
                told.code.eq(dispatcher.error_code),
                told.detail.eq(dispatcher.error_unit),
                told.pc.eq(dispatcher.error_pc),
            ]
        with m.Elif(illegal):
            m.d.sync += told.code.eq(Error.ILLEGAL_INSTRUCTION)
        with m.Elif(bus_error):
            m.d.sync += told.code.eq(Error.BUS_READ)
        with m.Elif(failed):
            m.d.sync += told.code.eq(found.code)
        with m.Else():
            m.d.sync += told.code.eq(Error.HALT_CODE)
        m.d.comb += [
            self.error.eq(error),
            self.error_code.eq(told.code),
            self.error_detail.eq(told.detail),
            self.error_pc.eq(told.pc),
        ]

    def _counts(self, sequencer, dispatcher, matrix):
        """Pulses while running."""
        running = {
            "instructions": sequencer.retire,
            "stall_queue": sequencer.stall_queue,
            "stall_fence": sequencer.stall_fence,
            "stall_lds": sequencer.stall_lds,
            "mx_weight_stall": matrix.weight_stall,
            "mx_drain_stall": matrix.drain_stall,
            "unpack_stall": matrix.unpack_stall,
            **{f"busy_{unit.name.lower()}": dispatcher.busy[unit] for unit in Unit},
            **{f"wait_{unit.name.lower()}": dispatcher.waiting[unit] for unit in Unit},
        }
        return {name: pulse & self.run for name, pulse in running.items()}

    def _traffic(self, m, aux, load, matrix, store):
        """Bus traffic to its end, a cycle late (it ends before done). Descriptors stay until their last beat."""
        beat = Signal()
        m.d.sync += beat.eq(aux.bus.rvalid & aux.bus.rready)
        loading = beat & ~aux.fetching & ~aux.loading
        counted = {
            "read_beats_aux": beat,
            "read_beats_channels": sum(came.raw | came.stream for came in matrix.came),
            "write_bytes_aux": store.aux_bytes,
            "write_bytes_channels": store.channel_bytes,
            "read_beats_fetch": beat & aux.fetching,
            "read_beats_scalars": beat & aux.loading & ~aux.fetching,
            **{name: loading & (load.unit.desc.kind == kind) for kind, name in LD_BEATS.items()},
            RD_BEATS[StreamFormat.STREAM]: sum(came.stream for came in matrix.came),
            RD_BEATS[StreamFormat.RAW]: sum(came.raw for came in matrix.came),
            **{name: Mux(store.unit.desc.kind == kind, store.aux_bytes, 0) for kind, name in ST_BYTES.items()},
            KV_BYTES: store.channel_bytes,
        }
        return counted
