"""Instruction queues of the units and the semaphores between them."""

from amaranth.hdl import *
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out

from hw.interfaces import ERROR_BITS, UnitPort, descriptor_layout
from hw.pipeline import copies, reset_domain, reset_through
from hw.spec.config import Config
from hw.spec.isa import FIELDS, SEMAPHORE_MAX, Error, Unit

N_UNITS = len(Unit)
ZEROED_FIELDS = 7
"""Fields of 32 bits that one register sets to 0."""
ENTRY_PART_BITS = 448
"""Bits of an entry behind one register of the read address, which a LUT memory loads for every two bits."""


class UnitQueue(wiring.Component):
    """The shadow descriptor and the queue of one unit, and the start and end of what it runs.

    Contract: `push` appends {wait, signal, tag, shadow descriptor}; the head starts when the unit is idle and `ready`
    (its semaphores) is high. The entry that runs stays at the memory's output until `done`, so `unit.desc` and
    `tag` are stable. A unit that has reported an error has no end any more.
    Latency and throughput: pushed in t, visible as head in t + 1; started in s, the unit's port says so in s + 1; done
    in e, the next start is in e + 1 at the earliest.
    Back-pressure: `full` (registered: `depth` entries wait, the running one not counted); a push then is forbidden.
    Reset: queue empty; the shadow descriptor is 0 two cycles later.

    Parameters: unit; depth in instructions.
    Members: unit (the unit's port); start: in s; done: in e; set_en, set_index, set_value (shadow field); push, wait,
    signal, tag_in; run: starts are allowed; head_wait: semaphores the head needs; ready: they are there;
    running_signal, tag: of the entry at the output; waiting: the head waits for semaphores only; busy: s + 1 .. e;
    idle: nothing runs and nothing is queued.
    """

    def __init__(self, unit: Unit, depth: int):
        self.kind, self.depth = unit, depth
        super().__init__(
            {
                "unit": Out(UnitPort(unit)),
                "start": Out(1),
                "done": Out(1),
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
        # The running entry is still in the memory: depth + 1 places.
        slots = 1 << self.depth.bit_length()
        count, write_at, read_at = Signal(range(self.depth + 1)), Signal(range(slots)), Signal(range(slots))
        waits, failed = Signal(), Signal()
        """`waits`: count != 0, in a register: starts are the dispatcher's longest path."""
        m.d.comb += [
            self.done.eq(self.unit.done & self.busy & ~failed),
            self.start.eq(self.run & ~self.busy & waits & self.ready),
            self.waiting.eq(self.run & ~self.busy & waits & ~self.ready),
            self.full.eq(count == self.depth),
            self.idle.eq(~self.busy & ~waits),
        ]
        m.d.sync += [
            failed.eq(failed | self.unit.error),
            self.unit.start.eq(self.start),
            count.eq(count + self.push - self.start),
            waits.eq(self.push | (count > 1) | (waits & ~self.start)),
            write_at.eq(write_at + self.push),
            read_at.eq(read_at + self.done),
        ]
        with m.If(self.start):
            m.d.sync += self.busy.eq(1)
        with m.Elif(self.done):
            m.d.sync += self.busy.eq(0)
        self._entries(m, slots, write_at, read_at)
        self._head_wait(m, slots, write_at, read_at, self.done)
        return m

    def _entries(self, m, slots, write_at, read_at):
        """The memory of entries, in parts that are narrow enough for one register of the read address each; the
        descriptor at its output is registered."""
        fields = FIELDS[self.kind]
        shadow = Signal(descriptor_layout(self.kind), reset_less=True)
        with m.If(self.set_en), m.Switch(self.set_index):
            for i, name in enumerate(fields):
                with m.Case(i):
                    m.d.sync += shadow[name].eq(self.set_value)
        # A program may issue what it has not set: 0. The reset reaches each few fields through a register of their own.
        for i, zero in enumerate(copies(m, ResetSignal(), -(-len(fields) // ZEROED_FIELDS), "zero")):
            with m.If(zero):
                m.d.sync += [shadow[name].eq(0) for name in fields[i * ZEROED_FIELDS : (i + 1) * ZEROED_FIELDS]]
        desc = Signal(descriptor_layout(self.kind), reset_less=True)
        pushed = Cat(self.signal, self.tag_in, shadow)
        parts = [pushed[at : at + ENTRY_PART_BITS] for at in range(0, len(pushed), ENTRY_PART_BITS)]
        head = []
        for number, (part, at) in enumerate(
            zip(
                parts, copies(m, (read_at + self.done)[: len(read_at)], len(parts), "read_at", resets=True), strict=True
            )
        ):
            entries = memory.Memory(shape=unsigned(len(part)), depth=slots, init=[])
            m.submodules[f"entries_{number}"] = entries
            write, read = entries.write_port(), entries.read_port(domain="comb")
            m.d.comb += [write.addr.eq(write_at), write.en.eq(self.push), write.data.eq(part), read.addr.eq(at)]
            head.append(read.data)
        m.d.comb += [Cat(self.running_signal, self.tag).eq(Cat(head)[: N_UNITS + 32]), self.unit.desc.eq(desc)]
        m.d.sync += Value.cast(desc).eq(Cat(head)[N_UNITS + 32 :])

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
    Latency and throughput: an increment in e is seen by starts from e + 1 on; what SET writes in t is pushed from t + 2
    on; errors are told a cycle late; everything else as `UnitQueue`.
    Back-pressure: `full` of each unit. Reset: a cycle later semaphores are 0 and all
    queues empty.

    Parameters: config.
    Members: ld, st, rd, mx, vu (unit ports); run; set_en, set_field (unit << 5 | index), set_value; push (a bit a
    unit), wait, signal, tag; full, idle, busy, waiting, starts, dones (a bit a unit); tags; error (level or pulse),
    error_code, error_unit, error_pc: of the lowest unit that failed in the cycle before.
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
                "push": In(N_UNITS),
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
        set_en, set_field, set_value = Signal(), Signal(8, reset_less=True), Signal(32, reset_less=True)
        m.d.sync += [set_en.eq(self.set_en), set_field.eq(self.set_field), set_value.eq(self.set_value)]
        for unit, queue in zip(Unit, queues, strict=True):
            name = unit.name.lower()
            m.submodules[name] = reset_through(m, f"queue_{name}", ResetSignal(), queue)
            wiring.connect(m, queue.unit, wiring.flipped(getattr(self, name)))
            m.d.comb += [
                queue.set_en.eq(set_en & (set_field[5:] == unit)),
                queue.set_index.eq(set_field[:5]),
                queue.set_value.eq(set_value),
                queue.push.eq(self.push[unit]),
                queue.wait.eq(self.wait),
                queue.signal.eq(self.signal),
                queue.tag_in.eq(self.tag),
                queue.run.eq(self.run),
                self.full[unit].eq(queue.full),
                self.idle[unit].eq(queue.idle),
                self.busy[unit].eq(queue.busy),
                self.waiting[unit].eq(queue.waiting),
                self.tags[unit].eq(queue.tag),
                self.starts[unit].eq(queue.start),
                self.dones[unit].eq(queue.done),
            ]
        self._semaphores(m, queues, overflow)
        self._errors(m, queues, overflow)
        return m

    def _semaphores(self, m, queues, overflow):
        free = {}
        reset_domain(m, "semaphores", ResetSignal())
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
                    m.d.semaphores += [count.eq(count + 1), some.eq(~most), most.eq(count == SEMAPHORE_MAX - 1)]
                with m.Elif(down & ~up):
                    m.d.semaphores += [count.eq(count - 1), some.eq(count != 1), most.eq(0)]
                free[producer, consumer] = some
            m.d.comb += overflow[producer].eq(Cat(full).any())
        for consumer in Unit:
            present = Cat(free[producer, consumer] for producer in Unit)
            m.d.comb += queues[consumer].ready.eq((~queues[consumer].head_wait | present).all())

    def _errors(self, m, queues, overflow):
        for unit in reversed(Unit):
            queue, name = queues[unit], unit.name.lower()
            # RD's beats may fail after its end: the instruction is the last one started.
            last, pc = (Signal(32, name=f"{what}_{name}", reset_less=True) for what in ("last", "pc"))
            failed, code = Signal(name=f"failed_{name}"), Signal(ERROR_BITS, name=f"code_{name}", reset_less=True)
            with m.If(queue.start):
                m.d.sync += last.eq(queue.tag)
            m.d.sync += [
                failed.eq(queue.unit.error | overflow[unit]),
                code.eq(Mux(queue.unit.error, queue.unit.error_code, Error.SEMAPHORE)),
                pc.eq(last),
            ]
            with m.If(failed):
                m.d.comb += [
                    self.error.eq(1),
                    self.error_unit.eq(unit),
                    self.error_pc.eq(pc),
                    self.error_code.eq(code),
                ]
