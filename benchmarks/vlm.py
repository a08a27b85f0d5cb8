"""Captions behind held-out pictures with vits-smollm2's real weights: is a caption likelier behind its own picture, and
does that survive the integers, 4 bits and fewer visual tokens?

For every held-out pair the caption's negative log likelihood (nats a token) is taken behind its own picture and behind
another pair's. `gap` is wrong less right: what the picture is worth.
"""

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Protocol

import numpy as np
import torch

from alula.session import calibration
from ref_model.captions import PROMPT, held_out
from ref_model.checkpoints import Checkpoint, open_checkpoint
from ref_model.compress import Compression
from ref_model.golden import GoldenText, GoldenVision
from ref_model.mask import BlockMask
from ref_model.modules import LlavaModel
from ref_model.preprocess import image_pixels, patches
from ref_model.quantise import QuantModel, quantise
from ref_model.tokenizer import IMAGE_PLACEHOLDER, load_tokenizer

MODEL = "vits-smollm2"
DEPENDS = (
    "hw/spec/attention.py",
    "hw/spec/numerics.py",
    "hw/spec/rows.py",
    "ref_model/captions.py",
    "ref_model/compress/*.py",
    "ref_model/data/vits_smollm2/*",
    "ref_model/golden/*.py",
    "ref_model/modules.py",
    "ref_model/preprocess.py",
    "ref_model/quantise.py",
)
PAIRS = 117
"""Pairs measured: all that were held out."""
PROCESSES = 2
ONE = 1 << 16
"""Golden values are Q16."""


@dataclass(frozen=True)
class Pairs:
    """blocks: float32[n, n_patches, 3*p*p]; prompt: ids with one image token; captions: ids of each."""

    blocks: torch.Tensor
    prompt: list[int]
    captions: list[list[int]]

    @property
    def tokens(self) -> int:
        """Caption tokens of all pairs."""
        return sum(map(len, self.captions))


@dataclass(frozen=True)
class Branches:
    """Texts that begin alike, one row a token: the common start, then each text's own tokens.

    positions: int64[n] in a text; present: bool[n, n], rows that a row may see; targets: (row, next token) pairs of
    each text.
    """

    ids: list[int]
    positions: np.ndarray
    present: np.ndarray
    targets: list[tuple[slice, list[int]]]


def branches(prompt: Sequence[int], captions: Sequence[Sequence[int]], kept: np.ndarray, n_visual: int) -> Branches:
    """Captions behind `kept` of n_visual visual tokens and a prompt of an image token and text.

    Row i < len(kept) is a visual token; `ids` are those of the rows behind. A caption's rows start with a copy of the
    prompt's last token, which predicts its first one.
    """
    start, last = list(prompt[1:-1]), prompt[-1]
    behind = n_visual + len(start)
    ids, positions, targets = start, [*kept, *range(n_visual, behind)], []
    parts = [0] * len(positions)
    for number, caption in enumerate(captions, 1):
        own = [last, *caption[:-1]]
        targets.append((slice(len(positions), len(positions) + len(own)), list(caption)))
        ids, parts = ids + own, parts + [number] * len(own)
        positions += range(behind, behind + len(own))
    part = np.array(parts)
    present = np.tril((part[None] == 0) | (part[None] == part[:, None]))
    return Branches(ids, np.array(positions), present, targets)


class Model(Protocol):
    """What `measure_one` needs of a model."""

    def visual(self, blocks: torch.Tensor) -> np.ndarray:
        """Visual tokens [n_features, hidden] of one picture's patches."""
        ...

    def logits(self, visual: np.ndarray, texts: Branches) -> np.ndarray:
        """float64[len(texts.ids), vocab] behind visual tokens [n, hidden]."""
        ...


