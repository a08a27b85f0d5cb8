"""Vision layers with all tokens on chip: every stage of every row tile in a software pipeline.

A layer is three blocks. `front`: norm, keys, values and queries of all tiles; keys and values go out to the cache while
the matrix units go on. `attend`: per tile the heads one behind the other, scores of a head while the vector unit takes
the softmax of the one before. `back`: output projection and feed-forward layer. Within a block nothing waits but for
what it needs. `vision` takes layers that do not fit tile by tile.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from hw.spec import weights
from hw.spec.errors import UserError
from hw.spec.isa import LdKind, MxMode, Op, StreamFormat

from .. import ir
from ..layout import Layout
from . import attention_math, linear, mlp, norm
from .allocate import Placer
from .attention import quantise_heads, store_heads, store_scales
from .attention_heads import CACHE, SCALES, Heads
from .attention_math import Scores
from .builder import At, Reg, Rows, Value
from .context import Context
from .expr import run, vec, zero
from .regions import Region
from .select import Saliency

LARGEST_TILES = 6
"""Row tiles: their stages are unrolled in the program."""
COMBINED = 7
"""Heads whose values are combined in one pass, at most; of 16 heads two are left for the end, when the units wait."""


@dataclass(frozen=True)
class Plan:
    """How the rows of all tokens are divided, and where everything lies."""

    tile: int
    count: int
    regions: dict[str, Region]


def plan(layout: Layout) -> Plan | None:
    """The fewest tiles whose attention rows fit the accumulators; None where layers do not fit or are of another
    kind."""
    tower = layout.tower
    match tower.layer:
        case [
            ir.Norm(kind="layer"),
            ir.Attention() as op,
            ir.Residual(),
            ir.Norm(kind="layer"),
            ir.PlainMlp(),
            ir.Residual(),
        ]:
            pass
        case _:
            return None
    if op.rope or op.causal or not 1 < op.heads == op.kv_heads or op.q.n_out != tower.layer_width:
        return None
    tokens, rows = tower.n_patches + 1, layout.config.acc_rows // 2
    for count in range(weights.ceil_div(tokens, rows), LARGEST_TILES + 1):
        tile = weights.ceil_div(tokens, count)
        try:
            return Plan(tile, weights.ceil_div(tokens, tile), _regions(layout, op, tile))
        except UserError:
            continue
    return None


def _regions(layout: Layout, op: ir.Attention, tile: int) -> dict[str, Region]:
    """Everything two units work on at a time is there twice, for even and odd tiles or heads."""
    tower, geo, place = layout.tower, layout.geo, Placer(layout.config)
    tokens, width = tower.n_patches + 1, geo.granules(tower.layer_width)
    fc = next(each.fc for each in tower.layer if isinstance(each, ir.PlainMlp))
    row, hd, hidden = geo.cache_granules(tokens), geo.granules(op.head_dim), geo.granules(fc.n_out)
    projected, acc = tile * geo.acc_granules(op.q.n_out), tile * geo.acc_granules(tower.layer_width)
    place.phases(
        "AB",
        _twice(ACC_K=projected, ACC_V=projected, ACC_Q=projected),
        _twice(SCORES=tile * row) | {"PV": op.heads * 2 * tile * hd},
        _twice(OUT=acc, DOWN=acc, UP=tile * geo.acc_granules(fc.n_out)),
    )
    place.parameters(layout.vision["params"])
    place.take("PB", **{"P:k_scale": op.heads * row, "P:v_scale": op.heads * row})
    place.take("VB", X=tokens * width, Y=tile * width)
    place.regions["O"] = place.regions["Y"]
    place.take("VB", V_ROW=op.heads * row)
    place.phases(
        "VB",
        {"Wk": tile * width, "Wv": tile * width, "WQ": tile * width},
        {"T": _combined(op) * tile * hd},
        {"H": tile * hidden},
    )
    place.take("OB", XQ=tokens * width)
    place.phases("OB", {"QQ": tokens * op.heads * hd} | _twice(PLANES=2 * tile * row), _twice(HQ=tile * hidden))
    place.take(
        "SB",
        SB_k=tile * width,
        SB_scale_k=tile * op.heads * geo.gpw,
        SB_scale_v=tile * op.heads * geo.gpw,
        **_twice(SB_v=tile * width),
    )
    place.ring("SB", SB_SALIENCY=geo.granules(tokens))
    place.take(
        "RS",
        A=tokens,
        E=tokens,
        S=tile,
        C=tile,
        EH_k=tile * op.heads,
        EH_v=tile * op.heads,
        EQ=tokens * op.heads,
        MAX=tile,
        SUM=op.heads * tile,
        PART=tile * weights.ceil_div(op.heads, _combined(op)),
        **_twice(F=tile),
    )
    return place.regions


def _combined(op: ir.Attention) -> int:
    """Heads whose values are combined in one pass; the last head's are not combined with the first one's."""
    return min(COMBINED, op.heads - 1)


def _twice(**sizes: int) -> dict[str, int]:
    return {f"{name}{half}": size for name, size in sizes.items() for half in "01"}


def pipelined(count: int, *stages: tuple[int, Callable[[int], None]]) -> None:
    """Stages of items 0.. in the order of a pipeline: step i has, of each stage (lag, body), item i - lag."""
    for step in range(count + max(lag for lag, _ in stages)):
        for lag, body in stages:
            if 0 <= step - lag < count:
                body(step - lag)


class Encoder:
    """Emits one layer after the other; `ctx` has the registers, records and pointers of the layers."""

    def __init__(self, ctx: Context, layout: Layout, plan: Plan) -> None:
        self.ctx, self.layout, self.geo, self.b = replace(ctx, regions=plan.regions), layout, layout.geo, ctx.b
        self.tile, self.count, self.tokens = plan.tile, plan.count, layout.tower.n_patches + 1
        self.norms = [each for each in layout.tower.layer if isinstance(each, ir.Norm)]
        self.out, self.down = (each.linear for each in layout.tower.layer if isinstance(each, ir.Residual))
        self.op = next(each for each in layout.tower.layer if isinstance(each, ir.Attention))
        self.mlp = next(each for each in layout.tower.layer if isinstance(each, ir.PlainMlp))
        self.slots, self.row = self.geo.slots(self.tokens), self.geo.cache_granules(self.tokens)
        self.row_words, self.key_words = self.row // self.geo.gpw, self.geo.words(self.tokens)
        self.step, self.hd = self.geo.words(self.op.head_dim), self.geo.granules(self.op.head_dim)
        self.group = _combined(self.op)
        self.tiles = [self._tile(index) for index in range(self.count)]

    def _tile(self, index: int) -> Context:
        """Context of a tile's rows."""
        first, regions, width = index * self.tile, dict(self.ctx.regions), self.geo.granules(self.ctx.width)
        m = min(self.tile, self.tokens - first)
        regions |= {"XQ": regions["XQ"].part(first * width, m * width), "E": regions["E"].part(first, m)}
        for name in ("ACC_K", "ACC_V", "ACC_Q", "SB_v", "OUT", "DOWN", "UP", "HQ", "F"):
            regions[name] = regions[f"{name}{index % 2}"]
        return replace(self.ctx, regions=regions, m=m, x=first * self.geo.words(self.ctx.width), a=first)

    def begin(self) -> None:
        """Ahead of the first layer."""
        with self.b.for_next_layer():
            self.ctx.load_parameters(self.norms[0])
            norm.norm(self.tiles[0], self.norms[0])
        self.b.fence()

    def layer(self, watched: Reg, slots: Reg, score_row: Reg) -> None:
        """One layer, the first tile's norm done; watched: whether the class token's attention is to be kept. slots,
        score_row: registers that hold these sizes."""
        self.front()
        self.b.fence()
        self.attend()
        with self.b.unless(Op.BEQ, watched, 0):
            self._watch(slots, score_row)
        self.back()
        self.b.fence()

    def _matmul(self, tile: Context, op: ir.Linear, act: str, acc: str) -> None:
        tile.seek(op.name)
        linear.matmul(tile, op, act, tile[acc])

    # --- front -----------------------------------------------------------------------------------------

    def front(self) -> None:
        """Keys and values of every tile, behind them the queries: the cache has their time to be written. At the end
        the first head of the first tile."""
        pipelined(self.count, (0, self._first_norm), (0, self._keys_values), (1, self._cache))
        self._clear_planes()
        pipelined(self.count, (0, lambda i: self._matmul(self.tiles[i], self.op.q, "XQ", "ACC_Q")), (1, self._queries))
        self._load_scales()
        self._scores(0, 0)
        self._softmax(0, 0)

    def _clear_planes(self) -> None:
        """Probabilities behind the last key: no other pass writes them, and values are multiplied by them."""
        padding = self.row_words - self.key_words
        self.b.operator = "softmax"
        for half in "01" if padding else "":
            planes = At(self.ctx["PLANES" + half], self.row, 0, self.key_words * self.geo.gpw)
            shape, length = (2 * self.tile, 1, padding), padding * self.geo.config.lanes
            run(self.b, shape, length, zero(Rows(self.ctx["E"])), to=planes)

    def _first_norm(self, index: int) -> None:
        """Of all tiles but the first."""
        if index:
            norm.norm(self.tiles[index], self.norms[0])

    def _keys_values(self, index: int) -> None:
        self._matmul(self.tiles[index], self.op.k, "XQ", "ACC_K")
        self._matmul(self.tiles[index], self.op.v, "XQ", "ACC_V")
        if index == 0:
            for op in self.layout.tower.layer[1:]:
                self.ctx.load_parameters(op)

    def _cache(self, index: int) -> None:
        """Scales first: they are read first, and nothing waits for the long store of the values."""
        tile, op, at = self.tiles[index], self.op, index * self.tile
        entries = {which: Rows(self.ctx["EH_" + which], op.heads, 1) for which in "kv"}
        rows = {which: tile.rows("W" + which, op.k.n_out) for which in "kv"}
        for each, which in ((op.k, "k"), (op.v, "v")):
            acc = tile[f"ACC_{which.upper()}"]
            linear.project(tile, each, acc, rows[which], heads=op.heads, entries=entries[which])
        for which in "kv":
            store_scales(tile, op, which, entries[which], at, self.tokens)
        for which in "kv":
            store_heads(tile, op, rows[which], which, entries[which], at, self.tokens)

    def _queries(self, index: int) -> None:
        """Rows [token][head] in QQ, maxima in EQ."""
        tile, op, first = self.tiles[index], self.op, index * self.tile * self.op.heads
        entries, rows = Rows(tile["EQ"], op.heads, 1, first), tile.rows("WQ", op.q.n_out)
        linear.project(tile, op.q, tile["ACC_Q"], rows, heads=op.heads, entries=entries)
        region = tile["QQ"].part(first * self.hd, tile.m * op.heads * self.hd)
        quantise_heads(tile, rows, op.heads, op.head_dim, entries, At(region, op.heads * self.hd, self.hd))

    def _load_scales(self) -> None:
        """Scales of all keys and values, as soon as they are written."""
        heads = self.op.heads
        self.b.operator = "softmax"
        for which in "kv":
            self.b.load(
                self.ctx.pointers["scales"] + self.ctx.records["scales"][which],
                self.ctx[f"P:{which}_scale"],
                self.key_words * self.geo.gpw,
                rows=heads,
                stride=self.row,
                row_stride=self.row,
                source=SCALES,
                kind=LdKind.KV_SCALES,
            )
        scales, to = (At(self.ctx[name], self.row_words) for name in ("P:v_scale", "V_ROW"))
        attention_math.value_scales(self.b, (heads, 1, self.key_words), self.tokens, scales, to)

    # --- attention -------------------------------------------------------------------------------------

    def attend(self) -> None:
        """Tiles one behind the other; the last one starts earlier, so that all are as long, and some rows of it are
        worked out twice.

        The first head of a tile is done with the last of the one before, and the outputs of that one are quantised with
        the second. Ahead of the first tile there is nothing to quantise: what comes of it lies in that tile's own rows,
        which are written again. Behind the last tile its first head is done once more.
        """
        b = self.b
        now, before, after = ([b.set(b.reg(), 0) for _ in range(3)] for _ in range(3))
        with b.loop(b.set(b.reg(), self.count)):
            b.set(after[0], now[0] + self.tile)
            b.alu(Op.MIN, after[0], after[0], self.tokens - self.tile)
            b.scaled(after[0], self.op.heads, after[1])
            b.scaled(after[0], self.op.heads * self.hd, after[2])
            self._quantise(before[0], before[2])
            self._attend_tile(now, after)
            for target, source in zip(before + now, now + after, strict=True):
                b.set(target, source)
        self._quantise(before[0], before[2])

    def _quantise(self, first: Reg, block: Reg) -> None:
        """Outputs of the tile with that first row into XQ; the largest of its parts' maxima into E."""
        ctx, width, groups = replace(self.ctx, m=self.tile), self.op.q.n_out, self._groups
        entries = Rows(ctx["E"], 1, 0, first)
        self.b.operator = "values"
        maxima = vec(Rows(ctx["PART"], groups, 1).raw).absmax(entries, level=1)
        run(self.b, (self.tile, groups, 1), 1, maxima)
        to = At(ctx["XQ"], self.geo.granules(width), 0, block)
        ctx.run(width, vec(ctx.rows("O", width)).scaled(entries.fin), to=to)

    @property
    def _groups(self) -> int:
        return weights.ceil_div(self.op.heads, self.group)

    def _attend_tile(self, now: list[Reg], after: list[Reg]) -> None:
        """The tile's heads from the second on and the first of the one after; each tile's first row, the entry of that
        row's first query and its first block in QQ."""
        for head in range(1, self.op.heads + 1):
            _, query, block = now if head < self.op.heads else after
            self._scores(head % self.op.heads, block)
            self._values(head - 1)
            self._softmax(head % self.op.heads, query)
            self._combine(head - 1)

    def _cached(self, which: str, head: int) -> Value:
        """Beat address of a head's keys or values."""
        ctx = self.ctx
        at = weights.cache_beats(self.op.head_dim, self.tokens, self.geo.config.units) * head
        return ctx.pointers["cache"] + (ctx.records["cache"][which] + at)

    def _scores(self, head: int, block: Value) -> None:
        ctx, b, hb = self.ctx, self.b, self.op.head_dim // 16
        b.operator = "scores"
        b.read(self._cached("k", head), self.slots * hb * weights.BLOCK_BEATS, fmt=StreamFormat.RAW, source=CACHE["k"])
        b.matmul(
            ctx["QQ"],
            ctx[f"SCORES{head % 2}"],
            rows=self.tile,
            kb=hb,
            ob=self.slots,
            act_stride=self.op.heads * self.hd,
            out_stride=self.row,
            act_offset=block + head * self.hd,
        )

    def _softmax(self, head: int, query: Value) -> None:
        """Probability planes [token][plane]; sums of all heads are kept."""
        ctx, at, region = self.ctx, head * self.row_words, self.ctx[f"PLANES{head % 2}"]
        rows = Scores(
            sums=At(ctx[f"SCORES{head % 2}"], self.row_words),
            k_scale=At(ctx["P:k_scale"], 0, 0, at),
            query=Rows(ctx["EQ"], self.op.heads, 0, query + head),
            top=Rows(ctx["MAX"], 1),
            total=Rows(ctx["SUM"], 1, 0, head * self.tile),
        )
        planes = [At(region, 2 * self.row, 0, plane * self.row) for plane in (0, 1)]
        self.b.operator = "softmax"
        shape, v_scale = (self.tile, 1, self.key_words), At(ctx["V_ROW"], 0, 0, at)
        attention_math.softmax(self.b, shape, self.tokens, rows, v_scale, planes)

    def _values(self, head: int) -> None:
        ctx, b, hb = self.ctx, self.b, self.op.head_dim // 16
        b.operator = "values"
        stride = weights.v_strides(self.tokens, self.geo.config.units)["gran"]
        b.read(
            self._cached("v", head),
            self.slots * weights.BLOCK_BEATS,
            rows=hb,
            stride=stride,
            fmt=StreamFormat.RAW,
            source=CACHE["v"],
        )
        size = 2 * self.tile * self.hd
        b.matmul(
            ctx[f"PLANES{head % 2}"],
            ctx["PV"].part(head * size, size),
            rows=2 * self.tile,
            kb=self.slots,
            ob=hb,
            act_stride=self.row,
            out_stride=self.hd,
            mode=MxMode.SPLIT_K,
        )

    def _combine(self, head: int) -> None:
        """Values of both planes, combined into O, of a few heads at a time."""
        ctx, b, step, hd, count = self.ctx, self.b, self.step, self.op.head_dim, head % self.group + 1
        if count < self.group and head + 1 < self.op.heads:
            return
        first, size = head + 1 - count, 2 * self.tile * self.hd
        planes = ctx["PV"].part(first * size, count * size)
        high, low = (At(planes, 2 * step, 2 * self.tile * step, plane * step) for plane in (0, 1))
        half, shape = At(ctx["T"], count * step, step), (self.tile, count, step)
        total = Rows(ctx["SUM"], 1, self.tile, first * self.tile)
        out = At(ctx["O"], self.geo.words(self.op.q.n_out), step, first * step)
        maxima = Rows(ctx["PART"], self._groups, 0, first // self.group)
        b.operator = "values"
        attention_math.low_sums(b, shape, hd, low, half)
        attention_math.combine(b, shape, hd, high, half, total, out, maxima)

    def _watch(self, slots: Reg, score_row: Reg) -> None:
        """The class token's attention once more, alone: its shares of all heads into the saliency."""
        regions = self.ctx.regions | {
            "EH": self.ctx["EQ"],
            "SCORES": self.ctx["SCORES0"],
            "PLANES": self.ctx["PLANES0"],
        }
        ctx = replace(self.ctx, regions=regions)
        self.b.set(ctx.m, 1)
        saliency = Saliency(ctx, self.layout, self.tokens)
        saliency.clear()
        Heads(ctx, self.op, self.tokens, slots, score_row, self.tokens, self.tokens).one_by_one(saliency.add)

    # --- back ------------------------------------------------------------------------------------------

    def back(self) -> None:
        """Output projection and feed-forward layer of all tiles, residual rows with their maxima."""
        pipelined(
            self.count,
            (0, lambda i: self._matmul(self.tiles[i], self.out, "XQ", "OUT")),
            (1, self._second_norm),
            (2, lambda i: self._matmul(self.tiles[i], self.mlp.fc, "XQ", "UP")),
            (3, self._activate),
            (3, lambda i: self._matmul(self.tiles[i], self.down, "HQ", "DOWN")),
            (4, self._last_residual),
        )

    def _second_norm(self, index: int) -> None:
        tile = self.tiles[index]
        linear.project(tile, self.out, tile["OUT"], tile.residual(), residual=True, entries=tile.maxima())
        norm.norm(self.tiles[index], self.norms[1])

    def _activate(self, index: int) -> None:
        tile, fc = self.tiles[index], self.mlp.fc
        entries, hidden = Rows(tile["F"], 1), tile.rows("H", fc.n_out)
        mlp.activate(tile, fc, tile["UP"], hidden, self.mlp.func, entries)
        linear.quantise(tile, hidden, fc.n_out, "HQ", entries)

    def _last_residual(self, index: int) -> None:
        """With the next layer's first norm before the last of this one's rows arrive."""
        tile, last = self.tiles[index], index == self.count - 1
        if last and index:
            self._next_norm()
        tile = replace(tile, regions=tile.regions | {"E": tile["F"]})
        linear.project(tile, self.down, tile["DOWN"], tile.residual(), residual=True, entries=tile.maxima())
        if last and not index:
            self._next_norm()

    def _next_norm(self) -> None:
        """Of the first tile in the next layer; behind the last one in that layer again, where nobody wants it."""
        record, b = self.ctx.records["params"], self.b
        last = self.layout.aux["vision.params"].base + (self.layout.tower.n_layers - 1) * record.beats
        following = b.alu(Op.MIN, b.reg(), self.ctx.pointers["params"] + record.beats, last)
        with b.for_next_layer():
            replace(self.ctx, pointers=self.ctx.pointers | {"params": following}).load_parameters(self.norms[0])
            norm.norm(self.tiles[0], self.norms[0])
