"""Rounds on their way from the matrix units to the schedule: complete when every unit has one."""

from amaranth.hdl import *
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out

from hw.round import PLACE, ROUND_KIND
from hw.spec.config import Config
from hw.spec.timing import WEIGHT_BUFFER_ROUNDS

COUNT = range(2 * WEIGHT_BUFFER_ROUNDS)
"""Rounds are counted modulo twice as many as units hold, so that none and all of them differ."""
ENTRY = data.StructLayout({"kind": ROUND_KIND, "agree": 1})
"""agree: the round is of this kind in every unit."""


class RoundQueue(wiring.Component):
    """Lines the units' rounds up: the k-th of every unit make one round, which is looked up by its place.

    Latency: ``done`` of the last unit in c: ``arrived`` counts the round from c + 5 on. Throughput: a round a cycle.

    Back-pressure: none; units have no more than WEIGHT_BUFFER_ROUNDS rounds that are not freed. Reset: empty.

    Parameters: ``config``; ``domains``: clock domains of the same clock, among which the units' queues are divided, for
    one register cannot reset them all.

    Members: ``done``, ``kinds``: a unit's round is complete, in registers of the unit; ``arrived``: how many rounds
    have come; ``at``, ``o``: two rounds looked up.
    """

    latency = 5

    def __init__(self, config: Config, domains: tuple[str, ...] = ("sync",)):
        self.config, self.domains = config, domains
        super().__init__(
            {
                "done": In(config.units),
                "kinds": In(data.ArrayLayout(ROUND_KIND, config.units)),
                "arrived": Out(COUNT),
                "at": In(data.ArrayLayout(PLACE, 2)),
                "o": Out(data.ArrayLayout(ENTRY, 2)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        units = self.config.units
        there, all_there, compared, agreed = (
            Signal(units, name="there"),
            *(Signal(name=name) for name in ("all_there", "compared", "agreed")),
        )
        heads, found = Signal(data.ArrayLayout(ROUND_KIND, units), reset_less=True), Signal(ENTRY, reset_less=True)
        m.d.comb += all_there.eq(there.all())
        for unit in range(units):
            level = Signal(COUNT, name=f"level_{unit}")
            done, kind = Signal(name=f"done_{unit}"), Signal(ROUND_KIND, name=f"kind_{unit}", reset_less=True)
            following = Signal(COUNT, name=f"level_of_{unit}")
            m.d.comb += following.eq(level + done - all_there)
            domain = self.domains[unit * len(self.domains) // units]
            m.d[domain] += [
                done.eq(self.done[unit]),
                kind.eq(self.kinds[unit]),
                level.eq(following),
                there[unit].eq(following != 0),
                heads[unit].eq(self._fifo(m, f"kinds_{unit}", kind, done, all_there, domain)),
            ]
        m.d.sync += [
            compared.eq(all_there),
            found.kind.eq(heads[0]),
            found.agree.eq(Cat(head == heads[0] for head in heads).all()),
            agreed.eq(compared),
            self.arrived.eq(self.arrived + agreed),
        ]
        for number, (at, o) in enumerate(zip(self.at, self.o, strict=True)):
            m.submodules[f"rounds_{number}"] = store = memory.Memory(
                shape=unsigned(ENTRY.size), depth=WEIGHT_BUFFER_ROUNDS, init=[]
            )
            write, read = store.write_port(), store.read_port(domain="comb")
            m.d.comb += [
                write.en.eq(agreed),
                write.addr.eq(self.arrived[:-1]),
                write.data.eq(found.as_value()),
                read.addr.eq(at),
                o.as_value().eq(read.data),
            ]
        return m

    def _fifo(self, m, name, value, write_en, advance, domain):
        """A queue in LUT memory; its oldest entry, which ``advance`` removes."""
        write_at, read_at = Signal(PLACE, name=f"{name}_write_at"), Signal(PLACE, name=f"{name}_read_at")
        m.d[domain] += [write_at.eq(write_at + write_en), read_at.eq(read_at + advance)]
        m.submodules[name] = ring = memory.Memory(shape=unsigned(ROUND_KIND.size), depth=WEIGHT_BUFFER_ROUNDS, init=[])
        write, read = ring.write_port(domain=domain), ring.read_port(domain="comb")
        m.d.comb += [write.en.eq(write_en), write.addr.eq(write_at), write.data.eq(value), read.addr.eq(read_at)]
        return read.data
