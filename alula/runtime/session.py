"""The host's side of a compiled model: arguments, row lists, feature rows."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from compiler import ir, pack
from compiler.kernels.select import bit_weights
from compiler.kernels.text import SEGMENT
from compiler.layout import mask_row_words
from compiler.program import Compiled
from hw.spec.config import BEAT_BYTES, GRANULE_LANES
from hw.spec.errors import InternalError, UserError
from hw.spec.run import Backend, Invocation, Result
from hw.spec.weights import ceil_div
from ref_model import selection
from ref_model.mask import BlockMask
from ref_model.reduction import Reduction
from sim.memory_image import MemoryImage

OTHERS_BIAS = 1 << 30
"""Added to the scores of tokens that are not visual: above every sum of shares of 63 heads."""


@dataclass
class Segment:
    """Layers first .. first + count - 1, which see the same tokens behind caches of the same length."""

    first: int
    count: int
    places: np.ndarray
    """Which of the prefill's tokens, ascending."""
    start: int
    """Tokens in the caches before."""
    by_score: bool = False
    """The machine chooses which of the visual tokens before these are; `places` has as many."""


class Session:
    """Runs a compiled model on a backend.

    kept: tokens that came in so far, the position of the next one. cached: tokens in every layer's cache, fewer where
    visual tokens were dropped. head: results are logits; without it the last token's residual row, for runs of some
    layers only.
    """

    def __init__(
        self,
        compiled: Compiled,
        memory: MemoryImage,
        backend: Backend,
        layers: int | None = None,
        first_layer: int = 0,
        head: bool = True,
    ) -> None:
        self.compiled, self.memory, self.backend = compiled, memory, backend
        self.layout = compiled.layout
        available = self.layout.model.text.n_layers
        self.layers = available - first_layer if layers is None else layers
        if not 0 < self.layers <= available - first_layer:
            raise UserError(
                f"layers {first_layer}..{first_layer + self.layers - 1} were asked for, {available} are "
                "compiled: choose fewer"
            )
        self.first_layer, self.kept = first_layer, 0
        self.head = head
        self.results: list[tuple[str, Result]] = []
        self.survivors: list[int] = []

    @property
    def kept(self) -> int:
        return self._kept

    @kept.setter
    def kept(self, count: int) -> None:
        """As if that many tokens had gone through every layer."""
        self._kept, self.cached = count, [count] * self.layers

    # --- language model --------------------------------------------------------------------------------

    def prefill(
        self,
        rows: Sequence[int],
        positions: Sequence[int] | None = None,
        mask: BlockMask | None = None,
        reduction: Reduction | None = None,
    ) -> np.ndarray:
        """Run tokens given by their row addresses (see `embed_row`, `feature_row`): logits int64[vocab],
        or the residual row int64[hidden] without head.

        positions: RoPE positions, by default those behind the cache; mask: key slots that are read and computed (None:
        all that are causal); reduction: visual tokens that are dropped between layers. Meaningless numbers from a
        timing-only run.
        """
        n = len(rows)
        if n == 0 or self.kept + n > self.layout.context:
            raise UserError(
                f"{n} tokens after {self.kept} do not fit the compiled context of {self.layout.context} "
                "tokens: compile with a longer context"
            )
        if reduction is not None:
            reduction.check(n, self.first_layer + self.layers)
        positions = range(self.kept, self.kept + n) if positions is None else positions
        aux = self.layout.aux
        segments = self._segments(n, reduction)
        rope = self._rope_rows(positions)
        first, *others = self._records(segments, rows, rope)
        self._put(aux["segments"].base, pack.row_words(others, 1))
        ranked = any(segment.by_score for segment in segments)
        if reduction is not None and ranked:
            self._refuse_ranking(reduction, mask)
            self._ranking_tables(segments, rope, reduction)
        self.run(
            "lm",
            ranked,
            **dict(zip(SEGMENT, first, strict=False)),
            first_layer=self.first_layer,
            mask=self._mask_table(mask, self.kept + n),
        )
        self._kept += n
        self.cached = [s.start + len(s.places) for s in segments for _ in range(s.count)]
        text = self.layout.model.text
        return self._read_rows(aux["logits"].base, 1, text.vocab if self.head else text.hidden)[0]

    def _refuse_ranking(self, reduction: Reduction, mask: BlockMask | None) -> None:
        option = next(drop for drop in reduction.drops if drop.by_score).option
        if mask is not None:
            raise UserError(f"{option} ranks tokens by attention to all of them: leave --attention-mask out")
        if self.kept:
            raise UserError(f"{option} is for the first tokens, {self.kept} are in the cache: start a new session")

    def _rope_rows(self, positions: Sequence[int]) -> list[int]:
        attention = next(op for op in self.layout.model.text.layer if isinstance(op, ir.Attention))
        stride = self.layout.geo.granules(attention.head_dim)
        return [self.layout.aux["rope"].base + p * stride for p in positions]

    def _segments(self, n: int, reduction: Reduction | None) -> list[Segment]:
        """Layers of n further tokens, put together while the same tokens go on behind caches of the same length."""
        segments: list[Segment] = []
        places = np.arange(n)
        for index, start in enumerate(self.cached):
            layer = self.first_layer + index
            drop = None if reduction is None else reduction.at(layer)
            if reduction is not None and drop is not None:
                places = places[reduction.keep(drop, places, None)]
            # A layer that ranks is a segment of its own: its last token has a chunk of its own.
            ranks = reduction is not None and reduction.scored(layer)
            if segments and drop is None and segments[-1].start == start and not ranks:
                segments[-1].count += 1
            else:
                segments.append(Segment(layer, 1, places, start, drop is not None and drop.by_score))
        return segments

    def _records(self, segments: list[Segment], rows: Sequence[int], rope: list[int]) -> list[list[int]]:
        """Records of every segment; writes their lists.

        A single token stays on the chip between segments, others go through section `residual`. Lists of survivors by
        score are the machine's: what stands there before is as good as any for a timing-only run.
        """
        aux, stride = self.layout.aux, self.layout.geo.granules(self.layout.model.text.hidden)
        on_chip, records = len(rows) == 1, list[list[int]]()
        lists: dict[str, list[int]] = {"rows": [], "rope_rows": []}
        before, source = np.arange(len(rows)), np.asarray(rows)
        for number, segment in enumerate(segments):
            last, stays = number == len(segments) - 1, on_chip and number > 0
            at = [aux[name].base * 16 + len(lists[name]) for name in ("rows", "rope_rows")]
            if not stays:
                lists["rows"] += source[np.searchsorted(before, segment.places)].tolist()
                if number and not segment.by_score and len(before) == len(segment.places):
                    at[1] = records[-1][3]  # the same tokens go on: only the machine may know which
                else:
                    lists["rope_rows"] += [rope[place] for place in segment.places]
            lists["rows"].append(int(self.head))
            for addresses in lists.values():  # whole beats
                addresses += [0] * (-len(addresses) % GRANULE_LANES)
            following = 0 if last else aux["segments"].base * 16 + number * GRANULE_LANES
            ranked, bias = (len(before), self._bias(number)) if segment.by_score else (0, 0)
            records.append(
                [
                    len(segment.places),
                    segment.start,
                    at[0],
                    0 if stays else at[1],
                    segment.count,
                    following,
                    segments[number - 1].start,
                    ranked,
                    bias,
                ]
            )
            before, source = segment.places, aux["residual"].base + stride * np.arange(len(segment.places))
        for name, addresses in lists.items():
            self._list(name, addresses)
        return records

    def _bias(self, number: int) -> int:
        """Beat of the biases for the ranking that makes segment `number`."""
        record = self.layout.ranking
        return (
            self.layout.aux["ranking"].base
            + record["bias"]
            + (number - 1) * self.layout.geo.cache_granules(self.layout.context)
        )

    def _ranking_tables(self, segments: list[Segment], rope: list[int], reduction: Reduction) -> None:
        """What the machine needs to rank: constants, addresses of residual and RoPE rows, biases of other tokens."""
        layout, geo = self.layout, self.layout.geo
        n, stride = len(rope), geo.granules(layout.model.text.hidden)
        first = next(number for number, segment in enumerate(segments) if segment.by_score)
        tables = {
            "bits": pack.row_words(bit_weights(geo.gpw), geo.gpw),
            "rows": pack.row_words(layout.aux["residual"].base + stride * np.arange(n)[:, None], 1),
            "rope": pack.row_words(np.array(rope)[segments[first - 1].places][:, None], 1),
            "masks": _masks(len(segments[first].places), geo.cache_granules(layout.context)),
        }
        for name, data in tables.items():
            self._put(layout.aux["ranking"].base + layout.ranking[name], data)
        for number, segment in enumerate(segments):
            if segment.by_score:
                places = segments[number - 1].places
                others = (places < reduction.start) | (places >= reduction.start + reduction.count)
                self._put(self._bias(number), pack.row_words(others * OTHERS_BIAS, geo.cache_granules(layout.context)))

    @property
    def choice(self) -> int:
        """The machine's own choice behind the last step with logits: the largest one's number, ties to the lowest."""
        units, beat = self.compiled.config.units, self.layout.aux["token"].base
        return int(np.array(self.memory.read(units, beat * BEAT_BYTES, 4)).view(np.uint32)[0])

    def decode(self, token: int, position: int | None = None) -> np.ndarray:
        """One more token."""
        return self.prefill([self.embed_row(token)], None if position is None else [position])

    def _mask_table(self, mask: BlockMask | None, tokens: int) -> int:
        """Writes the lists of present slots for that many tokens; the `mask` argument."""
        if mask is None:
            return 0
        geo, context = self.layout.geo, self.layout.context
        tile = 1 << geo.keys_per_slot_log2
        rows = ceil_div(tokens, tile)
        if mask.tile != tile or len(mask.present) < rows:
            raise UserError(
                f"an attention mask of {len(mask.present)} tiles of {mask.tile} tokens does not cover "
                f"{tokens} tokens in the tiles of {tile} of configuration {self.layout.config.name}"
            )
        table = np.zeros((rows, mask_row_words(geo, context)), np.uint32)
        for index, row in enumerate(table):
            runs = [first | count << 16 for first, count in mask.runs(index)]
            row[: 2 + len(runs)] = [len(mask.slots(index)), len(runs), *runs]
        self._list("mask", table)
        return self.layout.aux["mask"].base * 16

    def embed_row(self, token: int) -> int:
        text = self.layout.model.text
        if not 0 <= token < text.vocab:
            raise UserError(f"token {token} is outside the vocabulary of {text.vocab}: use this model's tokenizer")
        return self.layout.aux["embed"].base + token * self.layout.geo.granules(text.hidden)

    def feature_row(self, index: int) -> int:
        return self.layout.aux["features"].base + index * self.layout.geo.granules(self.layout.model.text.hidden)

    def prompt_rows(
        self, ids: Sequence[int], image_token: int | None = None, order: Iterable[int] | None = None
    ) -> list[int]:
        """Row addresses of a prompt; image tokens take feature rows one after another, or those of `order`
        (`ref_model.anyres.layout`), where negative ones are the newline token behind the last tile's."""
        vision = self.layout.model.vision
        newline = 0 if vision is None else vision.tiles * vision.n_patches
        features = iter(range(len(ids)) if order is None else [int(i) if i >= 0 else newline for i in order])
        return [self.feature_row(next(features)) if i == image_token else self.embed_row(int(i)) for i in ids]

    # --- vision ----------------------------------------------------------------------------------------

    def encode_image(
        self,
        patches: np.ndarray,
        layers: int | None = None,
        tile: int = 0,
        keep: int | None = None,
        strategy: str = "rank",
    ) -> np.ndarray:
        """Patches int[n_patches, 3*p*p] Q16 -> feature rows int64[n_features, hidden], left in aux memory too, behind
        those of the tiles before.

        keep: how many visual tokens survive the selection by the class token's attention (None: all, no selection);
        their patches' numbers are in `survivors` afterwards. strategy: rank (the strongest patches) or row (the
        strongest rows of the patch grid, as many whole ones as `keep` holds).
        """
        vision, aux = self.layout.model.vision, self.layout.aux
        if vision is None:
            raise UserError(f"{self.layout.model.name} has no vision tower: leave the image out")
        width = vision.stem[0].n_in
        data = pack.row_words(patches, self.layout.geo.granules(width))
        self.memory.write(self.compiled.config.units, aux["patches"].base * BEAT_BYTES, data)
        if not 0 <= tile < vision.tiles:
            raise UserError(f"tile {tile} of an image, {vision.tiles} are compiled: use this model's configuration")
        result = self.feature_row(tile * vision.n_patches)
        items, span = selection.items(keep, strategy, vision.n_patches)
        self._foresee(items, span)
        self.run(
            "vision",
            patches=aux["patches"].base,
            result=result,
            n_layers=vision.n_layers if layers is None else layers,
            keep=items,
            by_rows=int(span > 1),
        )
        n = items * span if items else vision.n_patches
        self.survivors = self._survivors(n) if items else list(range(n))
        return self._read_rows(result, n + (not vision.drop_class), self.layout.model.text.hidden)

    def _foresee(self, items: int, span: int) -> None:
        """The first items as survivors, where the machine will write its own: what a timing-only run goes by."""
        if not items:
            return
        record, first = self.layout.selection, int(span == 1)
        chosen = np.zeros(record.sizes["masks"] * 128, np.uint32)
        chosen[first : first + items] = 1
        above = chosen.reshape(-1, 16) @ (1 << np.arange(15, -1, -1)).astype(np.uint32)
        words = np.stack([np.zeros_like(above), above], axis=1).astype(np.uint32)
        beat = self.layout.aux["selection"].base + record["masks"]
        self.memory.write(self.compiled.config.units, beat * BEAT_BYTES, words)

    def _survivors(self, n: int) -> list[int]:
        """The first n numbers of the machine's list of survivors."""
        beat = self.layout.aux["selection"].base + self.layout.selection["kept"]
        data = self.memory.read(self.compiled.config.units, beat * BEAT_BYTES, n * 4)
        return np.array(data).view(np.uint32).tolist()

    # --- machine ---------------------------------------------------------------------------------------

    def run(self, name: str, own_scalars: bool = False, **arguments: int) -> Result:
        """Start an entry point; InternalError when the machine stops with an error. own_scalars: see `Invocation`."""
        entry = self.compiled.program.entries[name]
        if set(arguments) != set(entry["args"]):
            raise InternalError(f"entry {name} takes {entry['args']}")
        words = self.compiled.program.words
        invocation = Invocation(
            self.layout.aux["program"].base,
            len(words),
            entry["entry"],
            tuple(arguments[a] for a in entry["args"]),
            own_scalars=own_scalars or bool(arguments.get("keep")),
        )
        return self.start(name, invocation)

    def start(self, name: str, invocation: Invocation) -> Result:
        """Run an invocation. Instruction memory grows fourfold until it holds the program (a stream for one length may
        not fit): few sizes, each of which the RTL is built for."""
        config = self.compiled.config
        while invocation.program_length > config.imem_instructions:
            config = replace(config, imem_instructions=4 * config.imem_instructions)
        result = self.backend.run(config, self.memory, invocation)
        if not result.ok:
            raise InternalError(
                f"entry {name} stopped with {result.status.name} in unit {result.detail} at pc {result.pc}"
            )
        self.results.append((name, result))
        return result

    def _list(self, section: str, addresses: Sequence[int] | np.ndarray) -> None:
        self.memory.write(
            self.compiled.config.units, self.layout.aux[section].base * BEAT_BYTES, np.array(addresses, np.uint32)
        )

    def _put(self, beat: int, data: np.ndarray) -> None:
        """Bytes into auxiliary memory."""
        self.memory.write(self.compiled.config.units, beat * BEAT_BYTES, data)

    def _read_rows(self, beat: int, n: int, width: int) -> np.ndarray:
        step = self.layout.geo.granules(width)
        data = self.memory.read(self.compiled.config.units, beat * BEAT_BYTES, n * step * BEAT_BYTES)
        return np.array(data).view(np.int32).reshape(n, -1)[:, :width].astype(np.int64)


def _masks(n: int, granules: int) -> np.ndarray:
    """Words as the ranking leaves them when the first n tokens survive: a timing-only run walks over these."""
    bits = np.zeros(granules * GRANULE_LANES, np.uint32)
    bits[:n] = 1
    words = bits.reshape(granules, -1) @ (1 << np.arange(GRANULE_LANES)[::-1]).astype(np.uint32)
    return np.repeat(words, 2).astype(np.uint32).view(np.uint8)