class Float:
    """The float32 reference."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.model = LlavaModel.from_state(checkpoint.config, checkpoint.state(torch.float32))

    @torch.no_grad()
    def visual(self, blocks: torch.Tensor) -> np.ndarray:
        return self.model.multi_modal_projector(self.model.vision_tower(blocks)).numpy()

    @torch.no_grad()
    def logits(self, visual: np.ndarray, texts: Branches) -> np.ndarray:
        text = self.model.language_model
        x = torch.cat((torch.from_numpy(visual), text.embed_tokens(torch.tensor(texts.ids))))
        mask = torch.from_numpy(texts.present)
        states, _ = text(x, torch.from_numpy(texts.positions), text.empty_cache(), mask)
        return self.model.lm_head(states[len(visual) :]).double().numpy()


class Golden:
    """The golden integer model."""

    def __init__(self, model: QuantModel) -> None:
        self.model = model

    def visual(self, blocks: torch.Tensor) -> np.ndarray:
        return GoldenVision(self.model).forward(blocks.numpy())

    def logits(self, visual: np.ndarray, texts: Branches) -> np.ndarray:
        text = GoldenText(self.model)
        rows = np.concatenate((visual, text.embed(texts.ids)))
        states = text.forward(rows, texts.positions.tolist(), BlockMask(1, texts.present))
        return text.logits(states[len(visual) :]).astype(np.float64) / ONE


def golden_int8(checkpoint: Checkpoint) -> Golden:
    """W8A8, as every command has it."""
    return Golden(quantise(checkpoint, maxima=calibration(MODEL, checkpoint)))


def golden_4_bits(checkpoint: Checkpoint) -> Golden:
    """4-bit weights of the decoder, rounded to nearest (`--recipe plain`), the rest W8A8."""
    compression = Compression.parse("4", "dense", "plain")
    assert compression is not None
    return Golden(quantise(checkpoint, compression=compression.compressor(checkpoint)))


MODELS: dict[str, tuple[Callable[[Checkpoint], Model], tuple[int, ...]]] = {
    "golden W8A8": (golden_int8, (1, 2, 4)),
    "float": (Float, (1, 2, 4)),
    "golden 4 bits, plain": (golden_4_bits, (1,)),
}
"""How to make a model, and which share of the visual tokens is kept (one of so many); the longest first."""


def read_pairs(limit: int | None = None) -> Pairs:
    """The shipped held-out pairs, prepared; `limit`: the first ones only."""
    vision, tokenizer = open_checkpoint(MODEL).config.vision, load_tokenizer(MODEL)
    assert vision is not None
    chosen = held_out()[:limit]
    blocks = [patches(image_pixels(pair.picture, vision), vision.patch_size) for pair in chosen]
    return Pairs(
        torch.stack(blocks),
        tokenizer.encode(IMAGE_PLACEHOLDER + PROMPT),
        [tokenizer.encode(pair.caption) for pair in chosen],
    )


def evenly(n_visual: int, kept: int) -> np.ndarray:
    """Indices int[kept] of visual tokens kept, evenly spaced in every row of a square picture and between rows."""
    grid = round(n_visual**0.5)
    places = np.arange(n_visual)
    if kept == n_visual:
        return places
    row, column = places // grid, places % grid
    chosen = (row + column) % 2 == 0 if 2 * kept == n_visual else (row % 2 == 0) & (column % 2 == 0)
    return places[chosen]


def nats(logits: np.ndarray, targets: Sequence[int]) -> float:
    """Sum of the negative log likelihoods of targets[n] under logits float[n, vocab]."""
    values = logits - logits.max(axis=-1, keepdims=True)
    return float((np.log(np.exp(values).sum(axis=-1)) - values[np.arange(len(targets)), list(targets)]).sum())


def standard_error(parts: np.ndarray) -> float:
    """Of the sum of independent parts."""
    return float(parts.std() * len(parts) ** 0.5)


def losses(model: Model, visual: Sequence[np.ndarray], pairs: Pairs, share: int = 1, choices: int = 2) -> np.ndarray:
    """float64[choices, n]: nats of each pair's caption behind its own picture and behind those of the next pairs.

    visual: of `model.visual`; one token of `share` is kept and keeps its position.
    """
    n_visual, n = len(visual[0]), len(visual)
    kept = evenly(n_visual, n_visual // share)
    found = np.zeros((choices, n))
    for number, tokens in enumerate(visual):
        asked = [(number - shift) % n for shift in range(choices)]
        texts = branches(pairs.prompt, [pairs.captions[i] for i in asked], kept, n_visual)
        logits = model.logits(tokens[kept], texts)
        for shift, (caption, (rows, targets)) in enumerate(zip(asked, texts.targets, strict=True)):
            found[shift, caption] = nats(logits[rows.start - len(kept) : rows.stop - len(kept)], targets)
    return found


def measure_one(model: Model, visual: Sequence[np.ndarray], pairs: Pairs, share: int = 1) -> dict:
    """Nats a caption token; arguments as of `losses`. The wrong picture is the next pair's.

    by_pair: each pair's part of the gap, float64[n].
    """
    found = losses(model, visual, pairs, share) / pairs.tokens
    (right, wrong), by_pair = found.sum(1).tolist(), found[1] - found[0]
    return {
        "visual_tokens": len(visual[0]) // share,
        "right": right,
        "wrong": wrong,
        "gap": wrong - right,
        "gap_standard_error": standard_error(by_pair),
        "by_pair": by_pair,
    }


def measure_model(name: str, limit: int, shares: Sequence[int] | None = None) -> list[dict]:
    """A run for every share of the visual tokens (None: those of `MODELS`); the first `limit` pairs."""
    torch.set_num_threads(1)
    checkpoint, pairs, runs = open_checkpoint(MODEL), read_pairs(limit), []
    began, (make, all_shares) = time.monotonic(), MODELS[name]
    model = make(checkpoint)
    visual = [model.visual(blocks) for blocks in pairs.blocks]
    for share in shares or all_shares:
        found = measure_one(model, visual, pairs, share)
        runs.append({"model": name, **found, "wall_seconds": time.monotonic() - began})
        began = time.monotonic()
    return runs


def measure(limit: int = PAIRS) -> dict:
    """One entry a model and number of visual tokens."""
    began, pairs = time.monotonic(), read_pairs(limit)
    with ProcessPoolExecutor(PROCESSES, get_context("spawn")) as pool:
        waiting = {name: pool.submit(measure_model, name, limit) for name in MODELS}
        found = {name: job.result() for name, job in waiting.items()}
    reference = {run["visual_tokens"]: run for run in found["float"]}
    rows = [_compared(run, reference[run["visual_tokens"]], runs[0]) for runs in found.values() for run in runs]
    return {
        "model": MODEL,
        "pairs": len(pairs.captions),
        "caption_tokens": pairs.tokens,
        "unit": "nats a caption token",
        "wrong_picture": "the next pair's",
        "kept_tokens": "half: a chequerboard; a quarter: every second row and column; positions kept",
        "gap_of_float": "of the float model's gap with as many visual tokens; its standard error is of the "
        "difference, pair by pair",
        "wall_seconds": time.monotonic() - began,
        "processes": PROCESSES,
        "load_average": os.getloadavg()[-1],
        "runs": rows,
    }


def _compared(run: dict, reference: dict, whole: dict) -> dict:
    """A row: a run beside the float model's with as many visual tokens, and beside the same model's with all."""
    difference = standard_error(run["by_pair"] - reference["by_pair"])
    shown = {key: value for key, value in run.items() if key != "by_pair"}
    return shown | {
        "gap_of_float": run["gap"] / reference["gap"],
        "gap_of_float_standard_error": difference / reference["gap"],
        "gap_of_all_tokens": run["gap"] / whole["gap"],
    }


CONFIRMED, SHARE = ("golden W8A8", "float"), 4
"""Models and the share of visual tokens that are measured again to confirm a result: minutes instead of an hour."""
_CONFIRMED_KEYS = ("model", "visual_tokens", "right", "wrong", "gap", "gap_standard_error")


def confirm(result: dict) -> list[tuple[dict, dict]]:
    """(recorded row, the same measured now) of two models with a quarter of the visual tokens."""
    pairs = []
    for name in CONFIRMED:
        (found,) = measure_model(name, PAIRS, (SHARE,))
        (recorded,) = [
            row for row in result["runs"] if (row["model"], row["visual_tokens"]) == (name, found["visual_tokens"])
        ]
        pairs.append(tuple({key: row[key] for key in _CONFIRMED_KEYS} for row in (recorded, found)))
    return pairs
