"""Entry point `vision`: patches to feature rows. The residual of all tokens stays on chip; rows go in tiles."""

import math
from collections.abc import Callable
from functools import partial

from hw.spec.isa import LdKind, Op, StMode

from .. import ir
from ..layout import TABLE, Layout
from . import attention, linear, mlp, norm
from .allocate import largest_tile, vision_regions
from .builder import At, Builder, Reg, Rows, Value
from .context import Context, advance_layer
from .encoder import Encoder, Plan, plan
from .expr import run, vec
from .regions import memory_region
from .select import Saliency, Survivors
from .text import key_slots, layer_pointers

ARGUMENTS = ("patches", "result", "n_layers", "keep", "by_rows")
"""Registers 1.. at the start: beat addresses of the patch rows and of the feature rows; layers to run; how many tokens
(by_rows: rows of the patch grid) to keep by the class token's attention, 0 for all."""
FEATURES = memory_region("features")


def emit(b: Builder, layout: Layout, pipelined: bool = True) -> dict:
    """Append the entry; returns its manifest ("parts": where what follows the tower begins). pipelined: layers as in
    `encoder`, where they fit the buffers."""
    entry = b.new_entry()
    vision = layout.tower
    tokens = vision.n_patches + 1
    tile, regions = largest_tile(layout, vision.layer, vision_regions, tokens)
    patches, result, n_layers, keep, by_rows = (b.argument(at + 1) for at in range(len(ARGUMENTS)))
    ctx = Context(b, layout.geo, regions, vision.layer_width, m=b.reg(), x=b.reg(), a=b.reg())
    tower = _Tower(ctx, layout, tile, tokens)
    tower.stem(patches)
    planned = plan(layout) if pipelined else None
    tower.layers(n_layers, keep, planned)
    parts = {"selection": len(b.program)}
    moved = tower.select(keep, by_rows)
    parts["projector"] = len(b.program)
    tower.project(result, moved)
    b.halt()
    return {"entry": entry, "args": list(ARGUMENTS), "tile": tile, "parts": parts, "pipelined": planned is not None}


