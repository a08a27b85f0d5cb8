"""Lowering: the steps of a phase as instructions of one tile.

Lane steps go to the pass former; what is here moves data: rows from and to memory, constants, weight streams, keys
and values. Attention has a file of its own.
"""

from collections.abc import Callable
from typing import Any

from hw.spec import weights
from hw.spec.config import GRANULE_LANES, Config
from hw.spec.errors import UserError
from hw.spec.isa import Add, Dst, LdKind, Row, Src, StKind, StMode, Unit

from ..integer import steps as s
from ..integer.steps import Layout, Param, Step
from ..kernels.builder import At
from ..kernels.regions import memory_region
from .body import Body, Buffer, Home, Issue, Memory
from .emit import Arguments, Emitter
from .memory import Cache, MemoryMap, Rows
from .passes import Former
from .phases import Phase


class PhaseLowering:
    """One phase with tiles of a given number of rows. `rows`, `caches`: places of values and of state in memory."""

    def __init__(
        self,
        phase: Phase,
        steps: dict[str, Step],
        memory: MemoryMap,
        arguments: Arguments,
        rows: dict[str, Rows],
        caches: dict[str, Cache],
        tile: int,
    ) -> None:
        self.phase, self.steps, self.memory, self.arguments = phase, steps, memory, arguments
        self.rows, self.caches = rows, caches
        self.config: Config = memory.config
        self.body = Body(tile)
        self.former = Former(self.body, self, steps, self._readers())
        self.former.stored = set(phase.stores)
        self._params: dict[tuple, Home] = {}

    @property
    def granules_per_word(self) -> int:
        return self.config.granules_per_word

    def words(self, size: int) -> int:
        return self.memory.words(size)

    def _readers(self) -> dict[str, list[Step]]:
        readers: dict[str, list[Step]] = {}
        for name in self.phase.steps:
            for operand in self.steps[name].operands:
                readers.setdefault(operand, []).append(self.steps[name])
        return readers

    def issue(self, unit: Unit, operator: str, reads, writes, emit: Callable[[Emitter], None], cycles: int) -> None:
        self.body.issues.append(Issue(unit, operator, tuple(reads), tuple(writes), emit, cycles))

    # --- rows in memory ----------------------------------------------------------------------------------

    def load(self, step: Step) -> None:
        """The tile's rows from memory into PB."""
        kind = LdKind.TABLES if isinstance(step, s.Table) else LdKind.ACTIVATIONS
        self.former.homes[step.name] = [self._loaded(step, self.rows[step.name], kind, step.name)]

    def _loaded(self, step: Step, rows: Rows, kind: LdKind, name: str) -> Home:
        home = self.former.new_home(step.name, "PB", name)
        one = step.rows == 1

        def emit(e: Emitter) -> None:
            address = rows.base if one else e.row_address(rows.base, rows.beats)
            count = 1 if one else e.m
            e.b.load(
                address, e.region(home.buffer), rows.beats, count, rows.beats, 0, rows.beats, memory_region(name), kind
            )

        latency = self.config.read_latency
        self.issue(Unit.LD, step.operator, [Memory(name)], [home.buffer], emit, self.body.tile * rows.beats + latency)
        return home

    def store(self, name: str) -> None:
        """The tile's rows of a value to memory."""
        self._stored(self.steps[name], self.rows[name], name)

    def _stored(self, step: Step, rows: Rows, name: str) -> None:
        former = self.former
        former.operator = step.operator
        home = former.new_home(step.name, "SB", f"{name} stored")
        chain = former.open.get(step.name) or former._source(step.name)
        former.write(chain, step.name, home)
        one = step.rows == 1

        def emit(e: Emitter) -> None:
            address = rows.base if one else e.row_address(rows.base, rows.beats)
            e.b.store(
                StMode.LIN,
                e.region(home.buffer),
                memory_region(name),
                addr=address,
                src_tok=rows.beats,
                n_tok=1 if one else e.m,
                n_gran=rows.beats,
                stride_tok=rows.beats,
                kind=StKind.ACTIVATIONS,
            )

        cycles = self.body.tile * rows.beats + self.config.write_latency
        self.issue(Unit.ST, step.operator, [home.buffer], [Memory(name)], emit, cycles)

    def bounce(self, former: Former, value: str, to: Step | None = None) -> Home:
        """A value from VB over memory into PB; returns its home there.

        to: a step with another grouping of the channels, which they have on the way back.
        """
        step = self.steps[value]
        target_step = to or step
        name = f"{target_step.name}~"
        if name not in self.rows:
            self.rows[name] = self.memory.rows(target_step.layout, self.body.tile)
        rows, home = self.rows[name], former.new_home(value, "SB", name)
        former.write(former._source(value), value, home)
        target = former.new_home(target_step.name, "PB", f"{name} back")
        walk = self._grouping(step, target_step)
        one = step.rows == 1

        def put(e: Emitter) -> None:
            count = 1 if one else e.m
            e.b.store(StMode.LIN, e.region(home.buffer), memory_region(name), addr=rows.base, n_tok=count, **walk)

        def get(e: Emitter) -> None:
            count, region = 1 if one else e.m, e.region(target.buffer)
            e.b.load(rows.base, region, rows.beats, count, rows.beats, 0, rows.beats, memory_region(name))

        cycles = self.body.tile * rows.beats
        self.issue(Unit.ST, step.operator, [home.buffer], [Memory(name)], put, cycles + self.config.write_latency)
        self.issue(Unit.LD, step.operator, [Memory(name)], [target.buffer], get, cycles + self.config.read_latency)
        return target

    def _grouping(self, step: Step, to: Step) -> dict[str, int]:
        """Strides of a store that brings rows into the grouping of `to`, piece by piece."""
        before, behind = (self._row_granules(each.layout) for each in (step, to))
        if step.layout == to.layout:
            return {"src_tok": before, "n_gran": before, "stride_tok": behind}
        fine, coarse = sorted((step.layout, to.layout), key=lambda layout: layout.size)
        if fine.size % GRANULE_LANES or coarse.size % fine.size or coarse.groups != 1:
            raise UserError(
                f"operator {to.operator}: {step.layout.groups} groups of {step.layout.size} channels meet "
                f"{to.layout.groups} of {to.layout.size}: a group must have a multiple of {GRANULE_LANES} channels"
            )
        piece = fine.size // GRANULE_LANES
        apart = self.words(fine.size) * self.granules_per_word
        source, target = (apart, piece) if step.layout == fine else (piece, apart)
        return {
            "src_tok": before,
            "stride_tok": behind,
            "n_head": fine.groups,
            "src_head": source,
            "stride_head": target,
            "n_gran": piece,
        }

    def _row_granules(self, layout: Layout) -> int:
        return layout.groups * self.words(layout.size) * self.granules_per_word

    def regroup(self, step: s.Regrouped) -> None:
        """Other groups of the same channels: nothing moves where groups are whole words."""
        former, before = self.former, self.steps[step.x].layout
        former.operator = step.operator
        former.settle(step.x)
        if any(self.words(layout.size) * self.config.lanes != layout.size for layout in (before, step.layout)):
            former.homes[step.name] = [self.bounce(former, step.x, step)]
            return
        words = self.words(step.layout.size) if step.layout.groups > 1 else 0
        if not any(h.buffer.where in ("VB", "PB") for h in former.homes[step.x]):
            former._copy(step.x)
        homes = [h for h in former.homes[step.x] if h.buffer.where in ("VB", "PB")]
        former.homes[step.name] = [Home(h.buffer, h.row, words) for h in homes]

    def parameter(self, former: Former, param: Param, layout: Layout) -> Home:
        """A constant a channel in PB, loaded where it is first needed in the tile."""
        key = (id(param.array), layout.groups, layout.size)
        if key not in self._params:
            beats = layout.groups * self.words(layout.size) * self.granules_per_word
            address, words = self.memory.param(param, layout), self.words(layout.size)
            buffer = Buffer(param.name, "PB", beats)

            def emit(e: Emitter) -> None:
                e.b.load(address, e.region(buffer), beats, kind=LdKind.PARAMETERS)

            self.issue(Unit.LD, former.operator, [], [buffer], emit, beats + self.config.read_latency)
            self._params[key] = Home(buffer, 0, words)
        return self._params[key]

    def sum_groups(self, step: s.SumGroups) -> None:
        """One group after the other is added to a sum in VB."""
        former, words = self.former, self.words(step.layout.size)
        former.operator = step.operator
        former.settle(step.x)
        home = former.home(step.x, "PB") or former.home(step.x, "AB")
        if home is None:
            home = self.bounce(former, step.x)
            former.homes[step.x].append(home)
        total, n = former.in_vb(step.name), self.steps[step.x].layout.groups
        port, source = ("p", Src.P) if home.buffer.where == "PB" else ("a", Src.A)

        def add(group: int) -> Callable[[Emitter], None]:
            def emit(e: Emitter) -> None:
                part = At(e.region(home.buffer), home.row, 0, group * words)
                place = At(e.region(total.buffer), total.row)
                fields: dict[str, Any] = {port: part, "src": source}
                if group and port == "p":
                    fields = {"v": place, "src": Src.V, "p": part, "add": Add.P}
                elif group:
                    fields |= {"v": place, "add": Add.V}
                e.b.vu_pass((1 if step.rows == 1 else e.m, 1, words), step.layout.size, d=place, **fields)

            return emit

        for group in range(n):
            reads = [home.buffer, *([total.buffer] if group else [])]
            self.issue(Unit.VU, step.operator, reads, [total.buffer], add(group), self.body.tile * words)

    # --- matrix unit -------------------------------------------------------------------------------------

    def product(self, step: s.Product) -> None:
        """int8 rows times a weight that streams through the units."""
        before = self.steps[step.x]
        at, beats = self.memory.stream(step.weight, before.layout, step.layout)
        act = self.former.homes[step.x][0]
        blocks = before.layout.groups * self.words(before.layout.size) * self.granules_per_word
        out = step.layout.groups * self.words(step.layout.size) * self.config.lanes
        steps = weights.output_blocks(out, self.config.units)
        granules = steps * self.config.units
        rows = 1 if step.rows == 1 else self.body.tile
        buffer = Buffer(step.name, "AB", rows * granules)
        self.former.homes[step.name] = [Home(buffer, granules // self.granules_per_word, self.words(step.layout.size))]
        self.issue(Unit.RD, step.operator, [], [], lambda e: e.b.read(at, beats), beats)

        def emit(e: Emitter) -> None:
            e.b.matmul(
                e.region(act.buffer),
                e.region(buffer),
                rows=1 if step.rows == 1 else e.m,
                kb=blocks,
                ob=steps,
                act_stride=blocks,
                out_stride=granules,
            )

        cycles = rows * blocks * steps * self.config.passes
        self.issue(Unit.MX, step.operator, [act.buffer], [buffer], emit, cycles)

    def int8(self, step: s.ToInt8) -> None:
        """int8 rows for the matrix unit, for attention's queries, or for keys and values on their way out."""
        readers = self.former.readers.get(step.name, [])
        self.former.homes[step.name] = []
        if any(isinstance(r, s.Product) for r in readers):
            self._operand(step, "OB", heads_first=False)
        if any(isinstance(r, s.Attend) for r in readers):
            self._operand(step, "OB", heads_first=True)
        if any(isinstance(r, s.Hold) for r in readers):
            home = self.former.new_home(step.name, "SB")
            self.former.to_int8(step, home, clip8=1)
            self.former.homes[step.name].append(home)

    def _operand(self, step: s.ToInt8, where: str, heads_first: bool) -> None:
        plain = self.former.new_home(step.name, where)
        home = Home(plain.buffer, plain.row, plain.group, heads_first)
        self.former.to_int8(step, home)
        self.former.homes[step.name].append(home)

    # --- keys and values ---------------------------------------------------------------------------------

    def hold(self, step: s.Hold) -> None:
        """Scales and int8 rows of keys or values behind those that are held; scales first, as they are read first."""
        former, cache = self.former, self.caches[step.name]
        x = self.steps[step.x]
        n, words = x.layout.groups, self.words(x.layout.size)
        self._hold_scales(step, cache, n)
        home = next(h for h in former.homes[step.x] if h.buffer.where == "SB")
        strides = weights.k_strides(cache.size) if step.key else weights.v_strides(cache.context, self.config.units)
        gpw = self.granules_per_word

        def emit(e: Emitter) -> None:
            e.b.store(
                StMode.K if step.key else StMode.V,
                e.region(home.buffer),
                memory_region(f"h{cache.base}"),
                addr=cache.base,
                src_tok=n * words * gpw,
                src_head=words * gpw,
                pos=self._position(e, step),
                n_tok=1 if x.rows == 1 else e.m,
                n_head=n,
                n_gran=cache.size // weights.BLOCK,
                stride_head=cache.beats(self.config),
                stride_slot=strides["slot"],
                stride_gran=strides["gran"],
            )

        cycles = self.body.tile * n * words * gpw * (1 if step.key else 4) + self.config.write_latency
        self.issue(Unit.ST, step.operator, [home.buffer], [Memory(f"h{cache.base}")], emit, cycles)

    def _position(self, e: Emitter, step: s.Hold):
        """The key number of the tile's first row."""
        before = self.steps[step.past].rows if step.past else 0
        return e.sum(e.dim(before), e.at)

    def _hold_scales(self, step: s.Hold, cache: Cache, n: int) -> None:
        entry = self.former.homes[step.entry][0]
        x, gpw = self.steps[step.x], self.granules_per_word
        tile = 1 if x.rows == 1 else self.body.tile
        buffer = Buffer(f"{step.name} scales", "SB", tile * n * gpw)
        read = Row.SCALE if step.key else Row.RAW

        def fill(e: Emitter) -> None:
            rows = 1 if x.rows == 1 else e.m
            target = At(e.region(buffer), n, 1)
            e.b.vu_pass((rows, n, 1), 1, d=target, r0=e.entries(entry), src=Src.R0, row0=read, dst=Dst.SB)

        def put(e: Emitter) -> None:
            e.b.store(
                StMode.SC,
                e.region(buffer),
                memory_region(f"s{cache.scales}"),
                addr=cache.scales,
                src_tok=n * gpw,
                src_head=gpw,
                pos=self._position(e, step),
                n_tok=1 if x.rows == 1 else e.m,
                n_head=n,
                stride_head=cache.granules(self.config),
                kind=StKind.KV_SCALES,
            )

        self.issue(Unit.VU, step.operator, [entry.buffer], [buffer], fill, tile * n)
        self.issue(Unit.ST, step.operator, [buffer], [Memory(f"s{cache.scales}")], put, tile * n)
