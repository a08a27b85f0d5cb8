"""A slow model of docs/machine.md that ticks every cycle: the oracle of the cycle simulator's recurrences.

It knows time only: programs of SET, ISSUE, FENCE, HALT (kept in instruction memory) on registers that are all 0.
"""

from hw.spec.config import Config
from hw.spec.isa import MxMode, StMode, Unit
from hw.spec.memory import MemoryModel
from hw.spec.timing import (
    ADDRESS_PIPE,
    AUX_BEAT,
    END_LATENCY,
    MX_ACC_LATENCY,
    MX_DRAIN_LATENCY,
    SEQ_FIRST,
    ST_END,
    ST_PIPE,
    UNIT_START,
    VU_LATENCY,
    WEIGHT_BUFFER_ROUNDS,
    accumulator_slots,
    burst_length,
)
from tests.sim.streams import beat_kinds


class Port:
    """Reads of one memory port; a beat a cycle, taken `late` cycles behind its arrival."""

    def __init__(self, number, model, late=0):
        self.number, self.model, self.requests, self.waiting = number, model, 0, []
        self.late = ADDRESS_PIPE + late

    def accept(self, t, beats):
        self.waiting.append([t + self.late + self.model.latency(self.number, self.requests), beats])
        self.requests += 1

    def beat(self, t):
        if not self.waiting or self.waiting[0][0] > t:
            return False
        self.waiting[0][1] -= 1
        if not self.waiting[0][1]:
            self.waiting.pop(0)
        return True


def bursts(f):
    out = []
    for o in range(f["n_outer"]):
        address, left = f["addr"] + o * f["stride"], f["n_inner"]
        while left:
            n = burst_length(address, left)
            out.append(n)
            address, left = address + n, left - n
    return out


class Channel:
    """Reader, FIFO and weight buffer. Beats carry what they complete: (window, sparse, last), "raw" or None."""

    def __init__(self, number, model, fifo_beats):
        self.port, self.size = Port(number, model), fifo_beats
        self.bursts, self.reserved, self.last_ar = [], 0, 0
        self.kinds, self.fifo, self.raw, self.buffer = [], [], 0, []
        self.held_back = 0

    def start(self, f, data):
        """A read of this descriptor; data: what a STREAM read gives."""
        self.bursts = bursts(f)
        if f["fmt"]:
            self.kinds += beat_kinds(data)
        else:
            for _ in range(f["n_outer"] * f["n_inner"]):
                self.raw = (self.raw + 1) % 4
                self.kinds.append(None if self.raw else "raw")

    def tick(self, t, s, taken):
        """One cycle; taken: a round is taken in it. What was registered before decides."""
        reserved = self.reserved
        if self.bursts and t >= s + UNIT_START and reserved + self.bursts[0] <= self.size:
            n = self.bursts.pop(0)
            self.port.accept(t, n)
            self.last_ar = t
            self.reserved += n
        popped = None
        if self.fifo and self.fifo[0][0] <= t:
            if len(self.buffer) == WEIGHT_BUFFER_ROUNDS:
                self.held_back += 1
            else:
                popped = self.fifo.pop(0)[1]
                self.reserved -= 1
        if self.port.beat(t):
            self.fifo.append((t + 1, self.kinds.pop(0)))
        if taken:
            self.buffer.pop(0)
        if popped:
            self.buffer.append(popped)


