"""Entry point `vision`: patches to feature rows. The residual of all tokens stays on chip; rows go in tiles."""

from collections.abc import Callable

from hw.spec.isa import Add, Op, Src, StMode

from .. import ir
from ..layout import SHIFTS, Layout
from . import attention, linear, mlp, norm
from .allocate import largest_tile, vision_regions
from .builder import At, Builder, Reg, Rows
from .context import Context
from .linear import ABSMAX
from .regions import memory_region
from .text import advance_layer, key_slots, layer_pointers

ARGUMENTS = ("patches", "result", "n_layers")
"""Registers 1.. at the start: beat addresses of the patch rows and of the feature rows; layers to run."""
FEATURES = memory_region("features")


def emit(b: Builder, layout: Layout) -> dict:
    """Append the entry; returns its manifest."""
    b.new_entry()
    entry = len(b.program)
    vision = layout.tower
    tokens = vision.n_patches + 1
    tile, regions = largest_tile(layout, vision.layer, vision_regions, tokens)
    args = {name: b.argument(name, at + 1) for at, name in enumerate(ARGUMENTS)}
    ctx = Context(b, layout.geo, regions, vision.layer_width, m=b.reg("m"), x=b.reg("x"), a=b.reg("a"))
    tower = _Tower(ctx, layout, tile, tokens)
    tower.stem(args["patches"])
    tower.layers(args["n_layers"])
    tower.project(args["result"])
    b.halt()
    return {"entry": entry, "args": list(ARGUMENTS), "tile": tile}


