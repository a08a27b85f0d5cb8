"""A slow model of docs/machine.md that ticks every cycle: the oracle of the cycle simulator's recurrences.

It knows time only: programs of SET, ISSUE, FENCE, HALT (kept in instruction memory) on registers that are all 0.
"""

from hw.spec.config import Config
from hw.spec.isa import StMode, Unit
from hw.spec.memory import MemoryModel
from hw.spec.timing import (
    ADDRESS_PIPE,
    AUX_BEAT,
    END_LATENCY,
    RD_ADDRESS,
    RD_BEAT,
    RD_DONE,
    ROUND_ARRIVAL,
    ROUND_FREE,
    SEQ_FIRST,
    ST_END,
    ST_PIPE,
    UNIT_REPORT,
    UNIT_START,
    VU_LATENCY,
    WEIGHT_BUFFER_ROUNDS,
    burst_length,
)
from tests.sim.matrix_ticker import RAW, Matrix
from tests.sim.streams import beat_kinds


class Port:
    """Reads of one memory port; a beat a cycle, taken `late` cycles behind that in which it would arrive if its address
    were on the port when it is sent."""

    def __init__(self, number, model, late=0):
        self.number, self.model, self.requests, self.waiting = number, model, 0, []
        self.late = late

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
    """Reader, FIFO and weight buffer. Beats carry what they complete: `tests.sim.streams.Kind`, RAW or None."""

    def __init__(self, number, model, fifo_beats):
        self.port, self.size = Port(number, model), fifo_beats
        self.bursts, self.first_ar, self.last_ar = [], 0, 0
        self.kinds, self.fifo, self.raw = [], [], 0
        self.reserved, self.reserved_before = 0, 0
        self.held = 0
        """Rounds that are complete and whose places are not free."""
        self.held_back = []
        """Cycles in which a beat was held back."""

    def start(self, s, f, data):
        """A read of this descriptor; data: what a STREAM read gives."""
        self.bursts, self.first_ar = bursts(f), s + RD_ADDRESS
        if f["fmt"]:
            self.kinds += beat_kinds(data)
        else:
            for _ in range(f["n_outer"] * f["n_inner"]):
                self.raw = (self.raw + 1) % 4
                self.kinds.append(None if self.raw else RAW)

    def tick(self, t, freed):
        """One cycle; freed: a place becomes free in it. The round that is complete with it, or None."""
        self.held -= freed
        self._address(t)
        done = None
        if self.fifo and self.fifo[0][0] <= t:
            if self.held >= WEIGHT_BUFFER_ROUNDS:
                self.held_back.append(t)
            else:
                done = self.fifo.pop(0)[1]
                self.reserved -= 1
        if self.port.beat(t):
            self.fifo.append((t + RD_BEAT, self.kinds.pop(0)))
        self.held += done is not None
        return done

    def _address(self, t):
        """A pop in t makes room for an address in t + 2; one that was asked for takes its room at once."""
        room = self.size - self.reserved_before
        self.reserved_before = self.reserved
        if self.bursts and t >= self.first_ar and self.bursts[0] <= room:
            n = self.bursts.pop(0)
            self.port.accept(t, n)
            self.last_ar = t
            self.reserved += n
            self.reserved_before += n


class Ticker:
    def __init__(self, config: Config, model: MemoryModel, issues, memory=None):
        """issues: [(kind, unit or mask, fields, wait, signal, pc)] with kind "set", "issue", "fence", "halt".

        memory: the image that STREAM reads find their streams in.
        """
        self.memory = memory
        self.config, self.model, self.program = config, model, list(issues)
        self.channels = [Channel(u, model, config.fifo_beats) for u in range(config.units)]
        self.complete = [[] for _ in self.channels]
        """Each unit's rounds that another one has not completed yet."""
        self.aux = Port(config.units, model, ADDRESS_PIPE + AUX_BEAT)
        self.queues = {u: [] for u in Unit}
        self.active = dict.fromkeys(Unit)
        self.semaphores = {(p, c): 0 for p in Unit for c in Unit}
        self.trace, self.mx = [], Matrix(config)
        self.freeing = []
        """Cycles in which places of the weight buffers become free."""
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
                        for last in range(END_LATENCY + 1):
                            self.tick_channels(t + last)
                        end = t + END_LATENCY
                        self.unpack_stall = sum(at <= end - UNIT_REPORT for at in self.channels[0].held_back)
                        return end + 1
                    self.program.pop(0)
                    next_at = t + 2
            self.starts(t)
            if pushed:
                self.queues[pushed[0]].append(pushed[1:])
            ended = [u for u in Unit if self.active[u] and self.units[u](t, self.active[u])]
            self.tick_channels(t)
            if self.aux.beat(t):
                self.active[Unit.LD]["left"] -= 1
                self.active[Unit.LD]["last"] = t
            for u in ended:
                self.end(u, t)
        raise AssertionError("did not end")

    def tick_channels(self, t):
        """A round has come ROUND_ARRIVAL cycles after the last unit has completed it."""
        if self.mx.freed_at == t:
            self.freeing.append(t + ROUND_FREE)
        freed = bool(self.freeing) and self.freeing[0] == t
        if freed:
            self.freeing.pop(0)
        for queue, c in zip(self.complete, self.channels, strict=True):
            done = c.tick(t, freed)
            if done is not None:
                queue.append(done)
        if all(self.complete):
            kinds = {queue.pop(0) for queue in self.complete}
            assert len(kinds) == 1, "units differ"
            self.mx.rounds.append((t + ROUND_ARRIVAL, kinds.pop()))

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
                c.start(a["s"], f, b"".join(self.memory.read(u, x * 64, f["n_inner"] * 64).tobytes() for x in rows))
        elif u == Unit.MX:
            self.mx.start(a["s"] + UNIT_START - 1, a["f"])

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
        sent = t > a["s"] and not any(c.bursts for c in self.channels)
        return sent and t == max(c.last_ar for c in self.channels) + RD_DONE

    def vector(self, t, a):
        f = a["f"]
        return t == a["s"] + f["n_outer"] * f["n_mid"] * f["n_words"] + VU_LATENCY

    def matrix(self, t, a):
        return self.mx.tick(t)
