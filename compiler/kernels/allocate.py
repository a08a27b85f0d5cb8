"""Placement of an entry point's regions, and the largest token tile that fits."""

import math

from hw.spec.config import Config
from hw.spec.errors import UserError

from .. import ir
from ..geometry import Geometry
from ..layout import Layout, Record
from .regions import Allocator, Region

BUFFERS = ("AB", "PB", "VB", "SB", "OB", "RS")


class Placer:
    """Allocators of all buffers; `phases` lays alternatives over each other."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.allocators = {name: Allocator(config, name) for name in BUFFERS}
        self.regions: dict[str, Region] = {}

    def take(self, buffer: str, **sizes: int) -> None:
        for name, size in sizes.items():
            self.regions[name] = self.allocators[buffer].take(name, size)

    def parameters(self, record: Record) -> None:
        """A PB region for every field of a parameter record."""
        for name, beats in record.sizes.items():
            self.regions["P:" + name] = self.allocators["PB"].take(name, beats)

    def phases(self, buffer: str, *phases: dict[str, int]) -> None:
        """Phases share the space from here on; each region of a phase is disjoint from the others of it."""
        allocator = self.allocators[buffer]
        start, end = allocator.at, allocator.at
        for phase in phases:
            allocator.at = start
            self.take(buffer, **phase)
            end = max(end, allocator.at)
        allocator.at = end

    def room(self, buffer: str, least: int, beside: int) -> int:
        """A size of up to twice `least`, as there is room beside so many other elements."""
        allocator = self.allocators[buffer]
        free = (allocator.limit - allocator.at - beside) // allocator.align * allocator.align
        return max(least, min(2 * least, free))

    def ring(self, buffer: str, **sizes: int) -> None:
        for name, size in sizes.items():
            self.regions[name] = self.allocators[buffer].ring(name, size)


def layer_regions(
    place: Placer,
    geo: Geometry,
    ops: list,
    tile: int,
    context: int,
    width: int,
    record: Record,
    *alternatives: dict[str, int],
) -> None:
    """Regions of one layer's operators for `tile` tokens. `alternatives`: further AB phases."""
    attention = next(op for op in ops if isinstance(op, ir.Attention))
    group, row, heads = attention.heads // attention.kv_heads, geo.cache_granules(context), attention.heads
    hidden = max(op.n_out for op in _hidden(ops))
    # A single token takes all heads together: that needs room for as many rows as there are heads.
    wide, shared = (max(tile * group, heads), attention.kv_heads) if attention.causal else (tile * group, 1)
    hd, q, kv = geo.granules(attention.head_dim), attention.q.n_out, attention.k.n_out
    place.phases(
        "AB",
        {
            "ACC_K": tile * geo.acc_granules(kv),
            "ACC_V": tile * geo.acc_granules(kv),
            "ACC_Q": tile * geo.acc_granules(q),
        },
        {"SCORES": place.room("AB", wide * row, 2 * wide * hd + geo.config.units), "PV": 2 * wide * hd},
        {"ACC": tile * geo.acc_granules(width)},
        {name: tile * geo.acc_granules(hidden) for name in _accumulators(ops)},
        *alternatives,
    )
    place.parameters(record)
    place.take("PB", **{"P:k_scale": shared * row, "P:v_scale": shared * row})
    place.phases(  # the vector unit works in order: once it has quantised Y, it no longer needs it
        "VB",
        {"Y": tile * max(geo.granules(width), geo.granules(q)), "T": wide * hd, "V_ROW": shared * row},
        {"Wk": tile * geo.granules(kv), "Wv": tile * geo.granules(kv), "WQ": tile * geo.granules(q)},
        {"H": tile * geo.granules(hidden)},
    )
    place.regions["O"] = place.regions["Y"]
    place.take("OB", XQ=tile * max(geo.granules(width), geo.granules(q)))
    queries = heads * tile * hd
    place.phases(
        "OB",
        {"QQ": queries, "PLANES": place.room("OB", 2 * wide * row, queries + geo.config.units)},
        {"HQ": tile * geo.granules(hidden)},
    )
    place.ring(
        "SB",
        SB_k=tile * geo.granules(kv),
        SB_scale_k=tile * attention.kv_heads * geo.gpw,
        SB_v=tile * geo.granules(kv),
        SB_scale_v=tile * attention.kv_heads * geo.gpw,
    )
    place.take(
        "RS",
        E=tile,
        F=tile,
        S=tile,
        C=tile,
        F_SLICES=(ir.UP_SLICES + 1) * tile,
        EH=tile * heads,
        MAX=wide,
        SUM=wide,
        SUMS=tile * heads if attention.causal else 1,
    )