class _Tower:
    def __init__(self, ctx: Context, layout: Layout, tile: int, tokens: int) -> None:
        self.ctx, self.layout, self.tile, self.tokens = ctx, layout, tile, tokens
        self.vision = layout.tower

    def _tiles(self, first: int, body: Callable[[], None], *advance: tuple[Reg, int]) -> None:
        """Run `body` for tiles of tokens first..tokens-1; each register of `advance` grows by its factor a token."""
        ctx, b = self.ctx, self.ctx.b
        left = b.set(b.reg("left"), self.tokens - first)
        b.set(ctx.a, first)
        b.set(ctx.x, first * ctx.geo.words(ctx.width))
        start = b.label()
        b.alu(Op.MIN, ctx.m, left, self.tile)
        body()
        b.fence_if_needed()
        for register, factor in ((ctx.a, 1), (ctx.x, ctx.geo.words(ctx.width)), *advance):
            step = b.scaled("_g", ctx.m, factor)
            b.alu(Op.ADD, register, register, step)
        b.alu(Op.SUB, left, left, ctx.m)
        b.branch(Op.BNE, left, 0, start)

    def _use(self, name: str, record, streams, ops: list) -> None:
        """Parameters of the stem or projector: shifts, scale words, streams."""
        ctx = self.ctx
        ctx.b.fence_if_needed()
        ctx.records = {"params": record, "weights": streams}
        ctx.pointers = {"params": self.layout.aux[f"{name}.params"].base,
                        "weights": self.layout.channel[f"{name}.weights"].base}
        ctx.load_shifts(ops)
        for field in record.sizes:
            if field != SHIFTS:
                ctx.load_parameter(field)

    # --- stem ------------------------------------------------------------------------------------------

    def stem(self, patches: Reg) -> None:
        """Patch rows, class row and positions, pre-norm."""
        ctx, b, geo, layout = self.ctx, self.ctx.b, self.ctx.geo, self.layout
        patch, pre = self.vision.stem
        self._use("stem", layout.stem, layout.stem_weights, self.vision.stem)
        width = ctx.width
        b.load(layout.aux["position"].base, ctx["POSITION"], geo.granules(width))
        b.vu_pass((1, 1, geo.words(width)), width, p=At(ctx["POSITION"]), d=At(ctx["X"]), src=Src.P)
        position = b.set(b.reg("position"), layout.aux["position"].base + geo.granules(width))
        self._tiles(1, lambda: self._patches(patch, patches, position), (patches, geo.granules(patch.n_in)),
                    (position, geo.granules(width)))
        self._tiles(0, lambda: self._pre_norm(pre))
        b.free("position")

    def _patches(self, patch: ir.Linear, patches: Reg, position: Reg) -> None:
        ctx, b, geo = self.ctx, self.ctx.b, self.ctx.geo
        width, entries = patch.n_in, Rows(ctx["E"], 1)
        rows = At(ctx["PATCHES"], geo.words(width))
        b.load(patches, ctx["PATCHES"], b.scaled("_g", ctx.m, geo.granules(width)))
        b.load(position, ctx["POSITION"], b.scaled("_g", ctx.m, geo.granules(ctx.width)))
        linear.absmax(ctx, rows, width, entries)
        linear.quantise(ctx, rows, width, "PATCH_Q", entries)
        linear.matmul(ctx, patch, "PATCH_Q", ctx["ACC"])
        linear.project(ctx, patch, ctx["ACC"], ctx.residual())
        words = geo.words(ctx.width)
        b.vu_pass((ctx.m, 1, words), ctx.width, v=ctx.residual(), p=At(ctx["POSITION"], words), d=ctx.residual(),
                  src=Src.V, add=Add.P)

    def _pre_norm(self, pre: ir.Norm) -> None:
        ctx = self.ctx
        linear.absmax(ctx, ctx.residual(), ctx.width, ctx.maxima())
        norm.normalise(ctx, pre, ctx.residual(), ctx.residual(), ctx.maxima())

    # --- layers ----------------------------------------------------------------------------------------

    def layers(self, count: Reg) -> None:
        """Every layer in two rounds of tiles: all keys and values first, then the rest."""
        ctx, b, layout = self.ctx, self.ctx.b, self.layout
        ctx.records = layout.vision
        layer_pointers(ctx, layout, "vision", None)
        slots, score_row = b.reg("slots"), b.reg("score_row")
        b.set(slots, self.tokens)
        key_slots(b, layout, slots, score_row)
        with b.loop(count):
            ctx.load_shifts(self.vision.layer)
            for field in layout.vision["params"].sizes:
                if field != SHIFTS:
                    ctx.load_parameter(field)
            self._tiles(0, self._keys)
            self._tiles(0, lambda: self._rest(slots, score_row))
            advance_layer(ctx)

    def _keys(self) -> None:
        for op in self.vision.layer:
            if isinstance(op, ir.Norm):
                norm.norm(self.ctx, op)
            elif isinstance(op, ir.Attention):
                attention.keys_and_values(self.ctx, op, self.ctx.a, self.tokens)
                return

    def _rest(self, slots: Reg, score_row: Reg) -> None:
        for op in self.vision.layer:
            match op:
                case ir.Norm():
                    norm.norm(self.ctx, op)
                case ir.Attention():
                    attention.queries(self.ctx, op, self.tokens, slots, score_row, self.tokens, self.tokens)
                case ir.Residual():
                    linear.residual(self.ctx, op)
                case ir.GatedMlp():
                    mlp.gated(self.ctx, op)
                case ir.PlainMlp():
                    mlp.plain(self.ctx, op)

    # --- projector -------------------------------------------------------------------------------------

    def project(self, result: Reg) -> None:
        """Feature rows of the selected tokens to aux memory."""
        geo, out = self.ctx.geo, self.layout.model.text.hidden
        self._use("projector", self.layout.projector, self.layout.projector_weights, self.vision.projector)
        self._tiles(1 if self.vision.drop_class else 0, lambda: self._project_tile(result), (result, geo.granules(out)))

    def _project_tile(self, result: Reg) -> None:
        ctx, b, geo = self.ctx, self.ctx.b, self.ctx.geo
        first, second = self.vision.projector
        entries, hidden = Rows(ctx["E"], 1), ctx.rows("FEATURE", first.n_out)
        linear.absmax(ctx, ctx.residual(), ctx.width, entries)
        linear.quantise(ctx, ctx.residual(), ctx.width, "XQ", entries)
        linear.matmul(ctx, first, "XQ", ctx["PROJECTED"])
        linear.project(ctx, first, ctx["PROJECTED"], hidden, func=mlp.FUNCS[self.vision.projector_func],
                       w=Rows(ctx["F"], 1), **ABSMAX)
        linear.quantise(ctx, hidden, first.n_out, "FEATURE_Q", Rows(ctx["F"], 1))
        linear.matmul(ctx, second, "FEATURE_Q", ctx["PROJECTED"])
        saved = ctx.regions
        ctx.regions = {**saved, "E": saved["F"]}
        linear.project(ctx, second, ctx["PROJECTED"], At(ctx["SB_FEATURE"], geo.words(second.n_out)), scratch=hidden)
        ctx.regions = saved
        b.store(StMode.LIN, ctx["SB_FEATURE"], FEATURES, addr=result, src_tok=geo.granules(second.n_out), n_tok=ctx.m,
                n_gran=geo.granules(second.n_out), stride_tok=geo.granules(second.n_out))


__all__ = ["ARGUMENTS", "emit"]
