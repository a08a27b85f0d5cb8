"""The memory map: where programs, tables, weights and caches lie. Addresses count beats of 64 bytes.

Everything is placed and checked against the configuration before anything is written.
"""

import math
from dataclasses import dataclass, field

import numpy as np

from hw.spec import weights
from hw.spec.config import BEAT_BYTES, GRANULE_LANES, Config
from hw.spec.errors import InternalError, UserError
from hw.spec.timing import PAGE_BEATS
from hw.spec.weights import ceil_div

from . import ir
from .geometry import Geometry
from .model import ModelIr, VisionIr
from .sizes import Plan, Rows, Sizes

MODULES = {
    "text": "language_model.layers.{}.",
    "vision": "vision_tower.encoder.layers.{}.",
    "stem": "vision_tower.embeddings.",
    "projector": "multi_modal_projector.",
}
"""How the modules of a section's layers are called in checkpoints and plans."""

TABLE = "table"
"""The first beats of each parameter record, which the sequencer reads: see `Table`."""


@dataclass(frozen=True)
class Table:
    """Words about a record's n linear layers: G, four bytes a word; their streams' addresses, and lengths in beats.

    The program reads lengths and addresses here, so that one program serves every compression of the same operators:
    which of them have sparse weights is in the program.
    """

    n: int
    streams: int
    """How many there are: addresses."""
    lengths: int | None = None
    """How many lengths there are, if not as many (the head's slices, a stream's sections)."""

    def shift(self, linear: int) -> tuple[int, int]:
        """(word, byte in it)."""
        return divmod(linear, 4)

    @property
    def shift_words(self) -> int:
        return ceil_div(self.n, 4)

    def address(self, stream: int) -> int:
        return self.shift_words + stream

    def length(self, which: int) -> int:
        return self.shift_words + self.streams + which

    @property
    def beats(self) -> int:
        return ceil_div(self.length(self.streams if self.lengths is None else self.lengths), GRANULE_LANES)

    def pack(self, shifts: list[int], addresses: list[int], lengths: list[int]) -> np.ndarray:
        """uint8[beats * 64]."""
        words = np.zeros(self.beats * GRANULE_LANES, "<u4")
        words.view(np.uint8)[: self.n] = shifts
        words[self.address(0) : self.length(0)] = addresses
        words[self.length(0) : self.length(len(lengths))] = lengths
        return words.view(np.uint8)


def table_of(ops: list, streams: "Streams") -> Table:
    """The table of a record about these operators' linear layers."""
    return Table(len(ir.linears(ops)), len(streams.steps), streams.n_lengths)


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
            raise UserError(
                f"the model needs {self.at * BEAT_BYTES} bytes of {self.what}, configuration "
                f"{self.config.name} has {self.limit}: compile fewer layers, a shorter context or for a "
                "larger configuration"
            )


def parameter_record(geo: Geometry, ops: list, streams: "Streams") -> Record:
    """Scale words, biases and the table of a list of fused operators, as PB rows in aux memory."""
    record = Record()
    record.add(TABLE, table_of(ops, streams).beats)
    for norm in ir.norms(ops):
        record.add(f"{norm.name}.words", geo.granules(norm.width))
        if norm.kind == "layer":
            record.add(f"{norm.name}.bias", geo.granules(norm.width))
    for op in ir.linears(ops):
        record.add(f"{op.name}.words", geo.granules(op.n_out))
        if op.bias:
            record.add(f"{op.name}.bias", geo.granules(op.n_out))
    return record


@dataclass
class Streams:
    """Weight streams one behind the other, the same in every unit's channel."""

    sections: list[list[list[int]]]
    """Beats: [layer][stream][section]."""
    steps: list[tuple[int, ...]]
    """Output-block steps: [stream][section]."""
    grouped: list[bool]
    """Whether the steps of a stream come in groups: where one of the layers' has sparse blocks."""
    held: int = 0
    """Beats of all units that hold weights or their headers: what is not padding."""

    @classmethod
    def of(cls, sizes: Sizes, geo: Geometry, prefix: str, ops: list, count: int = 1) -> "Streams":
        """Of `count` layers of these operators; prefix: module names' beginning, with {} for the layer's number."""
        before, streams = sizes.held, geo.streams(ops)
        rows = [[modules(prefix.format(i), stream) for stream in streams] for i in range(count)]
        grouped = [any(sizes.sparse(layer[number]) for layer in rows) for number in range(len(streams))]
        steps = [geo.sections(ops, stream, each) for stream, each in zip(streams, grouped, strict=True)]
        found = [[sizes.sections(*each) for each in zip(layer, steps, grouped, strict=True)] for layer in rows]
        return cls(found, steps, grouped, sizes.held - before)

    @property
    def lengths(self) -> list[list[int]]:
        """Beats: [layer][stream]."""
        return [[sum(stream) for stream in layer] for layer in self.sections]

    @property
    def beats(self) -> int:
        return sum(map(sum, self.lengths))

    @property
    def n_lengths(self) -> int:
        """Lengths in a record's table: of every stream, then of all sections of those that have several."""
        return len(self.steps) + sum(len(steps) for steps in self.steps if len(steps) > 1)

    def length_of(self, stream: int, section: int | None = None) -> int:
        """Place among these lengths of a stream's, or of its section's."""
        if section is None or len(self.steps[stream]) == 1:
            return stream
        return len(self.steps) + sum(len(steps) for steps in self.steps[:stream] if len(steps) > 1) + section

    def table_lengths(self, layer: int) -> list[int]:
        """What the table of a layer's record holds."""
        several = [length for stream in self.sections[layer] if len(stream) > 1 for length in stream]
        return self.lengths[layer] + several

    def starts(self, layer: int) -> list[int]:
        """First beats of a layer's streams, from the section's start."""
        before = sum(map(sum, self.lengths[:layer]))
        return [before + sum(self.lengths[layer][:i]) for i in range(len(self.lengths[layer]))]


