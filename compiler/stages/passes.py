"""The pass former: chains of lane steps become passes of the vector unit.

A pass runs one source through the slots mul1, mul2, add, func and mul3, in this order, to one destination, and may
reduce what it writes. A chain grows step by step for as long as the next step finds its slot behind the last one and
its port free: there is one address for V (values), one for P (parameters and loaded rows), one constant and two row
scalars. Where that ends, the value is written to VB and a new chain begins with it.

    Product, ScaleChannels, ScaleRows, Add(residual)   A -> mul1 P -> mul2 R0 -> add V -> VB    one pass
    ScaleRows, ToInt8                                  V -> mul2 R0 -> OB                       one pass

Two values that both lie in VB cannot meet in a pass. One of them then takes the way over memory to PB.
"""

from dataclasses import dataclass, field
from typing import Any

from hw.spec.errors import InternalError
from hw.spec.isa import Add, Mul1, Mul2, Mul3, Row, Src, Unit
from hw.spec.timing import VU_LATENCY

from ..integer import steps as s
from ..integer.steps import Param, Step
from .body import Body, Buffer, Home, Issue, Place

SOURCE, MUL1, MUL2, ADD, FUNC, MUL3 = range(6)
SOURCES = {"AB": ("a", Src.A), "VB": ("v", Src.V), "PB": ("p", Src.P)}


@dataclass(frozen=True)
class Chain:
    """A pass that has not been written yet. operands: homes by port; stage: the last slot that is taken."""

    operands: dict[str, Home] = field(default_factory=dict)
    control: dict[str, Any] = field(default_factory=dict)
    stage: int = SOURCE

    def then(self, stage: int, operands: dict[str, Home] | None = None, **control: Any) -> "Chain | None":
        """The chain with one more slot; None where the slot or a port is taken."""
        if stage <= self.stage:
            return None
        for port, home in (operands or {}).items():
            if self.operands.get(port, home) != home:
                return None
        for name, value in control.items():
            if self.control.get(name, value) != value:
                return None
        return Chain(self.operands | (operands or {}), self.control | control, stage)


