"""Entry point `lm`: prefill in chunks, decode as a chunk of one token, logits (or residual) of the last token."""

from hw.spec.isa import Op, Src, StMode

from .. import ir
from ..layout import Layout
from . import attention, linear, mlp, norm
from .allocate import largest_tile, text_regions
from .builder import At, Builder, Reg, Rows
from .context import Context
from .regions import memory_region

ARGUMENTS = ("n_tokens", "position", "row_list", "rope_list", "result", "n_layers", "first_layer")
"""Registers 1.. at the start. Lists are 4-byte aux addresses of one beat address a token; result is a beat address;
first_layer counts layers of the compiled model. The word behind the last row address says what the result is: 1 for the
last token's logits, 0 for its residual row (runs of some layers only)."""
POINTERS = ("params", "weights", "cache", "scales")
LOGITS = memory_region("logits")


def emit(b: Builder, layout: Layout) -> dict:
    """Append the entry; returns its manifest: entry, argument names, tile."""
    b.new_entry()
    entry = len(b.program)
    tile, regions = largest_tile(layout, layout.model.text.layer, text_regions, layout.context)
    args = {name: b.argument(name, at + 1) for at, name in enumerate(ARGUMENTS)}
    ctx = Context(b, layout.geo, regions, layout.model.text.hidden, m=b.reg("m"), records=layout.text)
    slots, score_row = b.reg("slots"), b.reg("score_row")
    chunk = b.label()
    b.alu(Op.MIN, ctx.m, args["n_tokens"], tile)
    b.alu(Op.ADD, slots, args["position"], ctx.m)
    key_slots(b, layout, slots, score_row)
    _load_rows(ctx, layout, args)
    layer_pointers(ctx, layout, "text", args["first_layer"])
    with b.loop(args["n_layers"]):
        _layer(ctx, layout, args["position"], slots, score_row)
        advance_layer(ctx)
    b.alu(Op.ADD, args["position"], args["position"], ctx.m)
    b.alu(Op.SUB, args["n_tokens"], args["n_tokens"], ctx.m)
    b.branch(Op.BNE, args["n_tokens"], 0, chunk)
    with b.unless(Op.BNE, b.load_word(b.reg("wants_logits"), args["row_list"]), 0):
        _residual_row(ctx, layout, args["result"])
        b.halt()
    b.free("wants_logits")
    _head(ctx, layout, args["result"])
    b.halt()
    return {"entry": entry, "args": list(ARGUMENTS), "tile": tile}


def key_slots(b: Builder, layout: Layout, slots: Reg, score_row: Reg) -> None:
    """`slots` holds a number of keys: turn it into key slots a unit and granules of a score row."""
    geo = layout.geo
    b.set(slots, slots + ((1 << geo.keys_per_slot_log2) - 1))
    b.shift(slots, slots, -geo.keys_per_slot_log2)
    b.shift(score_row, slots, geo.units_log2)


def layer_pointers(ctx: Context, layout: Layout, prefix: str, first: Reg | None) -> None:
    """Pointer registers at the records of layer `first` (None: layer 0)."""
    b = ctx.b
    for name in POINTERS:
        space = layout.aux if name in ("params", "scales") else layout.channel
        pointer, base = b.reg("p_" + name), space[f"{prefix}.{name}"].base
        if first is None:
            b.set(pointer, base)
        else:
            b.alu(Op.MUL, pointer, first, ctx.records[name].beats)
            b.set(pointer, pointer + base)
        ctx.pointers[name] = pointer


def advance_layer(ctx: Context) -> None:
    """Pointers to the next layer."""
    ctx.b.fence_if_needed()
    for name in POINTERS:
        ctx.b.set(ctx.pointers[name], ctx.pointers[name] + ctx.records[name].beats)


