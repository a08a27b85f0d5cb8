"""Tokens: semaphores that order the accesses of one basic block, and the proof that they do.

A basic block starts with every unit but RD idle. Units execute in order, so one wait for the latest conflicting
instruction of a producer covers all its earlier ones. The k-th wait on a (producer, consumer) pair consumes the k-th
signal, because both are placed in increasing order.
"""

from dataclasses import dataclass, field

from hw.spec.errors import InternalError
from hw.spec.isa import SEMAPHORE_MAX, Unit

from .regions import Region


@dataclass
class Access:
    """One ISSUE: its place in the program and the regions its unit touches."""

    pc: int
    unit: Unit
    reads: tuple[Region, ...]
    writes: tuple[Region, ...]
    wait: int = 0
    signal: int = 0
    clock: dict = field(default_factory=dict)

    def conflicts(self, other: "Access") -> bool:
        """RAW, WAR or WAW between the two."""
        return any(w.overlaps(r) for w in self.writes for r in other.reads + other.writes) or any(
            w.overlaps(r) for w in other.writes for r in self.reads
        )


def place(block: list[Access]) -> None:
    """Set the wait and signal masks of a block."""
    for index, access in enumerate(block):
        clock = dict(_previous(block, index))
        needed = {}
        for earlier in range(index):
            if block[earlier].unit != access.unit and access.conflicts(block[earlier]):
                needed[block[earlier].unit] = earlier
        # The most recent producer first: its own clock often covers the others.
        for unit, earlier in sorted(needed.items(), key=lambda item: -item[1]):
            if clock.get(unit, -1) >= earlier:
                continue
            earlier = _free_signal(block, earlier, index, unit, access.unit)
            block[earlier].signal |= 1 << access.unit
            access.wait |= 1 << unit
            _merge(clock, block[earlier].clock, unit, earlier)
        access.clock = clock


def _free_signal(block, earlier, index, producer, consumer) -> int:
    """`earlier` itself: monotone waits mean that it has not signalled this consumer yet."""
    if block[earlier].signal >> consumer & 1:
        raise InternalError(f"token placement: pc {block[earlier].pc} signals {consumer.name} twice")
    return earlier


def _previous(block: list[Access], index: int) -> dict:
    """What is known to be complete when the unit's previous instruction is, that one included."""
    for earlier in range(index - 1, -1, -1):
        if block[earlier].unit == block[index].unit:
            clock = dict(block[earlier].clock)
            clock[block[earlier].unit] = earlier
            return clock
    return {}


def _merge(clock: dict, other: dict, unit: Unit, index: int) -> None:
    for key, value in {**other, unit: max(index, other.get(unit, -1))}.items():
        clock[key] = max(clock.get(key, -1), value)


def verify(block: list[Access]) -> None:
    """Replay the semaphores: every hazard is ordered, every signal has one wait, none overflows."""
    signals: dict[tuple, list[int]] = {}
    for index, access in enumerate(block):
        for consumer in Unit:
            if access.signal >> consumer & 1:
                signals.setdefault((access.unit, consumer), []).append(index)
    taken = dict.fromkeys(signals, 0)
    clocks: list[dict] = []
    for index, access in enumerate(block):
        clock: dict = {}
        for earlier in range(index - 1, -1, -1):
            if block[earlier].unit == access.unit:
                _merge(clock, clocks[earlier], access.unit, earlier)
                break
        for producer in Unit:
            if access.wait >> producer & 1:
                pair = (producer, access.unit)
                queue = signals.get(pair, [])
                if taken.get(pair, 0) >= len(queue) or queue[taken[pair]] > index:
                    raise InternalError(f"token verifier: pc {access.pc} waits for {producer.name}, no signal is left")
                _merge(clock, clocks[queue[taken[pair]]], producer, queue[taken[pair]])
                taken[pair] += 1
        clocks.append(clock)
        for earlier in range(index):
            other = block[earlier]
            if other.unit != access.unit and access.conflicts(other) and clock.get(other.unit, -1) < earlier:
                raise InternalError(
                    f"token verifier: pc {access.pc} ({access.unit.name}) is not ordered after pc "
                    f"{other.pc} ({other.unit.name})"
                )
    for pair, queue in signals.items():
        if taken[pair] != len(queue) or len(queue) > SEMAPHORE_MAX:
            raise InternalError(
                f"token verifier: semaphore {pair[0].name}->{pair[1].name} ends at "
                f"{len(queue) - taken[pair]}, it must end at 0"
            )
