"""The order of a body's instructions: list scheduling by what they read and write.

Instructions come in the order of the module's text, one operator behind the other. Here each of them goes as early as
its operands allow, first those that most work waits for. Weights, constants and rows of the next operator are then on
their way while the last one is still computed:

    text        LD p1  VU1  RD MX1  LD p2  VU2        LD waits for its turn
    scheduled   LD p1  LD p2  RD VU1  MX1  VU2        LD runs while VU and MX work

Any order that keeps every reader behind its writers gives the same bits: places and semaphores are decided afterwards,
for the order that is found. Two bounds keep the order good for the machine. Few reads of channels go ahead of their
matrix instructions, so that no queue fills while its unit waits for an instruction behind it (`AHEAD`). And an order
that needs more buffer than there is gives way to the text's.
"""

from collections import defaultdict

from hw.spec.isa import Unit

from .body import Body, Issue, Place

ISSUE_CYCLES = 12
"""What the sequencer takes for the fields of an instruction, about."""
AHEAD = 4
"""Reads of channels that may be under way before the matrix instruction that takes the first of them."""


def scheduled(body: Body) -> Body:
    """The same body with its instructions in the order that is found."""
    return Body(body.tile, _Scheduler(body.issues).run(), body.before, body.behind)


class _Scheduler:
    def __init__(self, issues: list[Issue]) -> None:
        self.issues = issues
        self.before = _dependences(issues)
        self.behind: list[list[int]] = [[] for _ in issues]
        for at, needed in enumerate(self.before):
            for earlier in needed:
                self.behind[earlier].append(at)
        self.height = [0] * len(issues)
        for at in reversed(range(len(issues))):
            self.height[at] = issues[at].cycles + max((self.height[b] for b in self.behind[at]), default=0)

    def run(self) -> list[Issue]:
        """Step by step, the ready instruction that can start first; of several, the one that most work waits for."""
        left = [len(needed) for needed in self.before]
        ready = [at for at, count in enumerate(left) if not count]
        end = [0] * len(self.issues)
        free: dict[Unit, int] = defaultdict(int)
        order: list[Issue] = []
        clock = reads = 0
        while ready:
            starts = {at: max(clock, free[self.issues[at].unit], *(end[b] for b in self.before[at]), 0) for at in ready}
            open_ = [at for at in ready if self.issues[at].unit != Unit.RD or reads < AHEAD] or ready
            chosen = min(open_, key=lambda at: (starts[at], -self.height[at], at))
            issue = self.issues[chosen]
            ready.remove(chosen)
            order.append(issue)
            reads += (issue.unit == Unit.RD) - (issue.unit == Unit.MX)
            free[issue.unit] = end[chosen] = starts[chosen] + issue.cycles
            clock += ISSUE_CYCLES
            for later in self.behind[chosen]:
                left[later] -= 1
                if not left[later]:
                    ready.append(later)
        return order


def _dependences(issues: list[Issue]) -> list[set[int]]:
    """For every instruction those that must come before it: writers of what it touches, readers of what it writes, and
    of reads of channels and matrix instructions the one before, as they meet in the FIFOs."""
    needed: list[set[int]] = [set() for _ in issues]
    writers: dict[Place, int] = {}
    readers: dict[Place, list[int]] = defaultdict(list)
    last: dict[Unit, int] = {}
    reads: list[int] = []
    for at, issue in enumerate(issues):
        for place in issue.reads:
            needed[at] |= {writers[place]} if place in writers else set()
            readers[place].append(at)
        for place in issue.writes:
            needed[at] |= ({writers[place]} if place in writers else set()) | set(readers[place])
            writers[place], readers[place] = at, []
        if issue.unit in (Unit.RD, Unit.MX):
            needed[at] |= {last[issue.unit]} if issue.unit in last else set()
            last[issue.unit] = at
        if issue.unit == Unit.RD:
            reads.append(at)
        if issue.unit == Unit.MX and reads:
            needed[at].add(reads.pop(0))
        needed[at].discard(at)
    return needed
