"""State: what stays in the machine's memory from one run to the next, in one place for all entries.

cache   keys or values to which entries append; entries that call the input alike share it
kept    rows that one entry leaves for others (`compiler.integer.steps.Kept`)
"""

from collections.abc import Mapping

from hw.spec.errors import UserError

from ..integer import steps as s
from ..integer.integers import Integers
from .emit import Arguments
from .memory import Cache, MemoryMap, Rows


class State:
    """Gives out the places of a program's state, each when it is first asked for."""

    def __init__(self, memory: MemoryMap, entries: Mapping[str, Integers]) -> None:
        self.memory, self.entries = memory, entries
        self._caches: dict[tuple[str, int], Cache] = {}
        self._rows: dict[str, Rows] = {}
        names = {name for integers in entries.values() for name in held(integers)}
        for name in sorted(names):
            self._require_alike(name)

    # --- caches ------------------------------------------------------------------------------------------

    def cache(self, integers: Integers, hold: s.Hold) -> Cache:
        """Where a step's keys or values lie, with room for the most rows of any entry."""
        if not hold.past:
            return self.memory.cache(hold.layout, _most(integers, hold), hold.key)
        name = integers.steps[hold.past].node  # type: ignore[attr-defined]
        number = held(integers)[name].index(hold)
        if (name, number) not in self._caches:
            most = max(_most(each, held(each)[name][number]) for each in self.entries.values() if name in held(each))
            self._caches[name, number] = self.memory.cache(hold.layout, most, hold.key)
        return self._caches[name, number]

    def _require_alike(self, state: str) -> None:
        """UserError unless all entries that have an input of this name append to it, and to rows of the same form."""
        with_input = {name: integers for name, integers in self.entries.items() if state in integers.graph.inputs}
        forms = {name: [_form(hold) for hold in held(integers).get(state, [])] for name, integers in with_input.items()}
        (first, wanted), *others = sorted(forms.items(), key=lambda item: not item[1])
        for name, form in others:
            if not form:
                raise UserError(
                    f"state {state}: entry {first} appends to it, entry {name} does not: let {name} append its rows "
                    "and return the result, or call its input otherwise"
                )
            if form != wanted or len(form) > 1:
                raise UserError(
                    f"state {state}: entry {name} holds {' and '.join(form)}, entry {first} {' and '.join(wanted)}: "
                    "let both append to it once, what the same layers compute, or call it otherwise in one of them"
                )

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


def held(integers: Integers) -> dict[str, list[s.Hold]]:
    """The steps that append to an input, by its name."""
    found: dict[str, list[s.Hold]] = {}
    for hold in integers.of_kind(s.Hold):
        if hold.past:
            found.setdefault(integers.steps[hold.past].node, []).append(hold)  # type: ignore[attr-defined]
    return found


def _form(hold: s.Hold) -> str:
    kind = "keys" if hold.key else "values"
    turned = "" if hold.layout.order is None else f" in the order {hold.layout.order[:4]}.."
    return f"{kind} of {hold.layout.groups} x {hold.layout.size} channels{turned} times {hold.mult:g}"
