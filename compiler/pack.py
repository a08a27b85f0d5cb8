"""Packing: quantised tensors to the bytes of every memory, one section (or layer) at a time."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from hw.spec.config import BEAT_BYTES, BLOCK
from hw.spec.errors import InternalError
from hw.spec.numerics import sat32
from ref_model.compress.format import BlockFormat

from . import ir, stream
from .kernels.norm import constants_of
from .kernels.select import bit_weights
from .layout import Layout, Record, table_of

Array = np.ndarray
Piece = tuple[int, int, Array]
"""(port, first beat, bytes): the port is a unit's channel, or `units` for aux."""

FIELDS = {
    "self_attn.q_proj": "q",
    "self_attn.k_proj": "k",
    "self_attn.v_proj": "v",
    "self_attn.o_proj": "o",
    "self_attn.out_proj": "out",
    "mlp.gate_proj": "gate",
    "mlp.up_proj": "up",
    "mlp.down_proj": "down",
    "mlp.fc1": "fc1",
    "mlp.fc2": "fc2",
    "input_layernorm": "input_norm",
    "post_attention_layernorm": "post_norm",
    "layer_norm1": "norm1",
    "layer_norm2": "norm2",
    "patch_embedding": "patch",
    "pre_layrnorm": "pre_norm",
    "linear_1": "projector1",
    "linear_2": "projector2",
    "norm": "norm",
    "lm_head": "head",
}
"""Weight path inside its module -> field of the quantised structures."""


def row_words(values: Array | list, granules: int) -> Array:
    """Words (or int32 values) [..., n] -> uint8 of `granules` beats a row, zero-padded."""
    values = np.asarray(values)
    out = np.zeros((*values.shape[:-1], granules * 16), np.uint32)
    out[..., : values.shape[-1]] = values.astype(np.int64) & 0xFFFFFFFF
    return out.reshape(-1).view(np.uint8)


def _field(owner, name: str):
    return getattr(owner, FIELDS[name])


def parameters(record: Record, ops: list, owner, table: Array) -> Array:
    """One parameter record: uint8[record.beats * 64]."""
    out = np.zeros(record.beats * BEAT_BYTES, np.uint8)

    def put(name, values):
        data = row_words(values, record.sizes[name])
        out[record[name] * BEAT_BYTES : record[name] * BEAT_BYTES + len(data)] = data

    out[: len(table)] = table
    for norm in ir.norms(ops):
        _put_norm(put, norm, _field(owner, norm.name))
    for op in ir.linears(ops):
        tensor = _field(owner, op.name)
        put(f"{op.name}.words", tensor.words)
        if op.bias != (tensor.bias is not None):
            raise InternalError(f"{op.name}: the graph and the quantised model disagree about a bias")
        if op.bias:
            put(f"{op.name}.bias", tensor.bias)
    return out


def _put_norm(put, op: ir.Norm, tensor) -> None:
    expected = constants_of(op)
    if (tensor.adjust, tensor.epsilon) != (expected["adjust"], expected["epsilon"]):
        raise InternalError(
            f"{op.name}: quantised constants {tensor.adjust}, {tensor.epsilon} are not the compiled "
            f"{expected['adjust']}, {expected['epsilon']}"
        )
    put(f"{op.name}.words", tensor.words)
    if op.kind == "layer":
        put(f"{op.name}.bias", tensor.bias)


def weight_stream(units: int, name: str, tensor, beats: int, steps: int, grouped: bool) -> Array:
    """A quantised linear layer's stream uint8[units, beats * 64]; the layout must have foreseen its length."""
    try:
        data = stream.encode(tensor.weight, tensor.format, units, steps, grouped)
    except ValueError as error:
        raise InternalError(f"{name}: {error}") from None
    if data.shape[1] != beats * BEAT_BYTES:
        raise InternalError(
            f"{name}: the stream has {data.shape[1] // BEAT_BYTES} beats, the layout {beats}: the "
            "model is not quantised as it was compiled for"
        )
    return data


def pieces(layout: Layout, quant, program: list[int]) -> Iterator[Piece]:
    """Everything a memory image holds before the first run, layer by layer."""
    units, aux = layout.config.units, layout.aux
    yield units, aux["program"].base, np.array(program, np.uint64).view(np.uint8)
    yield from _text(layout, quant.text)
    if layout.model.vision is not None:
        yield from _vision(layout, quant.vision)