class Ticker:
    def __init__(self, config: Config, model: MemoryModel, issues, memory=None):
        """issues: [(kind, unit or mask, fields, wait, signal, pc)] with kind "set", "issue", "fence", "halt".

        memory: the image that STREAM reads find their streams in.
        """
        self.memory = memory
        self.config, self.model, self.program = config, model, list(issues)
        self.channels = [Channel(u, model, config.fifo_beats) for u in range(config.units)]
        self.aux = Port(config.units, model, AUX_BEAT)
        self.queues = {u: [] for u in Unit}
        self.active = dict.fromkeys(Unit)
        self.semaphores = {(p, c): 0 for p in Unit for c in Unit}
        self.trace, self.weight_stall, self.drain_stall = [], 0, 0
        self.units = {
            Unit.LD: self.load,
            Unit.ST: self.store,
            Unit.RD: self.read,
            Unit.MX: self.matrix,
            Unit.VU: self.vector,
        }

    def run(self, limit=40_000):
        """Total cycles."""
        next_at = SEQ_FIRST
        for t in range(limit):
            pushed = None
            if t >= next_at:
                done, pushed = self.sequencer(t)
                if done:
                    if self.program[0][0] == "halt":
                        # Counters count up to this cycle; every reader is idle and nothing is taken any more.
                        for last in range(END_LATENCY + 1):
                            for c in self.channels:
                                c.tick(t + last, 0, self.taken and not last)
                        return t + END_LATENCY + 1
                    self.program.pop(0)
                    next_at = t + 2
            self.starts(t)
            if pushed:
                self.queues[pushed[0]].append(pushed[1:])
            ended = [u for u in Unit if self.active[u] and self.units[u](t, self.active[u])]
            taken = self.taken
            s = self.active[Unit.RD]["s"] if self.active[Unit.RD] else 0
            for c in self.channels:
                c.tick(t, s, taken)
            if self.aux.beat(t):
                self.active[Unit.LD]["left"] -= 1
                self.active[Unit.LD]["last"] = t
            self.taken = False
            for u in ended:
                self.end(u, t)
        raise AssertionError("did not end")

    taken = False

    def sequencer(self, t):
        kind, what, fields, wait, signal, pc = self.program[0]
        if kind == "set":
            return True, None
        if kind == "issue":
            if len(self.queues[what]) >= self.config.queue_depth:
                return False, None
            return True, (what, fields, wait, signal, pc)
        mask = what if kind == "fence" else 31
        return not any(mask >> u & 1 and (self.queues[u] or self.active[u]) for u in Unit), None

    def starts(self, t):
        for u in Unit:
            if self.active[u] or not self.queues[u]:
                continue
            fields, wait, signal, pc = self.queues[u][0]
            needed = [(p, u) for p in Unit if wait >> p & 1]
            if all(self.semaphores[key] for key in needed):
                for key in needed:
                    self.semaphores[key] -= 1
                self.queues[u].pop(0)
                self.active[u] = {"s": t, "f": fields, "signal": signal, "pc": pc}
                self.begin(u, self.active[u])

    def begin(self, u, a):
        if u == Unit.LD:
            a["bursts"] = bursts(a["f"])
            a["left"], a["last"] = sum(a["bursts"]), 0
        elif u == Unit.RD:
            f = a["f"]
            for u, c in enumerate(self.channels):
                rows = [f["addr"] + o * f["stride"] for o in range(f["n_outer"] if f["fmt"] else 0)]
                c.start(f, b"".join(self.memory.read(u, x * 64, f["n_inner"] * 64).tobytes() for x in rows))
        elif u == Unit.MX:
            a |= {"step": 0, "k": 0, "busy_to": a["s"] + UNIT_START, "steps": [], "dend": {}}

    def end(self, u, t):
        a = self.active[u]
        self.trace.append((u, a["pc"], a["s"], t))
        for c in Unit:
            if a["signal"] >> c & 1:
                self.semaphores[u, c] += 1
        self.active[u] = None

    def load(self, t, a):
        if t >= a["s"] + UNIT_START and a["bursts"]:
            self.aux.accept(t, a["bursts"].pop(0))
        return a["left"] == 0 and t == a["last"] + 1

    def store(self, t, a):
        f = a["f"]
        beats = f["n_tok"] * f["n_head"] * f["n_gran"] * (4 if f["mode"] == StMode.V else 1)
        responses = [a["s"] + UNIT_START + k + ST_PIPE + self.model.write_latency for k in range(beats)]
        return t == responses[-1] + ST_END

    def read(self, t, a):
        return (
            t > a["s"] + 1
            and not any(c.bursts for c in self.channels)
            and (t == max(c.last_ar for c in self.channels) + 1)
        )

    def vector(self, t, a):
        f = a["f"]
        return t == a["s"] + f["n_outer"] * f["n_mid"] * f["n_words"] + VU_LATENCY

    def matrix(self, t, a):
        """Front, drains and end of the matrix units, told from counters alone."""
        f = a["f"]
        split_n = f["mode"] == MxMode.SPLIT_N
        drain = f["n_rows"] * (self.config.drain_cycles_a_row if split_n else 1)
        steps, slots = f["n_outer"] * f["ob"], accumulator_slots(f["n_rows"], self.config.acc_rows)
        if a["step"] < steps and t >= a["busy_to"]:
            step, k = a["step"], a["k"]
            full = all(c.buffer for c in self.channels)
            free = k or step < slots or (step - slots in a["dend"] and t >= a["dend"][step - slots] + 1)
            self.weight_stall += not full
            self.drain_stall += full and not free
            if full and free:
                self.taken = True
                kinds = {c.buffer[0] for c in self.channels}
                assert len(kinds) == 1, "units differ"
                kind = kinds.pop()
                _, sparse, last = (0, False, k == f["kb"] - 1) if kind == "raw" else kind
                rows = f["n_rows"] + (f["n_rows"] % 2 if sparse else 0)
                a["k"] += 1
                a["busy_to"] = t + rows * self.config.passes
                if last:
                    a["steps"].append((step, a["busy_to"] + MX_ACC_LATENCY))
                    a["step"], a["k"] = step + 1, 0
        if a["steps"]:
            step, at = a["steps"][0]
            if t >= at and (step == 0 or t >= a["dend"][step - 1] + 1):
                a["dend"][step] = t + drain - 1
                a["steps"].pop(0)
        last = a["dend"].get(steps - 1)
        return last is not None and t == last + MX_DRAIN_LATENCY
