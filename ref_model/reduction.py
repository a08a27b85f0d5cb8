"""Visual-token reduction inside the language model: which visual tokens go on from a layer on.

Places count the tokens of one prefill from 0, numbers its visual tokens from 0. Tokens that go on keep their order and
their RoPE positions; a layer's cache holds the tokens that passed it.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from hw.spec.errors import UserError

Array = np.ndarray
REFERENCE_TEXT, REFERENCE_START, REFERENCE_IMAGE = 40, 35, 576
"""LLaVA-1.5's prompt: 35 text tokens, 576 visual ones, 5 text tokens. Synthetic prompts have its proportions."""


@dataclass(frozen=True)
class Drop:
    """Before layer `layer` (from 0) all but `kept` visual tokens are dropped.

    by_score: those stay that get most attention of the last token in the layer before; else those of `numbers`, or
    evenly spaced ones of those still there.
    """

    layer: int
    kept: int
    by_score: bool = False
    numbers: tuple[int, ...] | None = None

    @property
    def option(self) -> str:
        """How the command line says it."""
        if self.by_score:
            return f"--fastv {self.layer}:{self.kept}"
        return f"--keep-schedule {self.layer}:{self.kept}" if self.kept else f"--exit-layer {self.layer}"

    def pick(self, here: Array, scores: Array | None) -> Array:
        """Indices into `here` (numbers of the visual tokens still there, ascending) of those that go on, ascending.

        Without scores as many as by score, evenly spaced.
        """
        if self.numbers is not None:
            return np.flatnonzero(np.isin(here, self.numbers))
        if not self.by_score or scores is None:
            return np.arange(self.kept) * len(here) // max(self.kept, 1)
        return np.sort(np.lexsort((np.arange(len(here)), -scores))[: self.kept])


@dataclass(frozen=True)
class Reduction:
    """Drops in ascending order of layers, for the visual tokens at places start .. start + count - 1."""

    start: int
    count: int
    drops: tuple[Drop, ...]

    def check(self, n: int, n_layers: int) -> None:
        """UserError unless it fits a prompt of n tokens through layers 0 .. n_layers - 1."""
        if self.start < 0 or self.count < 0 or self.start + self.count >= max(n, 1):
            raise UserError(
                f"{self.count} visual tokens from place {self.start} on and the last token do not fit a "
                f"prompt of {n} tokens: choose others with --image-tokens and --image-start"
            )
        left, before = self.count, 0
        for drop in self.drops:
            if not before < drop.layer < n_layers:
                raise UserError(
                    f"{drop.option}: layer {drop.layer} is outside {before + 1}..{n_layers - 1}, where "
                    "visual tokens can still be dropped: choose another"
                )
            if drop.kept > left:
                raise UserError(f"{drop.option}: {drop.kept} visual tokens are to go on, there are {left}: keep fewer")
            if drop.numbers is not None and (stray := set(drop.numbers) - set(map(int, self._static(before)))):
                raise UserError(
                    f"{drop.option}: visual token {min(stray)} is not among those that layer {before} has "
                    f"({left} of 0..{self.count - 1}): name others"
                )
            if drop.kept and not drop.by_score and any(d.by_score for d in self.drops if d.layer < drop.layer):
                raise UserError(
                    f"{drop.option}: after a drop by score nobody knows which visual tokens are left: drop "
                    "by score again, or all of them with --exit-layer"
                )
            left, before = drop.kept, drop.layer

    def report(self) -> dict:
        """What a run's JSON says of it."""
        drops = [{"layer": drop.layer, "kept": drop.kept, "by_score": drop.by_score} for drop in self.drops]
        return {"image_start": self.start, "image_tokens": self.count, "drops": drops}

    def _static(self, layer: int) -> Array:
        """Numbers of the visual tokens in a layer, as far as that is known without scores."""
        here = np.arange(self.count)
        for drop in self.drops:
            if drop.layer <= layer and not drop.by_score:
                here = here[drop.pick(here, None)]
        return here

    def at(self, layer: int) -> Drop | None:
        """The drop before a layer."""
        return next((drop for drop in self.drops if drop.layer == layer), None)

    def scored(self, layer: int) -> bool:
        """Whether the attention that tokens get in a layer decides about them."""
        following = self.at(layer + 1)
        return following is not None and following.by_score

    def keep(self, drop: Drop, places: Array, scores: Array | None) -> Array:
        """Indices into `places` (of all tokens still there) that go on; scores: one a token still there."""
        visual = np.flatnonzero((places >= self.start) & (places < self.start + self.count))
        kept = visual[drop.pick(places[visual] - self.start, None if scores is None else scores[visual])]
        return np.sort(np.concatenate([np.setdiff1d(np.arange(len(places)), visual), kept])).astype(np.int64)

    def tokens(self, n: int, n_layers: int) -> list[int]:
        """Tokens of a prompt of n that every layer sees."""
        counts, left = [], self.count
        for layer in range(n_layers):
            drop = self.at(layer)
            left = left if drop is None else drop.kept
            counts.append(n - self.count + left)
        return counts


