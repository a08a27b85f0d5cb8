"""The memory map: where programs, tables, weights and caches lie. Addresses count beats of 64 bytes.

Everything is placed and checked against the configuration before anything is written.
"""

from dataclasses import dataclass, field

from alula.errors import InternalError, UserError
from hw.spec import weights
from hw.spec.config import BEAT_BYTES, GRANULE_LANES, Config
from hw.spec.weights import ceil_div

from . import ir
from .geometry import Geometry
from .model import ModelIr, VisionIr

PAGE_BEATS = 64
"""Sections start on 4 KiB, so that bursts are whole."""
SHIFTS = "shifts"
"""One beat of each layer's record: the linear layers' G, four bytes a word."""


@dataclass
class Record:
    """Named fields at beat offsets; `beats` is the record's size (and the stride of a table of them)."""

    offsets: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    beats: int = 0

    def add(self, name: str, beats: int) -> None:
        self.offsets[name], self.sizes[name] = self.beats, beats
        self.beats += beats

    def __getitem__(self, name: str) -> int:
        return self.offsets[name]


@dataclass
class Section:
    base: int
    beats: int


class Space:
    """Sections placed one after the other in one memory."""

    def __init__(self, what: str, limit_bytes: int, config: Config) -> None:
        self.what, self.limit, self.config = what, limit_bytes, config
        self.sections: dict[str, Section] = {}
        self.at = 0

    def place(self, name: str, beats: int) -> Section:
        self.sections[name] = section = Section(self.at, beats)
        self.at += ceil_div(beats, PAGE_BEATS) * PAGE_BEATS
        return section

    def __getitem__(self, name: str) -> Section:
        return self.sections[name]

    def check(self) -> None:
        if self.at * BEAT_BYTES > self.limit:
            raise UserError(f"the model needs {self.at * BEAT_BYTES} bytes of {self.what}, configuration "
                            f"{self.config.name} has {self.limit}: compile fewer layers, a shorter context or for a "
                            "larger configuration")


def parameter_record(geo: Geometry, ops: list) -> Record:
    """Scale words, biases and shifts of a list of fused operators, as PB rows in aux memory."""
    record = Record()
    record.add(SHIFTS, 1)
    for norm in ir.norms(ops):
        record.add(f"{norm.name}.words", geo.granules(norm.width))
        if norm.kind == "layer":
            record.add(f"{norm.name}.bias", geo.granules(norm.width))
    for op in ir.linears(ops):
        record.add(f"{op.name}.words", geo.granules(op.n_out))
        if op.bias:
            record.add(f"{op.name}.bias", geo.granules(op.n_out))
    return record


def stream_record(geo: Geometry, ops: list) -> Record:
    """Weight streams (the same offsets in every unit's channel)."""
    record = Record()
    for op in ir.linears(ops):
        record.add(op.name, geo.stream(op.n_out, op.n_in))
    return record


def cache_record(geo: Geometry, op: ir.Attention, context: int) -> Record:
    """K and V of one layer in every channel."""
    record = Record()
    beats = op.kv_heads * weights.cache_beats(op.head_dim, context, geo.config.units)
    record.add("k", beats)
    record.add("v", beats)
    return record


def scale_record(geo: Geometry, op: ir.Attention, context: int) -> Record:
    """Words of K's and V's scales of one layer in aux: [head][key / 16] beats."""
    record = Record()
    for name in "kv":
        record.add(name, op.kv_heads * geo.cache_granules(context))
    return record


@dataclass
class HeadSlices:
    """The vocabulary in `count` equal slices of `steps` output-block steps."""

    count: int
    steps: int
    stream_beats: int
    granules: int


def head_slices(geo: Geometry, head: ir.Linear) -> HeadSlices:
    """Slices that fit AB, PB and half of SB."""
    c, steps = geo.config, geo.steps(head.n_out)
    largest = max(1, min(c.ab_granules // 2, c.pb_granules // 4, c.sb_granules // 2) // c.units)
    count = ceil_div(steps, largest)
    size = ceil_div(steps, count)
    return HeadSlices(count, size, 1 + size * geo.kb(head.n_in) * weights.BLOCK_BEATS, size * c.units)


class Layout:
    """Sections and records of one model on one configuration."""

    def __init__(self, config: Config, model: ModelIr, context: int) -> None:
        self.config, self.model, self.context = config, model, context
        self.geo = Geometry(config)
        self.aux = Space("auxiliary memory", config.aux_bytes, config)
        self.channel = Space("each channel's memory", config.channel_bytes, config)
        self.aux.place("program", config.imem_instructions * 8 // BEAT_BYTES)
        self._text()
        if model.vision is not None:
            self._vision()
        self.aux.check()
        self.channel.check()

    def _layers(self, prefix: str, ops: list, count: int, context: int) -> dict[str, Record]:
        attention = next(op for op in ops if isinstance(op, ir.Attention))
        records = {"params": parameter_record(self.geo, ops), "weights": stream_record(self.geo, ops),
                   "cache": cache_record(self.geo, attention, context),
                   "scales": scale_record(self.geo, attention, context)}
        for name, record in records.items():
            space = self.aux if name in ("params", "scales") else self.channel
            space.place(f"{prefix}.{name}", record.beats * count)
        return records

    def _text(self) -> None:
        text, geo = self.model.text, self.geo
        self.aux.place("embed", text.vocab * geo.granules(text.hidden))
        attention = next(op for op in text.layer if isinstance(op, ir.Attention))
        self.aux.place("rope", self.context * geo.granules(attention.head_dim))
        self.text = self._layers("text", text.layer, text.n_layers, self.context)
        self.head = head_slices(geo, text.head)
        self.head_record = Record()
        self.head_record.add(SHIFTS, 1)
        self.head_record.add(f"{text.norm.name}.words", geo.granules(text.hidden))
        self.aux.place("head.params", self.head_record.beats)
        self.aux.place("head.words", self.head.count * self.head.granules)
        self.channel.place("head", self.head.count * self.head.stream_beats)
        self.aux.place("rows", ceil_div(self.context + 1, GRANULE_LANES))
        self.aux.place("rope_rows", ceil_div(self.context, GRANULE_LANES))
        self.aux.place("logits", self.head.count * self.head.granules)

    def _vision(self) -> None:
        vision, geo = self.tower, self.geo
        width = vision.layer_width
        self.vision = self._layers("vision", vision.layer, vision.n_layers, vision.n_patches + 1)
        self.stem = parameter_record(geo, vision.stem)
        self.stem_weights = stream_record(geo, vision.stem)
        self.projector = parameter_record(geo, vision.projector)
        self.projector_weights = stream_record(geo, vision.projector)
        self.aux.place("stem.params", self.stem.beats)
        self.aux.place("projector.params", self.projector.beats)
        self.channel.place("stem.weights", self.stem_weights.beats)
        self.channel.place("projector.weights", self.projector_weights.beats)
        self.aux.place("position", (vision.n_patches + 1) * geo.granules(width))
        self.aux.place("patches", vision.n_patches * geo.granules(vision.stem[0].n_in))
        self.aux.place("features", (vision.n_patches + 1) * geo.granules(self.model.text.hidden))

    @property
    def tower(self) -> VisionIr:
        """The vision side, where there is one."""
        if self.model.vision is None:
            raise InternalError(f"{self.model.name} was compiled without a vision tower")
        return self.model.vision

    def memory_map(self) -> dict:
        """name -> [first beat, beats] of both memories, for manifests and reports."""
        return {space.what: {n: [s.base, s.beats] for n, s in space.sections.items()}
                for space in (self.aux, self.channel)}
