"""A module's program: its entries one after the other, with one memory and one state."""

from collections.abc import Mapping
from dataclasses import dataclass

from hw.spec.config import BEAT_BYTES, Config
from hw.spec.errors import UserError
from hw.spec.isa import INSTRUCTION_BYTES, Op

from ..integer.integers import Integers
from ..kernels.builder import Builder
from .entry import EntryLowering, LoweredEntry
from .memory import MemoryMap
from .roll import roll
from .schedule import READS_AHEAD
from .state import State


@dataclass
class Lowered:
    """Instructions, the entries at which they may be started, and what lies in memory."""

    config: Config
    words: list[int]
    memory: MemoryMap
    operators: dict[int, str]
    """pc of every ISSUE -> operator."""
    entries: dict[str, LoweredEntry]


def lower(integers: Mapping[str, Integers], config: Config) -> Lowered:
    """The program of a module's entries on a machine; UserError where a tile of one row does not fit."""
    _check_queues(config)
    memory, builder = MemoryMap(config), Builder(config)
    memory.aux(config.imem_instructions * INSTRUCTION_BYTES // BEAT_BYTES)  # the program lies at 0
    state = State(memory, integers)
    lowerings = {name: EntryLowering(each, memory, state, builder) for name, each in integers.items()}
    starts = [lowering.emit() for lowering in lowerings.values()]
    rolled = roll(builder.assigned(), starts, memory.table, config.imem_instructions)
    words = builder.words(rolled.program)
    for lowering, start in zip(lowerings.values(), rolled.entries, strict=True):
        lowering.found.start = start
    operators = {
        new: builder.operators[old] for new, old in sorted(rolled.origin.items()) if rolled.program[new].op == Op.ISSUE
    }
    return Lowered(config, words, memory, operators, {name: each.found for name, each in lowerings.items()})


def _check_queues(config: Config) -> None:
    """UserError for queues that a schedule may fill with reads whose matrix instruction comes behind them."""
    if config.queue_depth < READS_AHEAD:
        raise UserError(
            f"configuration {config.name}: queue_depth = {config.queue_depth}, programs of modules need queues of "
            f"{READS_AHEAD} instructions at least: choose a deeper one"
        )
