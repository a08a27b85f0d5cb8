"""Entry point `lm`: prefill in chunks, decode as a chunk of one token, logits (or residual) of the last token."""

from contextlib import contextmanager
from typing import NamedTuple

from hw.spec.isa import LdKind, Op, StKind, StMode
from hw.spec.weights import group_steps

from .. import ir
from ..layout import Layout
from . import attention, attention_mask, linear, mlp, norm, ranking
from .allocate import largest_tile, single_regions, text_regions
from .argmax import Choice
from .attention_heads import Heads
from .builder import At, Builder, Reg, Rows
from .context import POINTERS, Context, advance_layer
from .expr import Expr, run, vec
from .regions import memory_region
from .single import SingleToken


class Arguments(NamedTuple):
    """Registers 1.. at the start. Lists are 4-byte aux addresses of one beat address a token; first_layer counts layers
    of the compiled model; mask is 0 or the word address of the table of present key slots (see `attention_mask`). The
    word behind the last row address says what the result is: 1 for the last token's logits, 0 for its residual row
    (runs of some layers only).

    Layers come in segments of the same tokens: the arguments describe the first one, `more` is the word address of the
    next one's record, 0 behind the last. A segment leaves its residual rows in section `residual` for the next one,
    unless that one's rope_list is 0: it goes on with the rows that are on the chip.
    """

    n_tokens: Reg
    position: Reg
    row_list: Reg
    rope_list: Reg
    n_layers: Reg
    first_layer: Reg
    mask: Reg
    more: Reg


ARGUMENTS = Arguments._fields
SEGMENT = ("n_tokens", "position", "row_list", "rope_list", "n_layers", "more")
"""Words of a record: registers as for the first segment. `host.Session` writes them before each run."""
START, RANKED, BIAS = range(len(SEGMENT), len(SEGMENT) + 3)
"""Further words, about the segment before: its first position; its tokens if they are ranked, which makes this one's
lists (0: the lists are there); beat address of a row of biases for that."""
LOGITS, ROWS = memory_region("logits"), memory_region("residual")


def emit(b: Builder, layout: Layout) -> dict:
    """Append the entry; returns its manifest: entry, argument names, tile."""
    entry = b.new_entry()
    tile, regions = largest_tile(layout, layout.model.text.layer, text_regions, layout.context)
    args = Arguments(*(b.argument(at + 1) for at in range(len(ARGUMENTS))))
    ctx = Context(b, layout.geo, regions, layout.model.text.hidden, m=b.reg(), records=layout.text)
    slots, score_row = b.reg(), b.reg()
    chunk = b.label()
    b.declare(args.position, layout.context - 1)
    b.alu(Op.MIN, ctx.m, args.n_tokens, tile)
    with _if_ranked(b, args.more):
        # The last token has a chunk of its own.
        _but_last(b, ctx.m, args.n_tokens)
    b.declare(b.alu(Op.ADD, slots, args.position, ctx.m), layout.context)
    key_slots(b, layout, slots, score_row)
    with b.unless(Op.BEQ, args.mask, 0):
        attention_mask.shorten_tile(b, layout.geo, args.mask, args.position, ctx.m, slots, score_row, layout.context)
    with b.unless(Op.BEQ, args.rope_list, 0):
        _load_rows(ctx, layout, args)
    layer_pointers(ctx, layout, "text", args.first_layer)
    ctx.use_linears(layout.model.text.layer, layout.streams["text"])
    ctx.seek(ctx.linears[0])  # the layers' streams lie behind each other
    _layers(ctx, layout, args, slots, score_row)
    b.alu(Op.ADD, args.position, args.position, ctx.m)
    b.alu(Op.SUB, args.n_tokens, args.n_tokens, ctx.m)
    with b.unless(Op.BEQ, args.more, 0):
        with b.unless(Op.BEQ, b.load_word(b.reg(), args.more + SEGMENT.index("rope_list")), 0):
            _store_rows(ctx, layout, args)
        b.branch(Op.BNE, args.n_tokens, 0, chunk)
        _rank(ctx, layout, args.more)
        _next_segment(b, args)
        b.branch(Op.BEQ, 0, 0, chunk)
    b.branch(Op.BNE, args.n_tokens, 0, chunk)
    with b.unless(Op.BNE, b.load_word(b.reg(), args.row_list), 0):
        _residual_row(ctx, layout)
        b.halt()
    _head(ctx, layout)
    b.halt()
    return {"entry": entry, "args": list(ARGUMENTS), "tile": tile}