def modules(prefix: str, rows: tuple[ir.Linear, ...]) -> Rows:
    """The linear layers of a stream with their modules' names."""
    return [(prefix + op.name, op) for op in rows]


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


def mask_row_words(geo: Geometry, context: int) -> int:
    """Words of one row of the table of present key slots: slots, runs, and as many runs as there can be."""
    return 2 + ceil_div(geo.slots(context), 2)


def selection_record(geo: Geometry, n_patches: int) -> Record:
    """What `kernels.select` keeps in aux: tables (numbers, bits), the saliency, words for the sequencer, the result."""
    record, tokens, lanes = Record(), n_patches + 1, GRANULE_LANES
    for name, beats in (
        ("numbers", tokens),
        ("bits", geo.gpw**2),
        ("saliency", geo.granules(tokens)),
        ("rows", geo.granules(math.isqrt(n_patches))),
        ("count", 1),
        ("masks", ceil_div(2 * geo.granules(tokens), lanes)),
        ("kept", ceil_div(n_patches, lanes)),
    ):
        record.add(name, beats)
    return record


def ranking_record(geo: Geometry, context: int, n_layers: int) -> Record:
    """What `kernels.ranking` keeps in aux: words for the sequencer, attention scores, tables with a beat a token and a
    row of biases a layer, which the host writes."""
    record, row = Record(), geo.cache_granules(context)
    for name, beats in (
        ("bits", geo.gpw**2),
        ("count", 1),
        ("masks", ceil_div(2 * row, GRANULE_LANES)),
        ("scores", row),
        ("rows", context),
        ("rope", context),
        ("bias", n_layers * row),
    ):
        record.add(name, beats)
    return record


@dataclass
class HeadSlices:
    """The vocabulary in `count` equal slices of `steps` output-block steps."""

    count: int
    steps: int
    granules: int
    streams: list[int] = field(default_factory=list)
    """Beats of each slice's stream."""
    grouped: bool = False
    """Whether their steps come in groups."""
    held: int = 0
    """Beats of all units that hold weights or their headers."""

    @property
    def table(self) -> Table:
        """With a length more than slices: the next one is read a slice ahead."""
        return Table(1, 1, self.count + 1)


