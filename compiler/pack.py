"""Packing: quantised tensors to the bytes of every memory, one section (or layer) at a time."""

from collections.abc import Iterator

import numpy as np

from alula.errors import InternalError
from hw.spec import weights
from hw.spec.config import BEAT_BYTES, BLOCK
from hw.spec.numerics import sat32
from hw.spec.weights import ceil_div

from . import ir
from .geometry import Geometry
from .kernels.norm import constants_of
from .layout import Layout, Record

Array = np.ndarray
Piece = tuple[int, int, Array]
"""(port, first beat, bytes): the port is a unit's channel, or `units` for aux."""

FIELDS = {
    "self_attn.q_proj": "q", "self_attn.k_proj": "k", "self_attn.v_proj": "v", "self_attn.o_proj": "o",
    "self_attn.out_proj": "out", "mlp.gate_proj": "gate", "mlp.up_proj": "up", "mlp.down_proj": "down",
    "mlp.fc1": "fc1", "mlp.fc2": "fc2", "input_layernorm": "input_norm", "post_attention_layernorm": "post_norm",
    "layer_norm1": "norm1", "layer_norm2": "norm2", "patch_embedding": "patch", "pre_layrnorm": "pre_norm",
    "linear_1": "projector1", "linear_2": "projector2", "norm": "norm", "lm_head": "head",
}
"""Weight path inside its module -> field of the quantised structures."""


def stream(geo: Geometry, weight: Array, steps: int | None = None) -> Array:
    """int8[out, in] -> uint8[units, bytes]: every unit's STREAM-format stream, header first."""
    units, (n_out, n_in) = geo.config.units, weight.shape
    steps, kb = steps or geo.steps(n_out), geo.kb(n_in)
    padded = np.zeros((steps * units * BLOCK, kb * BLOCK), np.int8)
    padded[:n_out, :n_in] = weight
    blocks = padded.reshape(steps, units, BLOCK, kb, BLOCK).transpose(1, 0, 3, 2, 4)
    body = np.ascontiguousarray(blocks).reshape(units, -1).view(np.uint8)
    head = np.frombuffer(weights.header(steps * kb), np.uint8)
    return np.concatenate([np.broadcast_to(head, (units, len(head))), body], axis=1)


def row_words(values: Array, granules: int) -> Array:
    """Words (or int32 values) [..., n] -> uint8 of `granules` beats a row, zero-padded."""
    values = np.asarray(values)
    out = np.zeros((*values.shape[:-1], granules * 16), np.uint32)
    out[..., : values.shape[-1]] = values.astype(np.int64) & 0xFFFFFFFF
    return out.reshape(-1).view(np.uint8)


def _field(owner, name: str):
    return getattr(owner, FIELDS[name])


def parameters(geo: Geometry, record: Record, ops: list, owner) -> Array:
    """One parameter record: uint8[record.beats * 64]."""
    out = np.zeros(record.beats * BEAT_BYTES, np.uint8)

    def put(name, values):
        data = row_words(values, record.sizes[name])
        out[record[name] * BEAT_BYTES : record[name] * BEAT_BYTES + len(data)] = data

    shifts = [_field(owner, op.name).shift for op in ir.linears(ops)]
    out[: len(shifts)] = np.array(shifts, np.uint8)
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
        raise InternalError(f"{op.name}: quantised constants {tensor.adjust}, {tensor.epsilon} are not the compiled "
                            f"{expected['adjust']}, {expected['epsilon']}")
    put(f"{op.name}.words", tensor.words)
    if op.kind == "layer":
        put(f"{op.name}.bias", tensor.bias)


def streams(geo: Geometry, record: Record, ops: list, owner) -> Array:
    """One weight record: uint8[units, record.beats * 64]."""
    return np.concatenate([stream(geo, _field(owner, op.name).weight) for op in ir.linears(ops)], axis=1)


def pieces(layout: Layout, quant, program: list[int]) -> Iterator[Piece]:
    """Everything a memory image holds before the first run, layer by layer."""
    units, aux = layout.config.units, layout.aux
    yield units, aux["program"].base, np.array(program, np.uint64).view(np.uint8)
    yield from _text(layout, quant.text)
    if layout.model.vision is not None:
        yield from _vision(layout, quant.vision)