def _layers(ctx: Context, layout: Layout, args: Arguments, slots: Reg, score_row: Reg) -> None:
    """All layers of a chunk; a single token whose attention nobody asks for has a program of its own."""
    b = ctx.b
    alone = b.set(b.reg(), 0)
    with b.unless(Op.BNE, ctx.m, 1), b.unless(Op.BNE, args.mask, 0):
        b.set(alone, 1)
        with b.unless(Op.BEQ, args.more, 0):
            ranked = b.load_word(b.reg(), args.more + RANKED)
            b.alu(Op.SUB, alone, alone, b.alu(Op.MIN, ranked, ranked, 1))
    with b.alternatives() as leave:
        with b.unless(Op.BEQ, alone, 0):
            one = Context(
                b,
                ctx.geo,
                single_regions(layout, ctx.regions),
                ctx.width,
                records=ctx.records,
                pointers=ctx.pointers,
                linears=ctx.linears,
                streams=ctx.streams,
                weights=ctx.weights,
            )
            SingleToken(one, layout, args.position, slots, score_row).layers(args.n_layers)
            leave()
        with b.layer_loop(args.n_layers):
            _layer(ctx, layout, args, slots, score_row)
            advance_layer(ctx)


def key_slots(b: Builder, layout: Layout, slots: Reg, score_row: Reg) -> None:
    """`slots` holds a number of keys: turn it into key slots a unit and granules of a score row."""
    geo = layout.geo
    b.set(slots, slots + ((1 << geo.keys_per_slot_log2) - 1))
    b.shift(slots, slots, -geo.keys_per_slot_log2)
    b.shift(score_row, slots, geo.units_log2)


def layer_pointers(ctx: Context, layout: Layout, prefix: str, first: Reg | None) -> None:
    """Pointer registers at the records of layer `first` (None: layer 0); the weights' is set by `Context.seek`."""
    b = ctx.b
    ctx.pointers["weights"] = b.reg()
    for name in POINTERS:
        space = layout.aux if name in ("params", "scales") else layout.channel
        pointer, base = b.reg(), space[f"{prefix}.{name}"].base
        if first is None:
            b.set(pointer, base)
        else:
            b.alu(Op.MUL, pointer, first, ctx.records[name].beats)
            b.set(pointer, pointer + base)
        ctx.pointers[name] = pointer


def _load_rows(ctx: Context, layout: Layout, args: Arguments) -> None:
    """Rows of the row list into X with their maxima in A, table rows of the RoPE list into ROPE.

    Rows in the embedding are counted as such, any others as activations.
    """
    b, geo, embed = ctx.b, ctx.geo, layout.aux["embed"]
    width, beats = ctx.width, geo.granules(ctx.width)
    rope = next(op for op in layout.model.text.layer if isinstance(op, ir.Attention)).head_dim
    b.operator = "rows"
    word, entry, table = (b.set(b.reg(), 0) for _ in range(3))
    address, kind = b.reg(), b.reg()
    last = ctx["A"].size - 1
    with b.loop(ctx.m):
        for register, step in ((word, geo.words(width)), (entry, 1), (table, geo.granules(rope))):
            b.walks(register, last * step)
        b.load_word(address, args.rope_list)
        b.load(address, ctx["ROPE"], geo.granules(rope), offset=table, kind=LdKind.TABLES)
        b.load_word(address, args.row_list)
        b.shift(kind, b.set(kind, address + -(embed.base + embed.beats)), -31)  # 1: the address is below the end
        b.load(address, ctx["ROW"], beats, kind=kind)
        row = vec(At(ctx["ROW"]))
        to, entries = At(ctx["X"], 0, 0, word), Rows(ctx["A"], 0, 0, entry)
        run(b, (1, 1, geo.words(width)), width, row, to=to, reduce=row.absmax(entries))
        b.fence()
        b.set(word, word + geo.words(width))
        b.set(entry, entry + 1)
        b.set(table, table + geo.granules(rope))
        for register in (args.row_list, args.rope_list):
            b.set(register, register + 1)


