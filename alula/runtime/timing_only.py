"""Memory for runs that only measure time: the program, the tables the sequencer reads, and headers of weight streams.

No weight is needed: everything else is absent, and an executor that asks for its value is refused.
"""

import numpy as np

from compiler import ir
from compiler.layout import MODULES, Layout, modules, table_of
from compiler.stream import Headers
from hw.spec.config import BEAT_BYTES
from sim.memory_image import MemoryImage

SHIFT = 20
"""G of every linear layer: any value takes the same time."""


def image(layout: Layout, program: list[int]) -> MemoryImage:
    """What `pack.pieces` would give, as far as time depends on it."""
    memory, aux = MemoryImage(layout.config), layout.config.aux_port
    memory.attach(aux, layout.aux["program"].base * BEAT_BYTES, np.array(program, np.uint64))
    for name in ("embed", "rope", "head.words", "head.places", "position"):
        if name in layout.aux.sections and layout.aux[name].beats:
            section = layout.aux[name]
            memory.attach_absent(aux, section.base * BEAT_BYTES, section.beats * BEAT_BYTES)
    text = layout.model.text
    _layers(memory, layout, "text", text.layer, text.n_layers)
    _head(memory, layout)
    if layout.model.vision is not None:
        tower = layout.tower
        _layers(memory, layout, "vision", tower.layer, tower.n_layers)
        _layers(memory, layout, "stem", tower.stem, 1)
        _layers(memory, layout, "projector", tower.projector, 1)
    return memory


def _layers(memory: MemoryImage, layout: Layout, prefix: str, ops: list, count: int) -> None:
    """Records and streams of the layers of a section."""
    record, streams, linears = layout.parameter_record(prefix), layout.geo.streams(ops), ir.linears(ops)
    params, at = layout.aux[f"{prefix}.params"].base, layout.channel[f"{prefix}.weights"].base
    held = layout.streams[prefix]
    for index, lengths in enumerate(held.lengths):
        addresses = (at + np.cumsum([0, *lengths])[:-1]).tolist()
        table = table_of(ops, held).pack([SHIFT] * len(linears), addresses, held.table_lengths(index))
        _record(memory, layout, params + index * record.beats, record.beats, table)
        for number, (stream, address) in enumerate(zip(streams, addresses, strict=True)):
            rows = modules(MODULES[prefix].format(index), stream)
            found = layout.sizes.headers(rows, held.steps[number], held.grouped[number])
            sections = held.sections[index][number]
            _stream(memory, address, sum(sections), _joined(found, sections))
        at += sum(lengths)


def _record(memory: MemoryImage, layout: Layout, beat: int, beats: int, table: np.ndarray) -> None:
    """A parameter record: its table, the rest absent."""
    aux, held = layout.config.aux_port, len(table)
    memory.attach(aux, beat * BEAT_BYTES, table)
    memory.attach_absent(aux, beat * BEAT_BYTES + held, beats * BEAT_BYTES - held)


def _head(memory: MemoryImage, layout: Layout) -> None:
    """The head's record, and the streams of its slices."""
    slices, record, head = layout.head, layout.head_record, layout.model.text.head
    at = layout.channel["head"].base
    _record(
        memory, layout, layout.aux["head.params"].base, record.beats, slices.table.pack([SHIFT], [at], slices.streams)
    )
    found = layout.sizes.headers([(head.name, head)], slices.count * (slices.steps,), slices.grouped)
    for length, headers in zip(slices.streams, found, strict=True):
        _stream(memory, at, length, headers)
        at += length


def _joined(sections: list[list[Headers]], lengths: list[int]) -> list[Headers]:
    """Every unit's headers of a stream from those of its sections, which have so many beats; units that share those of
    all sections share the result."""
    if len(sections) == 1:
        return sections[0]
    starts, known = np.cumsum([0, *lengths]), dict[tuple[int, ...], Headers]()
    found = list[Headers]()
    for parts in zip(*sections, strict=True):
        key = tuple(map(id, parts))
        if key not in known:
            where = np.concatenate([at + start for (at, _), start in zip(parts, starts, strict=False)])
            known[key] = where, np.concatenate([beats for _, beats in parts])
        found.append(known[key])
    return found


def _stream(memory: MemoryImage, beat: int, beats: int, headers: list) -> None:
    for unit, held in enumerate(headers):
        memory.attach_absent(unit, beat * BEAT_BYTES, beats * BEAT_BYTES, held)


__all__ = ["image"]