def head_slices(geo: Geometry, head: ir.Linear) -> HeadSlices:
    """Slices that fit AB, PB and half of SB."""
    c, steps = geo.config, geo.steps(head.n_out)
    largest = max(1, min(c.ab_granules // 2, c.pb_granules // 4, c.sb_granules // 2) // c.units)
    size = ceil_div(steps, ceil_div(steps, largest))
    return HeadSlices(ceil_div(steps, size), size, size * c.units)


class Layout:
    """Sections and records of one model on one configuration."""

    def __init__(self, config: Config, model: ModelIr, context: int, plan: Plan | None = None) -> None:
        self.config, self.model, self.context = config, model, context
        self.sizes, self.streams = Sizes(config.units, plan), dict[str, Streams]()
        self.geo = Geometry(config)
        self.aux = Space("auxiliary memory", config.aux_bytes, config)
        self.channel = Space("each channel's memory", config.channel_bytes, config)
        self.aux.place("program", config.imem_instructions * 8 // BEAT_BYTES)
        self._text()
        if model.vision is not None:
            self._vision()
        self._place_streams()
        self.aux.check()
        self.channel.check()

    def _layers(self, prefix: str, ops: list, count: int, context: int) -> dict[str, Record]:
        attention = next(op for op in ops if isinstance(op, ir.Attention))
        self._streams(prefix, ops, count)
        records = {
            "params": parameter_record(self.geo, ops, self.streams[prefix]),
            "cache": cache_record(self.geo, attention, context),
            "scales": scale_record(self.geo, attention, context),
        }
        for name, record in records.items():
            space = self.aux if name in ("params", "scales") else self.channel
            space.place(f"{prefix}.{name}", record.beats * count)
        return records

    def _streams(self, prefix: str, ops: list, count: int = 1) -> None:
        """The streams of `count` layers, or of the stem or projector."""
        self.streams[prefix] = Streams.of(self.sizes, self.geo, MODULES[prefix], ops, count)

    def _place_streams(self) -> None:
        """Behind everything whose address is in the program: addresses of streams are in the tables, for their lengths
        differ with the compression."""
        for prefix, streams in self.streams.items():
            self.channel.place(f"{prefix}.weights", streams.beats)
        self.channel.place("head", sum(self.head.streams))

    def _text(self) -> None:
        text, geo = self.model.text, self.geo
        self.aux.place("embed", text.vocab * geo.granules(text.hidden))
        attention = next(op for op in text.layer if isinstance(op, ir.Attention))
        self.aux.place("rope", self.context * geo.granules(attention.head_dim))
        self.text = self._layers("text", text.layer, text.n_layers, self.context)
        self.head = head_slices(geo, text.head)
        self.head_record = Record()
        before = self.sizes.held
        rows = [(text.head.name, text.head)]
        self.head.grouped = self.sizes.sparse(rows)
        self.head.streams = self.sizes.sections(rows, self.head.count * (self.head.steps,), self.head.grouped)
        self.head.held = self.sizes.held - before
        self.head_record.add(TABLE, self.head.table.beats)
        self.head_record.add(f"{text.norm.name}.words", geo.granules(text.hidden))
        self.aux.place("head.params", self.head_record.beats)
        self.aux.place("head.words", self.head.count * self.head.granules)
        self.aux.place("head.places", self.head.count * self.head.granules)
        self.aux.place("token", 1)
        # A list a segment of layers; the word behind the last says what the result is.
        self.aux.place("rows", text.n_layers * ceil_div(self.context + 1, GRANULE_LANES))
        self.aux.place("rope_rows", text.n_layers * ceil_div(self.context, GRANULE_LANES))
        self.aux.place("segments", text.n_layers)
        self.ranking = ranking_record(geo, self.context, text.n_layers)
        self.aux.place("ranking", self.ranking.beats)
        self.aux.place("residual", self.context * geo.granules(text.hidden))
        self.aux.place("mask", ceil_div(geo.slots(self.context) * mask_row_words(geo, self.context), GRANULE_LANES))
        self.aux.place("logits", self.head.count * self.head.granules)

    def _vision(self) -> None:
        vision, geo = self.tower, self.geo
        width = vision.layer_width
        self.vision = self._layers("vision", vision.layer, vision.n_layers, vision.n_patches + 1)
        self._streams("stem", vision.stem)
        self._streams("projector", vision.projector)
        self.stem = parameter_record(geo, vision.stem, self.streams["stem"])
        self.projector = parameter_record(geo, vision.projector, self.streams["projector"])
        self.aux.place("stem.params", self.stem.beats)
        self.aux.place("projector.params", self.projector.beats)
        self.selection = selection_record(geo, vision.n_patches)
        self.aux.place("selection", self.selection.beats)
        self.aux.place("position", (vision.n_patches + 1) * geo.granules(width))
        self.aux.place("patches", vision.n_patches * geo.granules(vision.stem[0].n_in))
        self.aux.place("features", (vision.tiles * vision.n_patches + 1) * geo.granules(self.model.text.hidden))

    def parameter_record(self, prefix: str) -> Record:
        """Of a section's layers: text, vision, stem or projector."""
        record = getattr(self, prefix)
        return record["params"] if isinstance(record, dict) else record

    @property
    def grouped(self) -> bool:
        """Whether any stream's steps come in groups."""
        return self.head.grouped or any(any(streams.grouped) for streams in self.streams.values())

    @property
    def weight_bytes(self) -> int:
        """Bytes of weight streams in all channels, padding of sections not counted."""
        beats = sum(self.head.streams) + sum(streams.beats for streams in self.streams.values())
        return beats * BEAT_BYTES * self.config.units

    def held_share(self, *prefixes: str) -> float:
        """Share of the beats of these sections' streams that is not padding."""
        sections = [self.streams[prefix] for prefix in prefixes]
        return sum(s.held for s in sections) / (self.config.units * sum(s.beats for s in sections))

    @property
    def tower(self) -> VisionIr:
        """The vision side, where there is one."""
        if self.model.vision is None:
            raise InternalError(f"{self.model.name} was compiled without a vision tower")
        return self.model.vision

    def memory_map(self) -> dict:
        """name -> [first beat, beats] of both memories, for manifests and reports."""
        return {
            space.what: {n: [s.base, s.beats] for n, s in space.sections.items()} for space in (self.aux, self.channel)
        }