@contextmanager
def _if_ranked(b: Builder, more: Reg):
    """The body runs where the segment's tokens are ranked."""
    with b.unless(Op.BEQ, more, 0), b.unless(Op.BEQ, b.load_word(b.reg(), more + RANKED), 0):
        yield


def _but_last(b: Builder, m: Reg, n_tokens: Reg) -> None:
    """m = n_tokens - 1 at most, but at least 1."""
    others = b.set(b.reg(), n_tokens + -1)
    b.alu(Op.MAX, others, others, 1)
    b.alu(Op.MIN, m, m, others)


def _rank(ctx: Context, layout: Layout, more: Reg) -> None:
    """Rank the segment's tokens, if that was asked for: it makes the next segment's lists."""
    b = ctx.b
    with _if_ranked(b, more):
        words = (RANKED, 0, BIAS, SEGMENT.index("row_list"), SEGMENT.index("rope_list"))
        tokens, keep, bias, *lists = (b.load_word(b.reg(), more + word) for word in words)
        ranking.Ranking(ctx, layout).rank(tokens, keep, bias, (lists[0], lists[1]))


def _scores_of_last(ctx: Context, layout: Layout, args: Arguments, heads: Heads) -> None:
    """Attention that the segment's last token gives, if the tokens are ranked."""
    with (
        ctx.b.unless(Op.BEQ, args.more, 0),
        ctx.b.unless(Op.BNE, args.n_tokens, 1),
        _if_ranked(ctx.b, args.more),
    ):
        ranking.AttentionScores(ctx, layout).add_up(heads)


def _layer(ctx: Context, layout: Layout, args: Arguments, slots: Reg, score_row: Reg) -> None:
    """One decoder layer: the fused operators in order."""
    ops, b, position = layout.model.text.layer, ctx.b, args.position
    ctx.prefetch(ops[1])
    ctx.load_parameters(ops[0])
    for op, following in zip(ops, [*ops[1:], None], strict=True):
        # Weights come while the norm before them runs. LDS waits for loads, so parameters come behind it.
        first = op is ops[0]
        if not first:
            ctx.prefetch(following if isinstance(op, ir.Norm) else op)
        # One operator ahead: parameters arrive during its work and LD's queue never fills.
        if following is not None and not first:
            ctx.load_parameters(following)
        match op:
            case ir.Norm():
                norm.norm(ctx, op)
                if first:  # the sequencer waits for memory while the norm runs
                    ctx.load_shifts()
                    ctx.load_parameters(following)
            case ir.Attention():
                attention.keys_and_values(ctx, op, position, layout.context)
                keys = b.alu(Op.ADD, b.reg(), position, ctx.m)
                attention.queries(
                    ctx,
                    op,
                    keys,
                    slots,
                    score_row,
                    position + 1,
                    layout.context,
                    args.mask,
                    single=lambda heads: _scores_of_last(ctx, layout, args, heads),
                )
            case ir.Residual():
                linear.residual(ctx, op)
            case ir.GatedMlp():
                mlp.gated(ctx, op)
            case ir.PlainMlp():
                mlp.plain(ctx, op)


def _store_rows(ctx: Context, layout: Layout, args: Arguments) -> None:
    """The tile's residual rows, which end at `position`, to auxiliary memory."""
    b, geo, width = ctx.b, ctx.geo, layout.model.text.hidden
    b.operator = "rows"
    target = b.load_word(b.reg(), args.more + START)
    b.alu(Op.SUB, target, args.position, target)
    b.alu(Op.SUB, target, target, ctx.m)
    target = b.scaled(target, geo.granules(width))
    b.set(target, target + layout.aux["residual"].base)
    row = b.set(b.reg(), 0)
    with b.loop(ctx.m):
        b.walks(row, (ctx["A"].size - 1) * geo.words(width))
        run(b, (1, 1, geo.words(width)), width, vec(At(ctx["X"], 0, 0, row)), to=At(ctx["RESIDUAL"]))
        b.store(StMode.LIN, ctx["RESIDUAL"], ROWS, addr=target, n_gran=geo.granules(width))
        b.set(target, target + geo.granules(width))
        b.set(row, row + geo.words(width))