class _Tower:
    def __init__(self, ctx: Context, layout: Layout, tile: int, tokens: int) -> None:
        self.ctx, self.layout, self.tile, self.tokens = ctx, layout, tile, tokens
        self.vision = layout.tower
        self.saliency = Saliency(ctx, layout, tokens)

    def _tiles(
        self, first: int, body: Callable[[], None], *advance: tuple[Reg, int], count: Value | None = None
    ) -> None:
        """Run `body` for tiles of `count` tokens (None: all) from the first on; each register of `advance` grows by its
        factor a token."""
        ctx, b = self.ctx, self.ctx.b
        left = b.set(b.reg(), self.tokens - first if count is None else count)
        b.set(ctx.a, first)
        b.set(ctx.x, first * ctx.geo.words(ctx.width))
        start = b.label()
        b.alu(Op.MIN, ctx.m, left, self.tile)
        body()
        b.fence_if_needed()
        for register, factor in ((ctx.a, 1), (ctx.x, ctx.geo.words(ctx.width)), *advance):
            step = b.scaled(ctx.m, factor)
            b.alu(Op.ADD, register, register, step)
        b.alu(Op.SUB, left, left, ctx.m)
        b.branch(Op.BNE, left, 0, start)

    def _use(self, name: str, record, ops: list) -> None:
        """Parameters of the stem or projector: shifts and scale words."""
        ctx = self.ctx
        ctx.b.fence_if_needed()
        ctx.records = {"params": record}
        ctx.pointers = {"params": self.layout.aux[f"{name}.params"].base, "weights": ctx.b.reg()}
        ctx.use_linears(ops, self.layout.streams[name])
        ctx.load_shifts()
        for field in record.sizes:
            if field != TABLE:
                ctx.load_parameter(field)

    # --- stem ------------------------------------------------------------------------------------------

    def stem(self, patches: Reg) -> None:
        """Patch rows, class row and positions, pre-norm where there is one."""
        ctx, b, geo, layout = self.ctx, self.ctx.b, self.ctx.geo, self.layout
        patch, *pre = self.vision.stem
        self._use("stem", layout.stem, self.vision.stem)
        width = ctx.width
        b.load(layout.aux["position"].base, ctx["POSITION"], geo.granules(width), kind=LdKind.TABLES)
        run(b, (1, 1, geo.words(width)), width, vec(At(ctx["POSITION"])), to=At(ctx["X"]))
        position = b.set(b.reg(), layout.aux["position"].base + geo.granules(width))
        self._tiles(
            1,
            lambda: self._patches(patch, patches, position),
            (patches, geo.granules(patch.n_in)),
            (position, geo.granules(width)),
        )
        for pre_norm in pre:
            self._tiles(0, partial(self._pre_norm, pre_norm))

    def _patches(self, patch: ir.Linear, patches: Reg, position: Reg) -> None:
        ctx, b, geo = self.ctx, self.ctx.b, self.ctx.geo
        width, entries = patch.n_in, Rows(ctx["E"], 1)
        rows = At(ctx["PATCHES"], geo.words(width))
        b.operator = patch.name
        ctx.seek(patch.name)
        b.load(patches, ctx["PATCHES"], b.scaled(ctx.m, geo.granules(width)))
        b.load(position, ctx["POSITION"], b.scaled(ctx.m, geo.granules(ctx.width)), kind=LdKind.TABLES)
        linear.absmax(ctx, rows, width, entries)
        linear.quantise(ctx, rows, width, "PATCH_Q", entries)
        linear.matmul(ctx, patch, "PATCH_Q", ctx["ACC"])
        linear.project(ctx, patch, ctx["ACC"], ctx.residual())
        positions = At(ctx["POSITION"], geo.words(ctx.width))
        ctx.run(ctx.width, vec(ctx.residual()) + positions, to=ctx.residual())

    def _pre_norm(self, pre: ir.Norm) -> None:
        ctx = self.ctx
        linear.absmax(ctx, ctx.residual(), ctx.width, ctx.maxima())
        norm.normalise(ctx, pre, ctx.residual(), ctx.residual(), ctx.maxima())

    # --- layers ----------------------------------------------------------------------------------------

    def layers(self, count: Reg, keep: Reg, planned: Plan | None) -> None:
        """Every layer: in a pipeline as planned, else in two rounds of tiles, all keys and values first, then
        the rest.

        The class token is the first row of the first tile: in the last layer its attention is kept, if asked for.
        """
        ctx, b, layout = self.ctx, self.ctx.b, self.layout
        ctx.records = layout.vision
        layer_pointers(ctx, layout, "vision", None)
        ctx.use_linears(self.vision.layer, layout.streams["vision"])
        slots, score_row = b.set(b.reg(), self.tokens), b.reg()
        key_slots(b, layout, slots, score_row)
        encoder = None if planned is None else Encoder(ctx, layout, planned)
        if encoder is not None:
            encoder.begin()
        with b.layer_loop(count):
            b.set(count, count + -1)
            watched = self._watched(count, keep)
            ctx.load_shifts()
            if encoder is not None:
                encoder.layer(watched, slots, score_row)
            else:
                for field in layout.vision["params"].sizes:
                    if field != TABLE:
                        ctx.load_parameter(field)
                self._tiles(0, self._keys)
                with b.unless(Op.BEQ, watched, 0):
                    self.saliency.clear()
                self._tiles(0, lambda: self._rest(slots, score_row, watched))
            advance_layer(ctx)

    def _watched(self, layers_left: Reg, keep: Reg) -> Reg:
        """Not zero where attention is to be kept."""
        b = self.ctx.b
        watched = b.set(b.reg(), 0)
        with b.unless(Op.BNE, layers_left, 0):
            b.set(watched, keep)
        return watched

    def _each_head(self, watched: Reg, heads: attention.Heads, entry: Reg) -> None:
        with self.ctx.b.unless(Op.BEQ, watched, 0):
            self.saliency.add(heads, entry)

    def _keys(self) -> None:
        for op in self.vision.layer:
            if isinstance(op, ir.Norm):
                norm.norm(self.ctx, op)
            elif isinstance(op, ir.Attention):
                self.ctx.seek(op.k.name)
                attention.keys_and_values(self.ctx, op, self.ctx.a, self.tokens)
                return

    def _rest(self, slots: Reg, score_row: Reg, watched: Reg) -> None:
        """All but keys and values; the first tile is the one that may be watched."""
        each_head = partial(self._each_head, watched)
        for op in self.vision.layer:
            match op:
                case ir.Norm():
                    norm.norm(self.ctx, op)
                case ir.Attention():
                    self.ctx.seek(op.q.name)
                    attention.queries(
                        self.ctx, op, self.tokens, slots, score_row, self.tokens, self.tokens, each_head=each_head
                    )
                    self.ctx.b.set(watched, 0)
                case ir.Residual():
                    linear.residual(self.ctx, op)
                case ir.GatedMlp():
                    mlp.gated(self.ctx, op)
                case ir.PlainMlp():
                    mlp.plain(self.ctx, op)

    # --- selection -------------------------------------------------------------------------------------

    def select(self, keep: Reg, by_rows: Reg) -> Reg:
        """Move the survivors' rows to the front; without a choice all stay. Returns how many there are."""
        b = self.ctx.b
        moved = b.set(b.reg(), self.vision.n_patches)
        with b.unless(Op.BEQ, keep, 0):
            side = math.isqrt(self.vision.n_patches)
            Survivors(self.ctx, self.layout, self.tokens, side).select(keep, by_rows, moved)
        return b.declare(moved, self.vision.n_patches)

    # --- projector -------------------------------------------------------------------------------------

    def project(self, result: Reg, moved: Reg) -> None:
        """Feature rows of the `moved` selected tokens to aux memory."""
        geo, out = self.ctx.geo, self.layout.model.text.hidden
        self._use("projector", self.layout.projector, self.vision.projector)
        first = 1
        if not self.vision.drop_class:
            first = 0
            self.ctx.b.set(moved, moved + 1)
        self._tiles(first, lambda: self._project_tile(result), (result, geo.granules(out)), count=moved)

    def _project_tile(self, result: Reg) -> None:
        ctx, b, geo = self.ctx, self.ctx.b, self.ctx.geo
        first, second = self.vision.projector
        b.operator = first.name
        entries, hidden = Rows(ctx["E"], 1), ctx.rows("FEATURE", first.n_out)
        ctx.seek(first.name)
        linear.absmax(ctx, ctx.residual(), ctx.width, entries)
        linear.quantise(ctx, ctx.residual(), ctx.width, "XQ", entries)
        linear.matmul(ctx, first, "XQ", ctx["PROJECTED"])
        mlp.activate(ctx, first, ctx["PROJECTED"], hidden, self.vision.projector_func, Rows(ctx["F"], 1))
        linear.quantise(ctx, hidden, first.n_out, "FEATURE_Q", Rows(ctx["F"], 1))
        linear.matmul(ctx, second, "FEATURE_Q", ctx["PROJECTED"])
        saved = ctx.regions
        ctx.regions = {**saved, "E": saved["F"]}
        linear.project(ctx, second, ctx["PROJECTED"], At(ctx["SB_FEATURE"], geo.words(second.n_out)), scratch=hidden)
        ctx.regions = saved
        b.store(
            StMode.LIN,
            ctx["SB_FEATURE"],
            FEATURES,
            addr=result,
            src_tok=geo.granules(second.n_out),
            n_tok=ctx.m,
            n_gran=geo.granules(second.n_out),
            stride_tok=geo.granules(second.n_out),
        )


__all__ = ["ARGUMENTS", "emit"]
