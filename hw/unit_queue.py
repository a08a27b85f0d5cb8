"""Instruction queues of the units and the semaphores between them."""

from amaranth.hdl import *
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out

from hw.interfaces import ERROR_BITS, UnitPort, descriptor_layout
from hw.spec.config import Config
from hw.spec.isa import FIELDS, SEMAPHORE_MAX, Error, Unit

N_UNITS = len(Unit)


def entry_layout(unit: Unit):
    """What ISSUE pushes, but for the wait mask."""
    return data.StructLayout({"signal": N_UNITS, "tag": 32, "desc": descriptor_layout(unit)})


class UnitQueue(wiring.Component):
    """The shadow descriptor and the queue of one unit, and the start and end of what it runs.

    Contract: `push` appends {wait, signal, tag, shadow descriptor}; the head starts when the unit is idle and `ready`
    (its semaphores) is high. The entry that runs stays at the memory's output until `done`, so `unit.desc` and
    `tag` are stable.
    Latency and throughput: pushed in t, visible as head in t + 1; done in e, the next start is in e + 1 at the
    earliest.
    Back-pressure: `full` (registered: `depth` entries wait, the running one not counted); a push then is forbidden.
    Reset: queue empty, shadow descriptor 0.

    Parameters: unit; depth in instructions.
    Members: unit (the unit's port); set_en, set_index, set_value (shadow field); push, wait, signal, tag_in; run:
    starts are allowed; head_wait: semaphores the head needs; ready: they are there; running_signal, tag: of the entry
    at the output; waiting: the head waits for semaphores only; busy: s + 1 .. e; idle: nothing runs and nothing is
    queued.
    """

    def __init__(self, unit: Unit, depth: int):
        self.kind, self.depth = unit, depth
        super().__init__(
            {
                "unit": Out(UnitPort(unit)),
                "set_en": In(1),
                "set_index": In(5),
                "set_value": In(32),
                "push": In(1),
                "wait": In(N_UNITS),
                "signal": In(N_UNITS),
                "tag_in": In(32),
                "run": In(1),
                "head_wait": Out(N_UNITS),
                "ready": In(1),
                "running_signal": Out(N_UNITS),
                "tag": Out(32),
                "full": Out(1),
                "waiting": Out(1),
                "busy": Out(1),
                "idle": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        layout = entry_layout(self.kind)
        # The running entry is still in the memory: depth + 1 places.
        slots = 1 << self.depth.bit_length()
        m.submodules.entries = entries = memory.Memory(shape=layout, depth=slots, init=[])
        write, read = entries.write_port(), entries.read_port(domain="comb")
        shadow = Signal(descriptor_layout(self.kind))
        count, write_at, read_at = Signal(range(self.depth + 1)), Signal(range(slots)), Signal(range(slots))
        start, done = self.unit.start, self.unit.done & self.busy
        waits = Signal()
        """count != 0, in a register: starts are the dispatcher's longest path."""
        with m.If(self.set_en), m.Switch(self.set_index):
            for i, name in enumerate(FIELDS[self.kind]):
                with m.Case(i):
                    m.d.sync += shadow[name].eq(self.set_value)
        m.d.comb += [
            write.addr.eq(write_at),
            write.en.eq(self.push),
            write.data.desc.eq(shadow),
            write.data.tag.eq(self.tag_in),
            write.data.signal.eq(self.signal),
            read.addr.eq(read_at),
            self.unit.desc.eq(read.data.desc),
            self.running_signal.eq(read.data.signal),
            self.tag.eq(read.data.tag),
            start.eq(self.run & ~self.busy & waits & self.ready),
            self.waiting.eq(self.run & ~self.busy & waits & ~self.ready),
            self.full.eq(count == self.depth),
            self.idle.eq(~self.busy & ~waits),
        ]
        m.d.sync += [
            count.eq(count + self.push - start),
            waits.eq(self.push | (count > 1) | (waits & ~start)),
            write_at.eq(write_at + self.push),
            read_at.eq(read_at + done),
        ]
        with m.If(start):
            m.d.sync += self.busy.eq(1)
        with m.Elif(done):
            m.d.sync += self.busy.eq(0)
        self._head_wait(m, slots, write_at, read_at, done)
        return m

    def _head_wait(self, m, slots, write_at, read_at, done):
        """The wait mask of the place that is read in the next cycle, a cycle ahead of the other fields."""
        m.submodules.waits = masks = memory.Memory(shape=unsigned(N_UNITS), depth=slots, init=[])
        write = masks.write_port()
        here, behind = masks.read_port(domain="comb"), masks.read_port(domain="comb")
        following = Signal(range(slots))
        m.d.comb += [
            write.addr.eq(write_at),
            write.en.eq(self.push),
            write.data.eq(self.wait),
            following.eq(read_at + 1),
            here.addr.eq(read_at),
            behind.addr.eq(following),
        ]
        for moves, port in ((0, here), (1, behind)):
            with m.If(done == moves):
                m.d.sync += self.head_wait.eq(Mux(self.push & (write_at == port.addr), self.wait, port.data))


class Dispatcher(wiring.Component):
    """The five units' queues and the 5 x 5 semaphores.

    Contract: a start decrements the semaphores [producer -> unit] of its wait mask, all of which are >= 1; a done
    increments [unit -> consumer] of its signal mask. Both at once leave it as it is. Beyond SEMAPHORE_MAX: error
    SEMAPHORE of the producer, in the cycle of the done.
    Latency and throughput: an increment in e is seen by starts from e + 1 on; everything else as `UnitQueue`.
    Back-pressure: `full` of each unit. Reset: all empty, semaphores 0.

    Parameters: config.
    Members: ld, st, rd, mx, vu (unit ports); run; set_en, set_field (unit << 5 | index), set_value; push, push_unit,
    wait, signal, tag; full, idle, busy, waiting, starts, dones (a bit a unit); tags; error (level or pulse),
    error_code, error_unit, error_pc: of the lowest unit that fails in this cycle.
    """

    def __init__(self, config: Config):
        self.config = config
        masks = ("full", "idle", "busy", "waiting", "starts", "dones")
        super().__init__(
            {
                **{unit.name.lower(): Out(UnitPort(unit)) for unit in Unit},
                "run": In(1),
                "set_en": In(1),
                "set_field": In(8),
                "set_value": In(32),
                "push": In(1),
                "push_unit": In(3),
                "wait": In(N_UNITS),
                "signal": In(N_UNITS),
                "tag": In(32),
                **{name: Out(N_UNITS) for name in masks},
                "tags": Out(data.ArrayLayout(32, N_UNITS)),
                "error": Out(1),
                "error_code": Out(ERROR_BITS),
                "error_unit": Out(3),
                "error_pc": Out(32),
            }
        )

    def elaborate(self, platform):
        m = Module()
        queues = [UnitQueue(unit, self.config.queue_depth) for unit in Unit]
        overflow = [Signal(name=f"overflow_{unit.name.lower()}") for unit in Unit]
        for unit, queue in zip(Unit, queues, strict=True):
            name = unit.name.lower()
            m.submodules[name] = queue
            wiring.connect(m, queue.unit, wiring.flipped(getattr(self, name)))
            m.d.comb += [
                queue.set_en.eq(self.set_en & (self.set_field[5:] == unit)),
                queue.set_index.eq(self.set_field[:5]),
                queue.set_value.eq(self.set_value),
                queue.push.eq(self.push & (self.push_unit == unit)),
                queue.wait.eq(self.wait),
                queue.signal.eq(self.signal),
                queue.tag_in.eq(self.tag),
                queue.run.eq(self.run),
                self.full[unit].eq(queue.full),
                self.idle[unit].eq(queue.idle),
                self.busy[unit].eq(queue.busy),
                self.waiting[unit].eq(queue.waiting),
                self.tags[unit].eq(queue.tag),
                self.starts[unit].eq(queue.unit.start),
                self.dones[unit].eq(queue.unit.done & queue.busy),
            ]
        self._semaphores(m, queues, overflow)
        self._errors(m, queues, overflow)
        return m

    def _semaphores(self, m, queues, overflow):
        free = {}
        for producer in Unit:
            full = []
            for consumer in Unit:
                name = f"{producer.name}_{consumer.name}".lower()
                count = Signal(range(SEMAPHORE_MAX + 1), name=f"semaphore_{name}")
                up, down = Signal(name=f"up_{name}"), Signal(name=f"down_{name}")
                m.d.comb += [
                    up.eq(self.dones[producer] & queues[producer].running_signal[consumer]),
                    down.eq(self.starts[consumer] & queues[consumer].head_wait[producer]),
                ]
                # What the count is compared with, in registers.
                some, most = Signal(name=f"some_{name}"), Signal(name=f"most_{name}")
                full.append(up & ~down & most)
                with m.If(up & ~down):
                    m.d.sync += [count.eq(count + 1), some.eq(~most), most.eq(count == SEMAPHORE_MAX - 1)]
                with m.Elif(down & ~up):
                    m.d.sync += [count.eq(count - 1), some.eq(count != 1), most.eq(0)]
                free[producer, consumer] = some
            m.d.comb += overflow[producer].eq(Cat(full).any())
        for consumer in Unit:
            present = Cat(free[producer, consumer] for producer in Unit)
            m.d.comb += queues[consumer].ready.eq((~queues[consumer].head_wait | present).all())

    def _errors(self, m, queues, overflow):
        for unit in reversed(Unit):
            queue = queues[unit]
            # RD's beats may fail after its end: the instruction is the last one started.
            last = Signal(32, name=f"last_{unit.name.lower()}")
            with m.If(queue.unit.start):
                m.d.sync += last.eq(queue.tag)
            with m.If(queue.unit.error | overflow[unit]):
                m.d.comb += [
                    self.error.eq(1),
                    self.error_unit.eq(unit),
                    self.error_pc.eq(last),
                    self.error_code.eq(Mux(queue.unit.error, queue.unit.error_code, Error.SEMAPHORE)),
                ]