class Former:
    """Turns the steps of a phase, in order, into the instructions of a body. `sizes` knows the machine's words."""

    def __init__(self, body: Body, sizes: Any, steps: dict[str, Step], readers: dict[str, list[Step]]) -> None:
        self.body, self.sizes, self.steps, self.readers = body, sizes, steps, readers
        self.homes: dict[str, list[Home]] = {}
        self.open: dict[str, Chain] = {}
        self.stored: set[str] = set()
        """Values that go to memory besides."""
        self.operator = ""

    # --- values ------------------------------------------------------------------------------------------

    def lane(self, step: Step) -> None:
        """Any lane step but a reduction and int8 rows: a chain grows."""
        self.operator = step.operator
        if isinstance(step, s.Same):
            self._rename(step)
            return
        if isinstance(step, s.FromEntry):
            entry = self.home(step.entry, "RS")
            self.open[step.name] = Chain({"r0": entry}, {"src": Src.R0, "row0": Row.RAW})
            return
        for x, y in self._orders(step):
            for chain in self._chains(x, step):
                longer = self._extended(chain, step, y)
                if longer is not None:
                    self._consume(x)
                    self.open[step.name] = longer
                    return
        self._make_room(step)
        self.lane(step)

    def _rename(self, step: s.Same) -> None:
        """Another name for the value. Its readers are those of both."""
        if step.x in self.open and len(self._left(step.x)) == 1:
            self.open[step.name] = self.open.pop(step.x)
            return
        self.settle(step.x)
        self.homes[step.name] = self.homes[step.x]

    def _orders(self, step: Step) -> list[tuple[str, str | Param | None]]:
        """(operand that a chain goes on from, other operand) in the order of preference."""
        x, y = step.x, getattr(step, "y", None)  # type: ignore[attr-defined]
        if not isinstance(y, str) or x == y:
            return [(x, y)]
        first = [(x, y), (y, x)] if x in self.open or y not in self.open else [(y, x)]
        return first + [pair for pair in ((x, y), (y, x)) if pair not in first]

    def _chains(self, x: str, step: Step) -> list[Chain]:
        """How a pass that goes on from `x` may begin."""
        if x in self.open:
            if len(self._left(x)) == 1 or self._left(x) == [step, step]:
                return [self.open[x]]
            self.settle(x)
        return [self._begin(home) for home in self.homes[x] if home.buffer.where in SOURCES]

    def _begin(self, home: Home) -> Chain:
        port, source = SOURCES[home.buffer.where]
        return Chain({port: home}, {"src": source})

    def _left(self, x: str) -> list:
        """Those who read a value, memory included."""
        return self.readers.get(x, []) + (["memory"] if x in self.stored else [])

    def _consume(self, x: str) -> None:
        self.open.pop(x, None)

    def _extended(self, chain: Chain, step: Step, y: str | Param | None) -> Chain | None:
        match step:
            case s.ScaleChannels():
                return chain.then(MUL1, {"p": self.parameter(step.words, step)}, mul1=Mul1.P, adj1=step.adjust)
            case s.ScaleAll():
                return chain.then(MUL1, mul1=Mul1.IMM, imm0=step.word, adj1=step.adjust)
            case s.Rotate():
                return chain.then(MUL1, {"p": self.home(step.table, "PB")}, mul1=Mul1.ROPE)
            case s.ScaleRows():
                entry = self.home(step.entry, "RS")
                return chain.then(MUL2, {"r0": entry}, mul2=Mul2.R0, row0=step.read, adj2=step.adjust) or chain.then(
                    MUL3, {"r1": entry}, mul3=Mul3.R1, row1=step.read, adj2=step.adjust
                )
            case s.SubtractRows():
                return chain.then(ADD, {"r1": self.home(step.entry, "RS")}, add=Add.SUB_R1, row1=Row.RAW)
            case s.Function():
                return chain.then(FUNC, func=step.func)
            case s.Add():
                return self._added(chain, step, y)
            case s.Multiply():
                assert isinstance(y, str)
                home = self.home(y, "VB")
                return None if home is None else chain.then(MUL3, {"v": home}, mul3=Mul3.V, sh3=step.shift)
        raise InternalError(f"step {step.name} is no lane step")

    def _added(self, chain: Chain, step: Step, y: str | Param | None) -> Chain | None:
        if isinstance(y, Param):
            return chain.then(ADD, {"p": self.parameter(y, step)}, add=Add.P)
        assert y is not None
        for where, port, code in (("VB", "v", Add.V), ("PB", "p", Add.P)):
            home = self.home(y, where)
            longer = None if home is None else chain.then(ADD, {port: home}, add=code)
            if longer is not None:
                return longer
        return None

    def _make_room(self, step: Step) -> None:
        """Brings operands of a step that found no pass to other places: to VB, or over memory to PB."""
        x, y = step.x, getattr(step, "y", None)  # type: ignore[attr-defined]
        both = [x] + ([y] if isinstance(y, str) else [])
        for value in both:
            if value in self.open or not self._has(value, "VB"):
                self.settle(value)
                if not self._has(value, "VB"):
                    self._copy(value)
                return
        for value in reversed(both):
            if not self._has(value, "PB"):
                self._over_memory(value)
                return
        raise InternalError(f"step {step.name} fits no vector pass")

    def _has(self, value: str, where: str) -> bool:
        return any(home.buffer.where == where for home in self.homes.get(value, []))

    def home(self, value: str, where: str) -> Any:
        """The value's home in that buffer; None if it has none. What is open is written first."""
        if value in self.open:
            self.settle(value)
        return next((home for home in self.homes.get(value, []) if home.buffer.where == where), None)

    # --- passes ------------------------------------------------------------------------------------------

    def settle(self, value: str) -> None:
        """Writes an open chain to VB."""
        chain = self.open.pop(value, None)
        if chain is not None:
            self.write(chain, value, self.in_vb(value))

    def in_vb(self, value: str) -> Home:
        """A new home in VB."""
        home = self.new_home(value, "VB")
        self.homes.setdefault(value, []).append(home)
        return home

    def new_home(self, value: str, where: str, name: str = "") -> Home:
        step = self.steps[value]
        words = self.sizes.words(step.layout.size)
        rows = 1 if step.rows == 1 else self.body.tile
        each = self.sizes.granules_per_word
        row = step.layout.groups * words
        buffer = Buffer(name or value, where, rows * row * each)
        scale = each if where == "OB" else 1
        group = words * scale if step.layout.groups > 1 or where == "OB" else 0
        return Home(buffer, 0 if step.rows == 1 else row * scale, group)

    def _copy(self, value: str) -> None:
        """From PB or AB to VB."""
        chain = self._begin(self.homes[value][0])
        self.write(chain, value, self.in_vb(value))

    def _over_memory(self, value: str) -> None:
        """From VB over SB and the auxiliary memory to PB, where a second operand may lie."""
        self.homes[value].append(self.sizes.bounce(self, value))

    def write(
        self, chain: Chain, value: str, to: Home | None, reduce: dict[str, Any] | None = None, **control: Any
    ) -> None:
        """The pass of a chain, in the shape of `value`."""
        step, homes, entry = self.steps[value], dict(chain.operands), None
        fields = chain.control | control
        if reduce is not None:
            entry = reduce["into"]
            fields |= {key: each for key, each in reduce.items() if key not in ("into", "r0")}
            if reduce.get("r0") is not None:
                homes["r0"] = reduce["r0"]
        reads: tuple[Place, ...] = tuple(home.buffer for home in homes.values())
        writes: tuple[Place, ...] = tuple(home.buffer for home in (to, entry) if home is not None)
        words, layout = self.sizes.words(step.layout.size), step.layout
        issue = Issue(
            Unit.VU,
            self.operator or step.operator,
            reads,
            writes,
            lambda e: e.vector_pass(step.rows, layout, homes, to, entry, fields),
            (1 if step.rows == 1 else self.body.tile) * layout.groups * words + VU_LATENCY,
        )
        self.body.issues.append(issue)

    def reduce(self, step: s.Reduction) -> None:
        """A row scalar: with the pass that makes the value where that is still open, else in a pass of its own."""
        self.operator = step.operator
        layout = self.steps[step.x].layout
        groups = 1 if step.whole else layout.groups
        rows = 1 if step.rows == 1 else self.body.tile
        into = Home(Buffer(step.name, "RS", rows * groups), 0 if step.rows == 1 else groups, int(groups > 1))
        control: dict[str, Any] = {"into": into, "reduce": step.kind, "fin": step.fin, "imm1": step.constant}
        control["level"] = int(step.whole and layout.groups > 1)
        control["r0"] = self.home(step.entry, "RS") if step.entry else None
        chain = self.open.pop(step.x, None)
        if chain is not None and step.entry and "r0" in chain.operands:
            self.open[step.x] = chain
            self.settle(step.x)
            chain = None
        if chain is not None:
            alone = len(self._left(step.x)) == 1
            self.write(chain, step.x, None if alone else self.in_vb(step.x), control)
        else:
            self.write(
                self._source(step.x), step.x, None if self._has(step.x, "VB") else self._if_needed(step), control
            )
        self.homes[step.name] = [into]

    def _if_needed(self, step: s.Reduction) -> Home | None:
        """Loaded rows that are normalised go to VB with the pass that reduces them: their scale words need port P."""
        lanes = [r for r in self.readers[step.x] if isinstance(r, s.ScaleChannels | s.Multiply | s.Add)]
        loaded = self.homes[step.x][0].buffer.where == "PB"
        return self.in_vb(step.x) if loaded and lanes else None

    def _source(self, value: str) -> Chain:
        homes = sorted(self.homes[value], key=lambda home: home.buffer.where != "VB")
        return self._begin(next(home for home in homes if home.buffer.where in SOURCES))

    def to_int8(self, step: s.ToInt8, home: Home, **control: Any) -> None:
        """int8 rows into an operand or store buffer."""
        self.operator = step.operator
        chain = self.open.get(step.x) or self._source(step.x)
        self.write(chain, step.name, home, **control)

    def parameter(self, param: Param, step: Step) -> Home:
        """A constant a channel, loaded into PB."""
        return self.sizes.parameter(self, param, step.layout)
