"""The machine without its control registers: sequencer, dispatcher, units, and the auxiliary read port they share."""

from amaranth.hdl import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hw.control import ARGUMENTS, INCREMENT_BITS
from hw.fetch import Fetch
from hw.interfaces import ERROR_BITS, AXI4Read, AXI4Write
from hw.load_unit import LoadUnit
from hw.matrix import Matrix
from hw.sequencer import Sequencer
from hw.spec.config import Config
from hw.spec.csr import COUNTERS, KV_BYTES, LD_BEATS, RD_BEATS, ST_BYTES
from hw.spec.isa import ARGUMENT_REGISTERS, Error, StreamFormat, Unit
from hw.store_unit import StoreUnit
from hw.unit_queue import N_UNITS, Dispatcher
from hw.vector_unit import VectorUnit

SEQUENCER_DETAIL = len(Unit)


class AuxRead(wiring.Component):
    """The auxiliary read port, used by one master at a time: program fetch, LDS, LD.

    Contract: the master that is `fetching` or `loading` (LDS) owns the port, LD otherwise; the machine's order
    guarantees that it has nothing open when the owner changes. With `run` low no new address is presented; one already
    presented stays.
    Latency: none. Back-pressure: arready goes to the owner. Reset: nothing open.

    Members: fetch, lds, ld (masters); fetching, loading, run; bus; idle: no address presented and no beat awaited.
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
        bus = self.bus
        held, awaited, wanted = Signal(), Signal(32), Signal()
        owners = (
            (self.fetch, self.fetching),
            (self.lds, self.loading & ~self.fetching),
            (self.ld, ~self.fetching & ~self.loading),
        )
        allowed = self.run | held
        for master, owns in owners:
            m.d.comb += [
                master.rdata.eq(bus.rdata),
                master.rresp.eq(bus.rresp),
                master.rlast.eq(bus.rlast),
                master.rvalid.eq(bus.rvalid & owns),
                master.arready.eq(bus.arready & owns & allowed),
            ]
            with m.If(owns):
                m.d.comb += [bus.araddr.eq(master.araddr), bus.arlen.eq(master.arlen), wanted.eq(master.arvalid)]
        m.d.comb += [
            bus.arvalid.eq(wanted & allowed),
            bus.rready.eq(1),
            self.idle.eq(~bus.arvalid & (awaited == 0)),
        ]
        m.d.sync += [
            held.eq(bus.arvalid & ~bus.arready),
            awaited.eq(awaited + Mux(bus.arvalid & bus.arready, bus.arlen + 1, 0) - bus.rvalid),
        ]
        return m


class Core(wiring.Component):
    """Everything that one START runs.

    Contract: docs/machine.md. Reset before each run (only while `quiet`); buffers and instruction memory keep their
    contents.
    Latency and throughput: `hw.spec.timing`; `run` is high from cycle 0 on.
    Back-pressure: only the memories'. With `run` low nothing starts, and open bus transactions finish.

    Parameters: config; primitive, shared: see `hw.matrix.Matrix`.
    Members: run, load, and the argument registers by name; reads, writes: memory ports, the channels' first, then aux;
    halted, halt_code; error, error_code, error_detail, error_pc; quiet; counts (see `hw.control.Control`);
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
                "reads": Out(AXI4Read()).array(ports),
                "writes": Out(AXI4Write()).array(ports),
                "halted": Out(1),
                "halt_code": Out(32),
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
        m.submodules.fetch = fetch = Fetch(config)
        m.submodules.sequencer = sequencer = Sequencer(config)
        m.submodules.dispatcher = dispatcher = Dispatcher(config)
        m.submodules.load = load = LoadUnit(config)
        m.submodules.store = store = StoreUnit(config)
        m.submodules.matrix = matrix = Matrix(config, primitive=self.primitive, shared=self.shared)
        m.submodules.vector = vector = VectorUnit(config, hierarchical=self.shared)
        m.submodules.aux = aux = AuxRead()
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
            self.quiet.eq(aux.idle & matrix.bus_idle & store.bus_idle),
            self.starts.eq(dispatcher.starts),
            self.dones.eq(dispatcher.dones & self.run.replicate(N_UNITS)),
            self.tags.eq(dispatcher.tags),
        ]
        self._sequencer(m, sequencer, fetch, dispatcher)
        self._errors(m, sequencer, fetch, dispatcher)
        self._counts(m, sequencer, dispatcher, matrix)
        self._traffic(m, aux, load, matrix, store)
        return m

    def _sequencer(self, m, sequencer, fetch, dispatcher):
        m.d.comb += [
            sequencer.load.eq(self.load),
            sequencer.run.eq(self.run),
            sequencer.go.eq(fetch.go),
            sequencer.word.eq(fetch.word),
            sequencer.entry.eq(self.entry),
            sequencer.length.eq(self.program_length),
            sequencer.limit.eq(self.instruction_limit),
            sequencer.watchdog.eq(self.watchdog),
            *[sequencer.arguments[i].eq(getattr(self, f"arg{i + 1}")) for i in range(ARGUMENT_REGISTERS)],
            sequencer.full.eq(dispatcher.full),
            sequencer.idle.eq(dispatcher.idle),
            *[
                getattr(dispatcher, name).eq(getattr(sequencer, name))
                for name in ("set_en", "set_field", "set_value", "push", "push_unit", "wait", "signal", "tag")
            ],
            self.halted.eq(sequencer.halted),
            self.halt_code.eq(sequencer.halt_code),
        ]

    def _errors(self, m, sequencer, fetch, dispatcher):
        """The one reported in a cycle: units in their order, then fetch, then the sequencer."""
        m.d.comb += [self.error_detail.eq(SEQUENCER_DETAIL), self.error_pc.eq(sequencer.error_pc)]
        with m.If(dispatcher.error):
            m.d.comb += [
                self.error.eq(1),
                self.error_code.eq(dispatcher.error_code),
                self.error_detail.eq(dispatcher.error_unit),
                self.error_pc.eq(dispatcher.error_pc),
            ]
        with m.Elif(fetch.illegal):
            m.d.comb += [self.error.eq(1), self.error_code.eq(Error.ILLEGAL_INSTRUCTION)]
        with m.Elif(fetch.bus_error):
            m.d.comb += [self.error.eq(1), self.error_code.eq(Error.BUS_READ)]
        with m.Elif(sequencer.error):
            m.d.comb += [self.error.eq(1), self.error_code.eq(sequencer.error_code)]
        with m.Elif(sequencer.halted & (sequencer.halt_code != 0)):
            m.d.comb += [
                self.error.eq(1),
                self.error_code.eq(Error.HALT_CODE),
                self.error_detail.eq(sequencer.halt_code),
            ]

    def _counts(self, m, sequencer, dispatcher, matrix):
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
        m.d.comb += [self.counts[name].eq(pulse & self.run) for name, pulse in running.items()]

    def _traffic(self, m, aux, load, matrix, store):
        """Bus traffic to its end, a cycle late (it ends before done). Descriptors stay until their last beat."""
        beat = aux.bus.rvalid & aux.bus.rready
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
        m.d.sync += [self.counts[name].eq(amount) for name, amount in counted.items()]