def _linears(layout: Layout, prefix: str, index: int, ops: list, owner) -> Iterator[Piece]:
    """Parameter record and weight streams of layer `index` of a section."""
    units, record, streams = layout.config.units, layout.parameter_record(prefix), layout.streams[prefix]
    rows = layout.geo.streams(ops)
    base = layout.channel[f"{prefix}.weights"].base
    addresses = [base + start for start in streams.starts(index)]
    table = table_of(ops, streams).pack(
        [_field(owner, op.name).shift for op in ir.linears(ops)], addresses, streams.table_lengths(index)
    )
    yield (units, layout.aux[f"{prefix}.params"].base + index * record.beats, parameters(record, ops, owner, table))
    parts = list[Array]()
    for stream_, lengths, steps, grouped in zip(
        rows, streams.sections[index], streams.steps, streams.grouped, strict=True
    ):
        tensor, first = _joined([_field(owner, op.name) for op in stream_]), 0
        for length, n in zip(lengths, steps, strict=True):
            end = first + n * units * BLOCK
            section = tensor if len(steps) == 1 else _rows(tensor, first, end)
            parts.append(weight_stream(units, stream_[0].name, section, length, n, grouped))
            first = end
    for unit, data in enumerate(np.concatenate(parts, axis=1)):
        yield unit, addresses[0], data


def _joined(tensors: list):
    """Quantised linear layers as one, of all their rows; of the words nothing is kept."""
    if len(tensors) == 1:
        return tensors[0]
    weight, formats = np.concatenate([tensor.weight for tensor in tensors]), [tensor.format for tensor in tensors]
    form = None
    if any(each is not None for each in formats):
        held = [
            stream.dense_format(tensor.weight.shape) if tensor.format is None else tensor.format for tensor in tensors
        ]
        form = BlockFormat(
            *(np.concatenate([getattr(each, name) for each in held]) for name in ("bits", "nonzeros", "scales"))
        )
    return replace(tensors[0], weight=weight, format=form)


def _text(layout: Layout, text) -> Iterator[Piece]:
    units, geo, aux, model = layout.config.units, layout.geo, layout.aux, layout.model.text
    yield units, aux["embed"].base, row_words(text.embed, geo.granules(model.hidden))
    attention = next(op for op in model.layer if isinstance(op, ir.Attention))
    if attention.rope:
        table = text.rope_table(range(layout.context))
        yield units, aux["rope"].base, row_words(table, geo.granules(attention.head_dim))
    for index in range(model.n_layers):
        yield from _linears(layout, "text", index, model.layer, text.layers[index])
    yield from _head(layout, text)


def _head(layout: Layout, text) -> Iterator[Piece]:
    """Parameters of the final norm and the head, and its slices' words and streams."""
    units, aux, slices, record = layout.config.units, layout.aux, layout.head, layout.head_record
    at, width, base = 0, layout.head.granules * 16, layout.channel["head"].base
    table = slices.table.pack([text.head.shift], [base], slices.streams)
    yield units, aux["head.params"].base, parameters(record, [layout.model.text.norm], text, table)
    words = np.zeros(slices.count * width, np.int64)
    words[: len(text.head.words)] = text.head.words
    yield units, aux["head.words"].base, row_words(words, slices.count * slices.granules)
    places = np.arange(slices.count * width, 0, -1)
    yield units, aux["head.places"].base, row_words(places, slices.count * slices.granules)
    for index, beats in enumerate(slices.streams):
        part = _rows(text.head, index * width, (index + 1) * width)
        for unit, data in enumerate(
            weight_stream(units, f"lm_head, slice {index}", part, beats, slices.steps, slices.grouped)
        ):
            yield unit, base + at, data
        at += beats


def _rows(tensor, first: int, end: int):
    """Rows first..end-1 (whole blocks) of a quantised linear layer."""
    rows, blocks, form = slice(first, end), slice(first // BLOCK, end // BLOCK), tensor.format
    if form is not None:
        form = BlockFormat(form.bits[blocks], form.nonzeros[blocks], form.scales[rows])
    return replace(tensor, weight=tensor.weight[rows], words=tensor.words[rows], format=form)


def _vision(layout: Layout, vision) -> Iterator[Piece]:
    units, geo, aux, model = layout.config.units, layout.geo, layout.aux, layout.tower
    for index in range(model.n_layers):
        yield from _linears(layout, "vision", index, model.layer, vision.layers[index])
    for name, ops in (("stem", model.stem), ("projector", model.projector)):
        yield from _linears(layout, name, 0, ops, vision)
    position = np.array(vision.position, np.int64)
    # The class token is constant, so its row holds class embedding + position already.
    position[0] = sat32(position[0] + vision.class_embedding)
    yield units, aux["position"].base, row_words(position, geo.granules(model.layer_width))
    for beat, data in selection_tables(layout):
        yield units, beat, data
    if vision.newline is not None:
        granules = geo.granules(layout.model.text.hidden)
        newline = aux["features"].base + model.tiles * model.n_patches * granules
        yield units, newline, row_words(vision.newline, granules)


def selection_tables(layout: Layout) -> list[tuple[int, Array]]:
    """(first beat in aux, bytes) of the tables of `kernels.select`: patch numbers behind the class token's, bits."""
    base, record, gpw = layout.aux["selection"].base, layout.selection, layout.geo.gpw
    numbers = np.arange(layout.tower.n_patches + 1)[:, None] - 1
    return [
        (base + record["numbers"], row_words(numbers, 1)),
        (base + record["bits"], row_words(bit_weights(gpw), gpw)),
    ]


__all__ = ["FIELDS", "parameters", "pieces", "selection_tables"]