def _hidden(ops: list) -> list[ir.Linear]:
    return [op.up if isinstance(op, ir.GatedMlp) else op.fc for op in ops if isinstance(op, ir.GatedMlp | ir.PlainMlp)]


def _accumulators(ops: list) -> tuple[str, ...]:
    return ("GATE", "UP") if any(isinstance(op, ir.GatedMlp) for op in ops) else ("UP",)


def text_regions(layout: Layout, tile: int) -> dict[str, Region]:
    """Regions of the `lm` entry."""
    text, geo, place = layout.model.text, layout.geo, Placer(layout.config)
    attention = next(op for op in text.layer if isinstance(op, ir.Attention))
    place.take("VB", X=tile * geo.granules(text.hidden))
    place.take("RS", A=tile)
    layer_regions(
        place,
        geo,
        text.layer,
        tile,
        layout.context,
        text.hidden,
        layout.text["params"],
        {"ACC_HEAD": layout.head.granules},
    )
    place.take(
        "PB",
        ROW=geo.granules(text.hidden),
        ROPE=tile * geo.granules(attention.head_dim),
        **{"P:text.norm.words": geo.granules(text.hidden), "P:head.words": layout.head.granules},
    )
    place.regions["P:" + text.norm.name + ".words"] = place.regions["P:text.norm.words"]
    place.regions["P:" + text.head.name + ".words"] = place.regions["P:head.words"]
    place.ring(
        "SB",
        LOGITS=layout.head.granules,
        RESIDUAL=geo.granules(text.hidden),
        SB_SCORES=geo.cache_granules(layout.context),
    )
    place.take("RS", BEST=layout.head.count, PLACE=layout.head.count, TOP=1)
    place.allocators["VB"].at = 0  # behind the final norm nothing else is needed
    place.take("VB", DISTANCE=max(layout.head.granules, layout.head.count * geo.gpw), HUGE=geo.gpw)
    _ranking_regions(place, geo, geo.cache_granules(layout.context))
    return place.regions


def single_regions(layout: Layout, shared: dict[str, Region]) -> dict[str, Region]:
    """Regions of `lm` while it works on a single token: nothing lies over anything that another unit may still use.

    Parameters, tables, the residual and its maxima are where they are for a tile.
    """
    text, geo, place = layout.model.text, layout.geo, Placer(layout.config)
    op = next(op for op in text.layer if isinstance(op, ir.Attention))
    heads, row, hd, hidden = (
        op.heads,
        geo.cache_granules(layout.context),
        geo.granules(op.head_dim),
        max(each.n_out for each in _hidden(text.layer)),
    )
    width = max(geo.granules(text.hidden), geo.granules(op.q.n_out))
    place.take(
        "AB",
        ACC_K=geo.acc_granules(op.k.n_out),
        ACC_V=geo.acc_granules(op.v.n_out),
        ACC_Q=geo.acc_granules(op.q.n_out),
        SCORES=heads * row,
        PV=2 * heads * hd,
        ACC=geo.acc_granules(text.hidden),
        **dict.fromkeys(_accumulators(text.layer), geo.acc_granules(hidden)),
    )
    place.allocators["VB"].at = shared["X"].base + shared["X"].size
    place.take(
        "VB",
        Y=width,
        Wk=geo.granules(op.k.n_out),
        Wv=geo.granules(op.v.n_out),
        WQ=geo.granules(op.q.n_out),
        T=heads * hd,
        V_ROW=op.kv_heads * row,
        H=geo.granules(hidden),
    )
    place.regions["O"] = place.regions["Y"]
    place.take("OB", XQ=width, QQ=heads * hd, PLANES=2 * heads * row, HQ=geo.granules(hidden))
    place.ring(
        "SB",
        SB_k=geo.granules(op.k.n_out),
        SB_scale_k=op.kv_heads * geo.gpw,
        SB_v=geo.granules(op.v.n_out),
        SB_scale_v=op.kv_heads * geo.gpw,
    )
    place.allocators["RS"].at = shared["A"].base + shared["A"].size
    place.take("RS", E=1, F=1, S=1, C=1, F_SLICES=ir.UP_SLICES + 1, EH=heads, MAX=heads, SUM=heads)
    kept = {name: region for name, region in shared.items() if region.buffer == "PB" or name in ("X", "A")}
    return kept | place.regions