def tokens_by_layer(reduction: Reduction | None, n: int, n_layers: int) -> list[int]:
    """Tokens that every layer sees, all of them without a reduction."""
    return [n] * n_layers if reduction is None else reduction.tokens(n, n_layers)


# --- command line ------------------------------------------------------------------------------------------


def _pairs(option: str, text: str) -> Iterator[tuple[int, int]]:
    for part in text.split(","):
        layer, colon, kept = part.strip().partition(":")
        if not colon or not layer.isdecimal() or not kept.isdecimal():
            raise UserError(f"{option} {text!r} is no list of layer:count: give for example 8:144,16:58")
        if int(kept) == 0:
            raise UserError(f"{option} {text!r} keeps 0 visual tokens: keep at least 1, or use --exit-layer")
        yield int(layer), int(kept)


def _listed(path: Path) -> Iterator[Drop]:
    """Drops of a JSON file: {layer: [numbers of visual tokens]}."""
    try:
        lists = {
            int(layer): tuple(sorted({int(n) for n in numbers}))
            for layer, numbers in json.loads(path.read_text()).items()
        }
    except (OSError, ValueError, TypeError, AttributeError):
        raise UserError(f"--keep-schedule: {path} is no readable JSON object of layer: [visual tokens]") from None
    for layer, numbers in lists.items():
        if not numbers:
            raise UserError(f"--keep-schedule: {path} keeps 0 visual tokens from layer {layer} on: use --exit-layer")
        yield Drop(layer, len(numbers), numbers=numbers)


def parse_drops(
    keep_schedule: str | None = None, exit_layer: int | None = None, fastv: str | None = None
) -> tuple[Drop, ...]:
    """The drops that `--keep-schedule`, `--exit-layer` and `--fastv` ask for, by layer."""
    drops: list[Drop] = []
    if keep_schedule is not None and keep_schedule.endswith(".json"):
        drops += _listed(Path(keep_schedule))
    elif keep_schedule is not None:
        drops += [Drop(*pair) for pair in _pairs("--keep-schedule", keep_schedule)]
    if fastv is not None:
        drops += [Drop(*pair, by_score=True) for pair in _pairs("--fastv", fastv)]
    if exit_layer is not None:
        drops.append(Drop(exit_layer, 0))
    drops.sort(key=lambda drop: drop.layer)
    for a, b in pairwise(drops):
        if a.layer == b.layer:
            raise UserError(f"{b.option}: layer {b.layer} drops tokens already ({a.option}): choose another layer")
    return tuple(drops)


def visual_range(n: int, n_visual: int, count: int | None = None, start: int | None = None) -> tuple[int, int]:
    """(start, count) of the visual tokens of a synthetic prompt of n tokens; what is not given as in LLaVA's prompt."""
    reference = REFERENCE_TEXT + REFERENCE_IMAGE
    chosen = min(n_visual, REFERENCE_IMAGE * n // reference) if count is None else count
    return (n - chosen) * REFERENCE_START // REFERENCE_TEXT if start is None else start, chosen


def visual_places(ids: Sequence[int], image_token: int | None) -> tuple[int, int]:
    """(start, count) of the image tokens of a prompt; UserError unless they lie side by side."""
    places = [at for at, token in enumerate(ids) if token == image_token]
    if not places or places[-1] - places[0] + 1 != len(places):
        raise UserError("visual-token reduction needs a prompt with one image")
    return places[0], len(places)
