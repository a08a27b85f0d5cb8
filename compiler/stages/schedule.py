"""The order of a body's instructions: list scheduling by what they read and write.

Instructions come in the order of the module's text, one operator behind the other. Here each of them goes as early as
its operands allow, first those that most work waits for. Weights, constants and rows of the next operator are then on
their way while the last one is still computed, and the scores of one head while the vector unit is at the one before:

    text        MX s1   VU p1   MX w1   MX s2   VU p2   MX w2        s: scores, p: probabilities, w: their values
    scheduled   MX s1   MX s2   VU p1   MX w1   VU p2   MX w2        MX computes s2 and w1 while VU computes p1 and p2

Any order that keeps every reader behind its writers gives the same bits: places and semaphores are decided afterwards,
for the order that is found. Bounds keep the order good for the machine. A matrix instruction goes ahead of few that
stand before it in the text, because each holds buffers (`ahead`). And few reads of channels go ahead of their matrix
instructions (`READS_AHEAD`).

No order ends in a deadlock. Every instruction waits for instructions ahead of it only, and each unit takes its own in
order; so the first one that is not done can always go on. The one exception is a read of channels, which is done when a
matrix instruction behind it has taken what it read. Reads are in the order of these, and as long as queues hold
`READS_AHEAD` of them, the sequencer gets to the matrix instruction that the first one needs.
"""

from collections import defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass

from hw.spec.isa import Unit

from .body import Body, Issue, Place

ISSUE_CYCLES = 12
"""What the sequencer takes for the fields of an instruction, about."""
READS_AHEAD = 4
"""Reads of channels that may be under way before the matrix instruction that takes the first of them."""


@dataclass(frozen=True)
class Scheduled:
    """A body in another order, and about how many cycles its largest tile takes."""

    body: Body
    cycles: int


def scheduled(body: Body, ahead: int) -> Scheduled:
    """The body in the order that is found. ahead: matrix instructions that another one may overtake."""
    order, cycles = _Scheduler(body.issues, ahead).run()
    return Scheduled(Body(body.tile, order, body.before, body.behind), cycles)


def as_written(body: Body) -> Scheduled:
    """The body in the text's order, which needs the fewest buffers at once."""
    return Scheduled(body, _Scheduler(body.issues, 0).time(range(len(body.issues))))


class _Scheduler:
    """Reads of channels are put ahead of their matrix instructions when the order of these is known."""

    def __init__(self, issues: list[Issue], ahead: int) -> None:
        self.issues, self.ahead = issues, ahead
        self.before, self.read = _dependences(issues)
        reads = set(self.read.values())
        self.mine = [at for at in range(len(issues)) if at not in reads]
        self.cycles = [issue.cycles for issue in issues]
        for product, read in self.read.items():
            self.before[product] = (self.before[product] | self.before[read]) - {read}
            self.cycles[product] = max(self.cycles[product], self.cycles[read])
        self.behind: list[list[int]] = [[] for _ in issues]
        for at in self.mine:
            for earlier in self.before[at]:
                self.behind[earlier].append(at)
        self.height = [0] * len(issues)
        for at in reversed(self.mine):
            self.height[at] = self.cycles[at] + max((self.height[b] for b in self.behind[at]), default=0)

    def time(self, order: Iterable[int]) -> int:
        """Cycles until everything is done, in that order."""
        end, free, clock = [0] * len(self.issues), defaultdict[Unit, int](int), 0
        mine = set(self.mine)
        for at in order:
            clock += ISSUE_CYCLES
            if at in mine:
                start = max(clock, free[self.issues[at].unit], *(end[b] for b in self.before[at]), 0)
                free[self.issues[at].unit] = end[at] = start + self.cycles[at]
        return max(end, default=0)

    def run(self) -> tuple[list[Issue], int]:
        """Step by step, the ready instruction that can start first; of several, the one that most work waits for."""
        left = {at: len(self.before[at]) for at in self.mine}
        ready = [at for at in self.mine if not left[at]]
        products = [at for at in self.mine if self.issues[at].unit == Unit.MX]
        end = [0] * len(self.issues)
        free: dict[Unit, int] = defaultdict(int)
        order: list[int] = []
        clock = 0
        while ready:
            starts = {at: max(clock, free[self.issues[at].unit], *(end[b] for b in self.before[at]), 0) for at in ready}
            late = products[self.ahead :][:1]
            open_ = [at for at in ready if self.issues[at].unit != Unit.MX or not late or at <= late[0]] or ready
            chosen = min(open_, key=lambda at: (starts[at], -self.height[at], at))
            ready.remove(chosen)
            order.append(chosen)
            if self.issues[chosen].unit == Unit.MX:
                products.remove(chosen)
            free[self.issues[chosen].unit] = end[chosen] = starts[chosen] + self.cycles[chosen]
            clock += ISSUE_CYCLES * (2 if chosen in self.read else 1)
            for later in self.behind[chosen]:
                left[later] -= 1
                if not left[later]:
                    ready.append(later)
        return [self.issues[at] for at in self._with_reads(order)], max(end, default=0)

    def _with_reads(self, order: list[int]) -> list[int]:
        """Every read as early as its operands and `READS_AHEAD` allow, in the order of the matrix instructions; behind
        the first instruction that can start, which mostly is the one that all others wait for."""
        waiting = deque(self.read[at] for at in order if at in self.read)
        out: list[int] = []
        open_ = 0
        for at in order:
            if at in self.read:
                if self.read[at] not in out:
                    out.append(waiting.popleft())
                    open_ += 1
                open_ -= 1
            out.append(at)
            while waiting and open_ < READS_AHEAD and self.before[waiting[0]] <= set(out):
                out.append(waiting.popleft())
                open_ += 1
        return out


def _dependences(issues: list[Issue]) -> tuple[list[set[int]], dict[int, int]]:
    """(for every instruction those that must come before it: writers of what it touches, readers of what it writes;
    the read of channels that each matrix instruction takes: they meet in the FIFOs, the first the first)."""
    needed: list[set[int]] = [set() for _ in issues]
    writers: dict[Place, int] = {}
    readers: dict[Place, list[int]] = defaultdict(list)
    reads: list[int] = []
    taken: dict[int, int] = {}
    for at, issue in enumerate(issues):
        for place in issue.reads:
            needed[at] |= {writers[place]} if place in writers else set()
            readers[place].append(at)
        for place in issue.writes:
            needed[at] |= ({writers[place]} if place in writers else set()) | set(readers[place])
            writers[place], readers[place] = at, []
        if issue.unit == Unit.RD:
            reads.append(at)
        if issue.unit == Unit.MX and reads:
            taken[at] = reads.pop(0)
        needed[at].discard(at)
    return needed, taken
