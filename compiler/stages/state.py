"""State: what stays in the machine's memory from one run to the next, in one place for all entries.

Caches are keys or values to which entries append; entries that call the input alike share one. Kept rows are what one
entry leaves for others (`compiler.integer.steps.Kept`).
"""

from collections.abc import Mapping

from hw.spec.errors import UserError

from ..integer import steps as s
from ..integer.integers import Form, Integers
from .emit import Arguments
from .memory import Cache, MemoryMap, Rows


class State:
    """Gives out the places of a program's state, each when it is first asked for."""

    def __init__(self, memory: MemoryMap, entries: Mapping[str, Integers]) -> None:
        self.memory, self.entries = memory, entries
        self._caches: dict[tuple[str, int], Cache] = {}
        self._rows: dict[str, Rows] = {}
        for name in sorted({name for integers in entries.values() for name in integers.held()}):
            self._require_alike(name)

    # --- caches ------------------------------------------------------------------------------------------

    def cache(self, integers: Integers, step: s.Hold | s.Past) -> Cache:
        """Where a step's keys or values lie, with room for the most rows of any entry."""
        if isinstance(step, s.Hold) and not step.past:
            return self.memory.cache(step.layout, _most(integers, step), step.key)
        name = _state(integers, step)
        number = integers.held()[name].index(step) if isinstance(step, s.Hold) else 0
        if (name, number) not in self._caches:
            most = max(self._most_of(each, name, number) for each in self.entries.values())
            self._caches[name, number] = self.memory.cache(step.layout, most, step.key)
        return self._caches[name, number]

    def _most_of(self, integers: Integers, name: str, number: int) -> int:
        """The most rows of a state that an entry has in mind."""
        steps: list[s.Step] = [*integers.held().get(name, [])[number : number + 1]]
        steps += [past for past in only_read(integers) if past.node == name]
        return max((_most(integers, step) for step in steps), default=0)

    def _require_alike(self, state: str) -> None:
        """UserError unless all entries that append to an input of this name hold it in the same form, and those that
        only read it do so in attention."""
        forms = {
            name: [Form(hold.key, hold.layout, hold.mult) for hold in integers.held()[state]]
            for name, integers in self.entries.items()
            if state in integers.held()
        }
        (first, wanted), *others = forms.items()
        for name, found in others:
            if found != wanted or len(found) > 1:
                raise UserError(
                    f"state {state}: entry {name} holds {' and '.join(map(str, found))}, entry {first} "
                    f"{' and '.join(map(str, wanted))}: let both append to it once, what the same layers compute, or "
                    "call it otherwise in one of them"
                )
        if len(self.entries) > 1:
            for name, integers in self.entries.items():
                require_only_attention(name, integers, state)

    # --- rows --------------------------------------------------------------------------------------------

    def kept(self, integers: Integers) -> set[str]:
        """The steps of an entry that are rows which another one has left, or which it leaves for others."""
        return {step.name for step in integers.of_kind(s.Kept)} | set(integers.left.values())

    def rows(self, integers: Integers, step: s.Step) -> Rows:
        """Where rows lie that one entry leaves for others."""
        places = [place for place, name in integers.left.items() if name == step.name]
        places += [step.place] if isinstance(step, s.Kept) else []
        found = next((self._rows[place] for place in places if place in self._rows), None)
        if found is None:
            most = max(self._most_rows(place) for place in places)
            found = self.memory.rows(step.layout, max(most, _most(integers, step)))
        self._rows |= dict.fromkeys(places, found)
        return found

    def _most_rows(self, place: str) -> int:
        """The most rows that any entry has in mind there."""
        found = [0]
        for integers in self.entries.values():
            steps = [step for step in integers.of_kind(s.Kept) if step.place == place]
            steps += [integers.steps[integers.left[place]]] if place in integers.left else []
            found += [_most(integers, step) for step in steps]
        return max(found)


def _most(integers: Integers, step: s.Step) -> int:
    return Arguments(integers.graph.lengths).most(step.rows)


def _state(integers: Integers, step: s.Hold | s.Past) -> str:
    """The input whose rows a step reads or appends to."""
    past = integers.steps[step.past] if isinstance(step, s.Hold) else step
    assert isinstance(past, s.Past)
    return past.node


def only_read(integers: Integers) -> list[s.Past]:
    """State that an entry reads and does not append to."""
    return [past for past in integers.of_kind(s.Past) if not past.reader]


def require_only_attention(entry: str, integers: Integers, state: str) -> None:
    """UserError where anything but attention reads state: the host has no rows of it to bring."""
    brought = [node for step in integers.steps.values() if not isinstance(step, s.Past) for node in s.nodes_read(step)]
    if any(state in integers.graph.ancestors(node) for node in brought):
        raise UserError(
            f"state {state}: it stays in the machine, and in entry {entry} something else than attention reads it: "
            "append to it, attend to it, or call the input otherwise there"
        )