def _next_segment(b: Builder, args: Arguments) -> None:
    """Arguments of the next segment; its layers are those behind this one's."""
    b.alu(Op.ADD, args.first_layer, args.first_layer, args.n_layers)
    for word, name in enumerate(SEGMENT):  # `more` comes last
        b.load_word(getattr(args, name), args.more + word)


def _residual_row(ctx: Context, layout: Layout) -> None:
    """The tile's last residual row, as it is."""
    b, geo, width = ctx.b, ctx.geo, layout.model.text.hidden
    b.operator = "rows"
    row = b.scaled(b.set(b.reg(), ctx.m + -1), geo.words(width))
    run(b, (1, 1, geo.words(width)), width, vec(At(ctx["X"], 0, 0, row)), to=At(ctx["RESIDUAL"]))
    b.store(StMode.LIN, ctx["RESIDUAL"], LOGITS, addr=layout.aux["logits"].base, n_gran=geo.granules(width))


def _head(ctx: Context, layout: Layout) -> None:
    """Logits of the tile's last row, slice by slice of the vocabulary."""
    b, geo, text, slices = ctx.b, ctx.geo, layout.model.text, layout.head
    result = b.set(b.reg(), layout.aux["logits"].base)
    last = b.set(b.reg(), ctx.m + -1)
    ctx.a, ctx.x = last, b.scaled(last, geo.words(text.hidden))
    ctx.m = 1
    ctx.records = {"params": layout.head_record}
    stream, words, at, beats = (b.reg() for _ in range(4))
    number, places, left, length = (b.reg() for _ in range(4))
    choice = Choice(ctx, layout)
    ctx.pointers = {"params": layout.aux["head.params"].base, "weights": stream}
    ctx.use_linears([text.head], None)
    ctx.load_parameter(f"{text.norm.name}.words")
    norm.norm(ctx, text.norm)
    b.operator = text.head.name
    choice.prepare()
    ctx.load_shifts()  # the sequencer waits for memory while the norm runs
    ctx.seek(text.head.name)
    b.load_word(beats, b.set(at, ctx.table_address(slices.table.length(0))))
    for register, value in (
        (words, layout.aux["head.words"].base),
        (places, layout.aux["head.places"].base),
        (number, 0),
        (left, text.head.n_out),
    ):
        b.set(register, value)
    width = slices.granules * 16
    narrow = ir.Linear(text.head.name, text.head.n_in, width)
    with b.loop(b.set(b.reg(), slices.count)):
        b.walks(number, slices.count - 1)
        b.operator = text.head.name
        b.read(stream, beats)
        b.load(words, ctx["P:head.words"], slices.granules, kind=LdKind.PARAMETERS)
        b.matmul(
            ctx["XQ"],
            ctx["ACC_HEAD"],
            rows=1,
            kb=geo.kb(text.head.n_in),
            ob=slices.steps,
            act_stride=geo.granules(text.hidden),
            out_stride=slices.granules,
            group=group_steps(slices.steps) if slices.grouped else 0,
        )
        b.alu(Op.MIN, length, left, width)
        best = choice.best(number)
        linear.project(ctx, narrow, ctx["ACC_HEAD"], At(ctx["LOGITS"]), length=length, entries=best, reduce=Expr.max)
        choice.distance(narrow, number)
        b.store(StMode.LIN, ctx["LOGITS"], LOGITS, addr=result, n_gran=slices.granules, kind=StKind.RESULTS)
        b.alu(Op.ADD, stream, stream, beats)
        b.load_word(beats, b.set(at, at + 1))  # the next slice's, while units work on this one
        choice.place(number, places, length)
        b.fence()
        b.set(number, number + 1)
        b.alu(Op.SUB, left, left, length)
        b.set(places, places + slices.granules)
        b.set(words, words + slices.granules)
        b.set(result, result + slices.granules)
    choice.store()
