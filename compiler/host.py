"""The host's side of a compiled model: arguments, row lists, feature rows; and the useful work of each phase."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from alula.errors import InternalError, UserError
from hw.spec.config import BEAT_BYTES
from sim.backend import KEEP_PROGRAM, Backend, Invocation, Result
from sim.memory_image import MemoryImage

from . import ir, pack
from .layout import Layout


@dataclass
class Program:
    """Encoded instructions and where its entries start; `entries[name]`: entry, args, tile."""

    words: list[int]
    entries: dict[str, dict]


@dataclass
class Compiled:
    """A model on a configuration: what a container stores."""

    layout: Layout
    program: Program

    @property
    def config(self):
        return self.layout.config

    def image(self, quant) -> MemoryImage:
        """Memory with program, tables and weights; quant None reserves them for timing-only runs."""
        memory, units = MemoryImage(self.config), self.config.units
        if quant is not None:
            for port, beat, data in pack.pieces(self.layout, quant, self.program.words):
                memory.attach(port, beat * BEAT_BYTES, data)
            return memory
        memory.write(units, 0, np.array(self.program.words, np.uint64))
        for port, beat, beats in pack.sections(self.layout):
            memory.attach_absent(port, beat * BEAT_BYTES, beats * BEAT_BYTES)
        return memory


class Session:
    """Runs a compiled model on a backend. `kept` tokens are in the cache.

    head: results are logits; without it the last token's residual row, for runs of some layers only.
    """

    def __init__(self, compiled: Compiled, memory: MemoryImage, backend: Backend, layers: int | None = None,
                 first_layer: int = 0, head: bool = True) -> None:
        self.compiled, self.memory, self.backend = compiled, memory, backend
        self.layout = compiled.layout
        available = self.layout.model.text.n_layers
        self.layers = available - first_layer if layers is None else layers
        if not 0 < self.layers <= available - first_layer:
            raise UserError(f"layers {first_layer}..{first_layer + self.layers - 1} were asked for, {available} are "
                            "compiled: choose fewer")
        self.first_layer, self.kept, self._loaded = first_layer, 0, False
        self.head = head
        self.results: list[tuple[str, Result]] = []

    # --- language model --------------------------------------------------------------------------------

    def prefill(self, rows: Sequence[int], positions: Sequence[int] | None = None) -> np.ndarray:
        """Run tokens given by their row addresses (see `embed_row`, `feature_row`): logits int64[vocab],
        or the residual row int64[hidden] without head.

        positions: RoPE positions, by default those behind the cache. Meaningless numbers from a timing-only run.
        """
        n = len(rows)
        if n == 0 or self.kept + n > self.layout.context:
            raise UserError(f"{n} tokens after {self.kept} do not fit the compiled context of {self.layout.context} "
                            "tokens: compile with a longer context")
        positions = range(self.kept, self.kept + n) if positions is None else positions
        self._list("rows", [*rows, int(self.head)])
        attention = next(op for op in self.layout.model.text.layer if isinstance(op, ir.Attention))
        stride = self.layout.geo.granules(attention.head_dim)
        self._list("rope_rows", [self.layout.aux["rope"].base + p * stride for p in positions])
        aux = self.layout.aux
        self.run("lm", n_tokens=n, position=self.kept, row_list=aux["rows"].base * 16,
                 rope_list=aux["rope_rows"].base * 16, result=aux["logits"].base, n_layers=self.layers,
                 first_layer=self.first_layer)
        self.kept += n
        text = self.layout.model.text
        return self._read_rows(aux["logits"].base, 1, text.vocab if self.head else text.hidden)[0]

    def decode(self, token: int, position: int | None = None) -> np.ndarray:
        """One more token."""
        return self.prefill([self.embed_row(token)], None if position is None else [position])

    def embed_row(self, token: int) -> int:
        text = self.layout.model.text
        if not 0 <= token < text.vocab:
            raise UserError(f"token {token} is outside the vocabulary of {text.vocab}: use this model's tokenizer")
        return self.layout.aux["embed"].base + token * self.layout.geo.granules(text.hidden)

    def feature_row(self, index: int) -> int:
        return self.layout.aux["features"].base + index * self.layout.geo.granules(self.layout.model.text.hidden)

    def prompt_rows(self, ids: Sequence[int], image_token: int | None = None) -> list[int]:
        """Row addresses of a prompt; image tokens take feature rows in order."""
        features = iter(range(len(ids)))
        return [self.feature_row(next(features)) if i == image_token else self.embed_row(int(i)) for i in ids]

    # --- vision ----------------------------------------------------------------------------------------

    def encode_image(self, patches: np.ndarray, layers: int | None = None) -> np.ndarray:
        """Patches int[n_patches, 3*p*p] Q16 -> feature rows int64[n_features, hidden] (left in aux memory too)."""
        vision, aux = self.layout.model.vision, self.layout.aux
        if vision is None:
            raise UserError(f"{self.layout.model.name} has no vision tower: leave the image out")
        width = vision.stem[0].n_in
        data = pack.row_words(patches, self.layout.geo.granules(width))
        self.memory.write(self.compiled.config.units, aux["patches"].base * BEAT_BYTES, data)
        self.run("vision", patches=aux["patches"].base, result=aux["features"].base,
                 n_layers=vision.n_layers if layers is None else layers)
        n = vision.n_patches + (not vision.drop_class)
        return self._read_rows(aux["features"].base, n, self.layout.model.text.hidden)

    # --- machine ---------------------------------------------------------------------------------------

    def run(self, name: str, **arguments: int) -> Result:
        """Start an entry point; InternalError when the machine stops with an error."""
        entry = self.compiled.program.entries[name]
        if set(arguments) != set(entry["args"]):
            raise InternalError(f"entry {name} takes {entry['args']}")
        words = self.compiled.program.words
        invocation = Invocation(self.layout.aux["program"].base, len(words), entry["entry"],
                                tuple(arguments[a] for a in entry["args"]),
                                flags=KEEP_PROGRAM if self._loaded and self.backend.name != "functional" else 0)
        result = self.backend.run(self.compiled.config, self.memory, invocation)
        if not result.ok:
            raise InternalError(f"entry {name} stopped with {result.status.name} in unit {result.detail} at pc "
                                f"{result.pc}")
        self.results.append((name, result))
        return result

    def _list(self, section: str, addresses: Sequence[int]) -> None:
        self.memory.write(self.compiled.config.units, self.layout.aux[section].base * BEAT_BYTES,
                          np.array(addresses, np.uint32))

    def _read_rows(self, beat: int, n: int, width: int) -> np.ndarray:
        step = self.layout.geo.granules(width)
        data = self.memory.read(self.compiled.config.units, beat * BEAT_BYTES, n * step * BEAT_BYTES)
        return np.array(data).view(np.int32).reshape(n, -1)[:, :width].astype(np.int64)


# --- useful work -----------------------------------------------------------------------------------------

def text_macs(layout: Layout, n: int, start: int = 0, layers: int | None = None, head: bool = True) -> int:
    """Multiply-accumulates of n tokens after `start` cached ones (docs: MODELS.md, "Cost")."""
    text = layout.model.text
    linear = sum(op.n_in * op.n_out for op in ir.linears(text.layer))
    attention = next(op for op in text.layer if isinstance(op, ir.Attention))
    keys = n * start + n * (n + 1) // 2
    layer = n * linear + 2 * keys * attention.heads * attention.head_dim
    return layer * (text.n_layers if layers is None else layers) + head * text.head.n_in * text.head.n_out


def vision_macs(layout: Layout, layers: int | None = None) -> int:
    """Multiply-accumulates of one image: stem, layers, projector."""
    vision = layout.tower
    tokens = vision.n_patches + 1
    linear = sum(op.n_in * op.n_out for op in ir.linears(vision.layer))
    attention = next(op for op in vision.layer if isinstance(op, ir.Attention))
    layer = tokens * linear + 2 * tokens * tokens * attention.heads * attention.head_dim
    features = vision.n_patches + (not vision.drop_class)
    return (layer * (vision.n_layers if layers is None else layers)
            + vision.n_patches * vision.stem[0].n_in * vision.stem[0].n_out
            + features * sum(op.n_in * op.n_out for op in vision.projector))