def _ranking_regions(place: Placer, geo: Geometry, row: int) -> None:
    """Between segments, when residual rows are in memory: everything is free."""
    for buffer in ("PB", "SB", "VB", "RS"):
        place.allocators[buffer].at = 0
    place.take("VB", VALUES=row, REST=row, DIFFERENCE=row)
    place.take("PB", BITS=geo.gpw**2, SALIENCY=row, BIAS=row, TABLE=2 * geo.gpw)
    place.take("SB", SB_WORDS=2 * row * geo.gpw)
    place.take("RS", UNIT=1, BIG=1, ONE=1, COUNT=1, MASKS=2 * row)


def vision_regions(layout: Layout, tile: int) -> dict[str, Region]:
    """Regions of the `vision` entry; the residual of all tokens stays on chip."""
    vision, geo, place = layout.tower, layout.geo, Placer(layout.config)
    tokens, out = vision.n_patches + 1, layout.model.text.hidden
    width, patch = vision.layer_width, vision.stem[0]
    first, last = vision.projector
    widest = max(first.n_out, last.n_out)
    place.take("VB", X=tokens * geo.granules(width))
    place.take("RS", A=tokens)
    layer_regions(
        place,
        geo,
        vision.layer,
        tile,
        tokens,
        width,
        layout.vision["params"],
        {"PROJECTED": tile * geo.acc_granules(widest)},
    )
    start = place.allocators["PB"].at
    for record in (layout.stem, layout.projector):
        place.allocators["PB"].at = start
        place.parameters(record)
        if record is layout.stem:
            place.take("PB", PATCHES=tile * geo.granules(patch.n_in), POSITION=tile * geo.granules(width))
    place.allocators["VB"].at = place.regions["X"].base + place.regions["X"].size
    place.take("VB", FEATURE=tile * geo.granules(widest))
    place.allocators["OB"].at = 0
    place.take("OB", PATCH_Q=tile * geo.granules(patch.n_in), FEATURE_Q=tile * geo.granules(first.n_out))
    place.allocators["OB"].at = 0
    place.ring("SB", SB_FEATURE=tile * geo.granules(out), SB_SALIENCY=geo.granules(tokens))
    _selection_regions(place, geo, tokens, math.isqrt(vision.n_patches))
    return place.regions


def _selection_regions(place: Placer, geo: Geometry, tokens: int, side: int) -> None:
    """Between layers and projector: everything but the residual is free."""
    row, starts = (
        geo.granules(tokens),
        {"PB": 0, "SB": 0, "VB": place.regions["X"].base + place.regions["X"].size, "RS": 0},
    )
    for buffer, at in starts.items():
        place.allocators[buffer].at = at
    place.take("VB", VALUES=row, REST=row, DIFFERENCE=row)
    place.take("PB", NUMBERS=tokens * geo.gpw, BITS=geo.gpw**2, SALIENCY=row)
    place.take("SB", SB_NUMBERS=tokens * geo.gpw, SB_WORDS=max(2 * row, side) * geo.gpw)
    place.take("RS", UNIT=1, BIG=1, ONE=1, COUNT=1, MASKS=2 * row, ROW_SUMS=side + 1)


def largest_tile(layout: Layout, ops: list, regions, limit: int) -> tuple[int, dict[str, Region]]:
    """(tokens, regions): the largest tile whose attention rows fit the accumulators and whose regions fit."""
    attention = next(op for op in ops if isinstance(op, ir.Attention))
    group = attention.heads // attention.kv_heads
    rows = layout.config.acc_rows // (2 * group)
    if rows == 0:
        raise UserError(
            f"{group} query heads a key head need {2 * group} accumulator rows, configuration "
            f"{layout.config.name} has {layout.config.acc_rows}: choose a larger configuration"
        )
    tile = min(rows, limit)
    while True:
        try:
            return tile, regions(layout, tile)
        except UserError:
            if tile == 1:
                raise
            tile -= max(1, tile // 16)