def _layers(layout: Layout, prefix: str, records: dict, ops: list, count: int, layers) -> Iterator[Piece]:
    units, geo = layout.config.units, layout.geo
    for index in range(count):
        layer = layers[index]
        params, body = records["params"], records["weights"]
        yield (units, layout.aux[f"{prefix}.params"].base + index * params.beats,
               parameters(geo, params, ops, layer))
        at = layout.channel[f"{prefix}.weights"].base + index * body.beats
        for unit, data in enumerate(streams(geo, body, ops, layer)):
            yield unit, at, data


def _text(layout: Layout, text) -> Iterator[Piece]:
    units, geo, aux, model = layout.config.units, layout.geo, layout.aux, layout.model.text
    yield units, aux["embed"].base, row_words(text.embed, geo.granules(model.hidden))
    attention = next(op for op in model.layer if isinstance(op, ir.Attention))
    if attention.rope:
        table = text.rope_table(range(layout.context))
        yield units, aux["rope"].base, row_words(table, geo.granules(attention.head_dim))
    yield from _layers(layout, "text", layout.text, model.layer, model.n_layers, text.layers)
    owner = _HeadOwner(text)
    record = layout.head_record
    head = np.zeros(record.beats * BEAT_BYTES, np.uint8)
    head[0] = text.head.shift
    _put_norm(lambda name, values: head.__setitem__(
        slice(record[name] * BEAT_BYTES, (record[name] + record.sizes[name]) * BEAT_BYTES),
        row_words(values, record.sizes[name])), model.norm, owner.norm)
    yield units, aux["head.params"].base, head
    slices, width = layout.head, layout.head.granules * 16
    words = np.zeros(slices.count * width, np.int64)
    words[: len(text.head.words)] = text.head.words
    yield units, aux["head.words"].base, row_words(words, slices.count * slices.granules)
    for index in range(slices.count):
        part = text.head.weight[index * width : (index + 1) * width]
        data = stream(geo, part, slices.steps) if len(part) else stream(geo, np.zeros((1, model.head.n_in), np.int8),
                                                                         slices.steps)
        for unit in range(units):
            yield unit, layout.channel["head"].base + index * slices.stream_beats, data[unit]


class _HeadOwner:
    def __init__(self, text) -> None:
        self.norm, self.head = text.norm, text.head


def _vision(layout: Layout, vision) -> Iterator[Piece]:
    units, geo, aux, model = layout.config.units, layout.geo, layout.aux, layout.tower
    yield from _layers(layout, "vision", layout.vision, model.layer, model.n_layers, vision.layers)
    for name, record, body, ops in (("stem", layout.stem, layout.stem_weights, model.stem),
                                    ("projector", layout.projector, layout.projector_weights, model.projector)):
        yield units, aux[f"{name}.params"].base, parameters(geo, record, ops, vision)
        for unit, data in enumerate(streams(geo, body, ops, vision)):
            yield unit, layout.channel[f"{name}.weights"].base, data
    position = np.array(vision.position, np.int64)
    # The class token is constant, so its row holds class embedding + position already.
    position[0] = sat32(position[0] + vision.class_embedding)
    yield units, aux["position"].base, row_words(position, geo.granules(model.layer_width))


def sections(layout: Layout) -> Iterator[tuple[int, int, int]]:
    """(port, first beat, beats) of what `pieces` fills and only units read: for timing-only images without weights."""
    units = layout.config.units
    skip = ("program", "rows", "rope_rows", "logits", "features", "patches", "text.scales", "vision.scales")
    for name, section in layout.aux.sections.items():
        if name not in skip and not name.endswith(".params"):  # the sequencer reads shifts there
            yield units, section.base, section.beats
    for name, section in layout.channel.sections.items():
        if not name.endswith("cache"):
            for unit in range(units):
                yield unit, section.base, section.beats


__all__ = ["FIELDS", "ceil_div", "parameters", "pieces", "sections", "stream"]