def _load_rows(ctx: Context, layout: Layout, args: dict[str, Reg]) -> None:
    """Rows of the row list into X with their maxima in A, table rows of the RoPE list into ROPE."""
    b, geo = ctx.b, ctx.geo
    width, beats = ctx.width, geo.granules(ctx.width)
    rope = next(op for op in layout.model.text.layer if isinstance(op, ir.Attention)).head_dim
    word, entry, table, address = (b.reg(n) for n in ("row_word", "row_entry", "row_table", "row_address"))
    for register in (word, entry, table):
        b.set(register, 0)
    with b.loop(ctx.m):
        b.load_word(address, args["rope_list"])
        b.load(address, ctx["ROPE"], geo.granules(rope), offset=table)
        b.load_word(address, args["row_list"])
        b.load(address, ctx["ROW"], beats)
        b.vu_pass((1, 1, geo.words(width)), width, p=At(ctx["ROW"]), d=At(ctx["X"], 0, 0, word),
                  w=Rows(ctx["A"], 0, 0, entry), src=Src.P, **linear.ABSMAX)
        b.fence()
        b.set(word, word + geo.words(width))
        b.set(entry, entry + 1)
        b.set(table, table + geo.granules(rope))
        for name in ("row_list", "rope_list"):
            b.set(args[name], args[name] + 1)
    b.free("row_word", "row_entry", "row_table", "row_address")


def _layer(ctx: Context, layout: Layout, position: Reg, slots: Reg, score_row: Reg) -> None:
    """One decoder layer: the fused operators in order."""
    ops, b = layout.model.text.layer, ctx.b
    ctx.load_shifts(ops)
    ctx.load_parameters(ops[0])
    for op, following in zip(ops, [*ops[1:], None], strict=True):
        # One operator ahead: parameters arrive during its work and LD's queue never fills.
        if following is not None:
            ctx.load_parameters(following)
        match op:
            case ir.Norm():
                norm.norm(ctx, op)
            case ir.Attention():
                attention.keys_and_values(ctx, op, position, layout.context)
                keys = b.alu(Op.ADD, b.reg("keys"), position, ctx.m)
                attention.queries(ctx, op, keys, slots, score_row, position + 1, layout.context)
                b.free("keys")
            case ir.Residual():
                linear.residual(ctx, op)
            case ir.GatedMlp():
                mlp.gated(ctx, op)
            case ir.PlainMlp():
                mlp.plain(ctx, op)


def _residual_row(ctx: Context, layout: Layout, result: Reg) -> None:
    """The tile's last residual row, as it is."""
    b, geo, width = ctx.b, ctx.geo, layout.model.text.hidden
    last = b.reg("last")
    b.set(last, ctx.m + -1)
    row = b.scaled("last_x", last, geo.words(width))
    b.vu_pass((1, 1, geo.words(width)), width, v=At(ctx["X"], 0, 0, row), d=At(ctx["RESIDUAL"]), src=Src.V)
    b.store(StMode.LIN, ctx["RESIDUAL"], LOGITS, addr=result, n_gran=geo.granules(width))
    b.free("last", "last_x")


def _head(ctx: Context, layout: Layout, result: Reg) -> None:
    """Logits of the tile's last row, slice by slice of the vocabulary."""
    b, geo, text, slices = ctx.b, ctx.geo, layout.model.text, layout.head
    last = b.reg("last")
    b.set(last, ctx.m + -1)
    ctx.a, ctx.x = last, b.scaled("last_x", last, geo.words(text.hidden))
    ctx.m = 1
    ctx.records = {"params": layout.head_record}
    ctx.pointers = {"params": layout.aux["head.params"].base}
    ctx.load_shifts([text.head])
    ctx.load_parameter(f"{text.norm.name}.words")
    norm.norm(ctx, text.norm)
    stream, words = b.set(b.reg("stream"), layout.channel["head"].base), b.reg("words")
    b.set(words, layout.aux["head.words"].base)
    with b.loop(b.set(b.reg("_left"), slices.count)):
        b.read(stream, slices.stream_beats)
        b.load(words, ctx["P:head.words"], slices.granules)
        b.matmul(ctx["XQ"], ctx["ACC_HEAD"], rows=1, kb=geo.kb(text.head.n_in), ob=slices.steps,
                 act_stride=geo.granules(text.hidden), out_stride=slices.granules)
        width = slices.granules * 16
        narrow = ir.Linear(text.head.name, text.head.n_in, width)
        linear.project(ctx, narrow, ctx["ACC_HEAD"], At(ctx["LOGITS"]))
        b.store(StMode.LIN, ctx["LOGITS"], LOGITS, addr=result, n_gran=slices.granules)
        b.fence()
        b.set(stream, stream + slices.stream_beats)
        b.set(words, words + slices.granules)
        b.set(result, result + slices.granules)
    b.free("last", "last_x", "stream", "words")
