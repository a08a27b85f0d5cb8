"""Trains the projector of vits-smollm2: `python -m ref_model.train_projector FOLDER [--minutes 30]`.

FOLDER holds `node_modules` of the four npm packages in `SOURCES` (see ref_model/data/vits_smollm2/README.md). Tower and
language model stay as they are; the loss is the caption's negative log likelihood behind an image's visual tokens.
Words are split into training, validation and held-out ones by a hash of the emoji's code, for all drawings alike:
validation chooses the step that is kept, held-out pairs are only looked at in the end.
"""

import argparse
import hashlib
import json
import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from ref_model.captions import CAPTION, PROMPT, write_held_out
from ref_model.checkpoints import packaged_path
from ref_model.checkpoints.dinov2_onnx import vision_tensors
from ref_model.checkpoints.gguf_file import GgufCheckpoint
from ref_model.checkpoints.vits_smollm2 import NAME, PROJECTOR, TOWER
from ref_model.config import LlavaConfig, named_config
from ref_model.decoder import LlamaDecoderLayer, LlamaModel, causal_mask, rope_tables
from ref_model.preprocess import image_pixels, patches
from ref_model.tokenizer import load_tokenizer
from ref_model.vision import Projector, VisionTower

SOURCES = (
    "emoji-datasource-google@16.0.0",
    "emoji-datasource-twitter@16.0.0",
    "@lobehub/fluent-emoji-3d@1.1.0",
    "emojilib@4.0.3",
)
LEFT_OUT = ("Flags", "Symbols", "Component")
"""Categories whose names cannot be read off the picture."""
TOPIC = "\nSomething to do with"
TOPIC_SHARE = 0.3
"""Share of the training captions that are one of the emoji's keywords instead of its name."""
PEAK_RATE, WARM_UP, DECAY, BATCH = 2e-3, 50, 0.05, 16
KEPT = (64, 32, 16, 16, 16)
"""Visual tokens kept in a training step, drawn at random: most steps are cheap, and fewer tokens stay useful."""


@dataclass(frozen=True)
class Pair:
    """One emoji: `code` in hexadecimal, its name, its keywords and its drawings (one file a source)."""

    code: str
    name: str
    keywords: tuple[str, ...]
    drawings: tuple[Path, ...]

    @property
    def part(self) -> str:
        """ "held-out" (10 %), "validation" (5 %) or "training", by a hash of the code."""
        share = int(hashlib.sha256(self.code.encode()).hexdigest()[:8], 16) / 2**32
        return "held-out" if share < 0.1 else "validation" if share < 0.15 else "training"


def read_pairs(folder: Path) -> list[Pair]:
    """All emoji but `LEFT_OUT` and joined sequences (variants of others), the drawing under Apache-2.0 first."""
    modules = folder / "node_modules"
    words = json.loads((modules / "emojilib/dist/emoji-en-US.json").read_text(encoding="utf-8"))
    pairs = []
    for entry in json.loads((modules / "emoji-datasource-google/emoji.json").read_text(encoding="utf-8")):
        code = entry["unified"].lower()
        if entry["category"] in LEFT_OUT or "200d" in code:
            continue
        name, *keywords = (word.replace("_", " ") for word in words["".join(chr(int(c, 16)) for c in code.split("-"))])
        files = (
            modules / "emoji-datasource-google/img/google/64" / entry["image"],
            modules / "emoji-datasource-twitter/img/twitter/64" / entry["image"],
            modules / "@lobehub/fluent-emoji-3d/assets" / f"{code}.webp",
        )
        plain = tuple(word for word in keywords if word.isascii() and word.replace(" ", "").isalpha())
        pairs.append(Pair(code, name.lower(), plain, tuple(file for file in files if file.exists())))
    return pairs


def on_white(file: Path) -> Image.Image:
    """RGB picture of a drawing with transparency."""
    drawing = Image.open(file).convert("RGBA")
    picture = Image.new("RGBA", drawing.size, "white")
    picture.alpha_composite(drawing)
    return picture.convert("RGB")


def varied(picture: Image.Image, rng: random.Random) -> Image.Image:
    """The picture at 65..100 % of its size, somewhere on a pale square."""
    edge = picture.width
    square = Image.new("RGB", (edge, edge), tuple(rng.randrange(200, 256) for _ in range(3)))
    size = round(edge * rng.uniform(0.65, 1))
    small = picture.resize((size, size), Image.Resampling.BICUBIC)
    square.paste(small, (rng.randint(0, edge - size), rng.randint(0, edge - size)))
    return square


# --- frozen ends ---------------------------------------------------------------------------------------


def open_tower(config: LlavaConfig) -> VisionTower:
    """The float tower."""
    assert config.vision is not None
    tower = VisionTower(config.vision)
    tensors = vision_tensors(packaged_path(NAME, TOWER), config.vision)
    tower.load_state_dict({name.removeprefix("vision_tower."): tensor for name, tensor in tensors.items()})
    return tower.eval().requires_grad_(False)


def feature_table(pairs: Sequence[Pair], config: LlavaConfig) -> Tensor:
    """float16[pairs, 2 * drawings, n_features, vision hidden]: each drawing as it is, and varied. A missing drawing is
    replaced by the first one."""
    tower, vision = open_tower(config), config.vision
    assert vision is not None
    rows = []
    for number, pair in enumerate(pairs):
        files = [*pair.drawings, *pair.drawings[:1] * (3 - len(pair.drawings))]
        rng = random.Random(pair.code)
        pictures = [on_white(file) for file in files]
        pictures += [varied(picture, rng) for picture in pictures]
        blocks = torch.stack([patches(image_pixels(picture, vision), vision.patch_size) for picture in pictures])
        with torch.inference_mode():
            rows.append(torch.func.vmap(tower)(blocks).half())
        if number % 100 == 0:
            print(f"features of {number} of {len(pairs)} emoji", flush=True)
    return torch.stack(rows)


class BatchedDecoder:
    """SmolLM2 over a batch in bfloat16 (the residual in float32), its weights frozen."""

    def __init__(self, config: LlavaConfig) -> None:
        state = GgufCheckpoint(packaged_path("smollm2-135m")).state(torch.float32)
        prefix = "language_model."
        self.model = LlamaModel(config.text)
        self.model.load_state_dict(
            {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
        )
        self.model.eval().requires_grad_(False)
        self.table = self.model.embed_tokens.weight.clone()
        self.model.bfloat16()

    def logits(self, x: Tensor, positions: Tensor, n_last: int) -> Tensor:
        """float32[batch, n_last, vocab] of embeddings float32[batch, seq, hidden] at positions int64[seq]."""
        cos, sin = rope_tables(self.model.config, positions)
        for layer in self.model.layers:
            assert isinstance(layer, LlamaDecoderLayer)
            x = x + self._attention(layer, layer.input_layernorm(x.bfloat16()), cos, sin).float()
            x = x + layer.mlp(layer.post_attention_layernorm(x.bfloat16())).float()
        x = self.model.norm(x[:, -n_last:].bfloat16())
        return functional.linear(x, self.model.embed_tokens.weight).float()

    @staticmethod
    def _attention(layer: LlamaDecoderLayer, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        block = layer.self_attn
        q, k, v = (
            projection(x).unflatten(-1, (-1, block.head_dim)).transpose(1, 2)
            for projection in (block.q_proj, block.k_proj, block.v_proj)
        )
        q, k = (_rotate(part, cos, sin) for part in (q, k))
        group = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        # Written out: the library's fused kernel takes a quarter of a step's time on sequences this short.
        scores = (q @ k.transpose(2, 3)).float() * block.head_dim**-0.5
        scores = scores.masked_fill(~causal_mask(x.shape[1], x.shape[1]), -math.inf)
        heads = scores.softmax(-1).bfloat16() @ v
        return block.o_proj(heads.transpose(1, 2).flatten(2))


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    low, high = x.float().chunk(2, dim=-1)
    return (x * cos + torch.cat((-high, low), dim=-1) * sin).bfloat16()


# --- training ------------------------------------------------------------------------------------------


class Trainer:
    """Projector, frozen ends, and what they are trained on.

    features: float16[pairs, drawings, n_features, vision hidden] of all pairs, in their order.
    """

    def __init__(self, config: LlavaConfig, pairs: Sequence[Pair], features: Tensor) -> None:
        assert config.vision is not None
        self.pairs, self.features = pairs, features
        self.decoder, self.tokenizer = BatchedDecoder(config), load_tokenizer("smollm2-135m")
        self.projector = Projector(config.vision.hidden, config.text.hidden)
        self.parts = {
            part: [i for i, pair in enumerate(pairs) if pair.part == part]
            for part in ("training", "validation", "held-out")
        }
        self._initialise()

    def _initialise(self) -> None:
        """The projector works on standardised values on both sides: one learning rate suits all of it."""
        sample, table = self.features[self.parts["training"]].float().flatten(0, 2), self.decoder.table
        self.mean, self.deviation = sample.mean(0), sample.std(0)
        self.centre, self.scale = table.mean(0), table.std()
        for linear in (self.projector.linear_1, self.projector.linear_2):
            torch.nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
            torch.nn.init.zeros_(linear.bias)

    def visual_tokens(self, visual: Tensor) -> Tensor:
        """float[..., text hidden] of features float[..., vision hidden]."""
        return self.centre + self.scale * self.projector((visual - self.mean) / self.deviation)

    def folded(self) -> dict[str, Tensor]:
        """The projector's float16 tensors that do the same without standardisation."""
        first, second = self.projector.linear_1, self.projector.linear_2
        weight = first.weight / self.deviation
        tensors = {
            "linear_1.weight": weight,
            "linear_1.bias": first.bias - weight @ self.mean,
            "linear_2.weight": second.weight * self.scale,
            "linear_2.bias": second.bias * self.scale + self.centre,
        }
        return {name: tensor.detach().half().contiguous() for name, tensor in tensors.items()}

    def load(self, file: Path) -> None:
        """Go on with a folded projector, for evaluation."""
        self.projector.load_state_dict(load_file(file))
        self.mean, self.deviation, self.centre, self.scale = (torch.tensor(v) for v in (0.0, 1.0, 0.0, 1.0))

    def loss(self, visual: Tensor, kept: Tensor, prompt: str, captions: Sequence[str]) -> Tensor:
        """float32[batch]: nats of each caption behind visual features float[batch, kept, width] and a prompt."""
        start = self.tokenizer.encode(prompt)
        texts = [self.tokenizer.encode(caption) for caption in captions]
        longest = max(map(len, texts))
        ids = torch.tensor([start + text + [0] * (longest - len(text)) for text in texts])
        n_visual = self.features.shape[2]
        positions = torch.cat((kept, torch.arange(n_visual, n_visual + ids.shape[1])))
        x = torch.cat((self.visual_tokens(visual), self.decoder.table[ids]), dim=1)
        logits = self.decoder.logits(x[:, :-1], positions[:-1], longest)
        targets = torch.tensor([text + [-100] * (longest - len(text)) for text in texts])
        losses = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none", ignore_index=-100)
        return losses.view(targets.shape).sum(1)

    def step(self, rng: random.Random) -> Tensor:
        """Mean nats a token of one training batch."""
        chosen = rng.choices(self.parts["training"], k=BATCH)
        topic = rng.random() < TOPIC_SHARE
        words = [
            rng.choice(self.pairs[i].keywords or (self.pairs[i].name,)) if topic else self.pairs[i].name for i in chosen
        ]
        kept = torch.tensor(sorted(rng.sample(range(self.features.shape[2]), rng.choice(KEPT))))
        drawing = [rng.randrange(self.features.shape[1]) for _ in chosen]
        visual = self.features[chosen, drawing][:, kept].float()
        captions = [CAPTION.format(word) for word in words]
        tokens = sum(len(self.tokenizer.encode(caption)) for caption in captions)
        return self.loss(visual, kept, TOPIC if topic else PROMPT, captions).sum() / tokens

    @torch.no_grad()
    def evaluate(self, part: str, choices: int = 2) -> dict[str, float]:
        """Mean nats of a caption token behind its own image and behind another's (the first drawings), and how often
        the right image of `choices` gives the caption the smallest loss."""
        chosen, n = self.parts[part], self.features.shape[2]
        captions = [CAPTION.format(self.pairs[i].name) for i in chosen]
        tokens = sum(len(self.tokenizer.encode(caption)) for caption in captions)
        nats = []
        for shift in range(choices):
            images = self.features[[chosen[(k + shift) % len(chosen)] for k in range(len(chosen))], 0].float()
            nats.append(
                torch.cat(
                    [
                        self.loss(images[k : k + BATCH], torch.arange(n), PROMPT, captions[k : k + BATCH])
                        for k in range(0, len(chosen), BATCH)
                    ]
                )
            )
        table = torch.stack(nats)
        return {
            "right": float(table[0].sum() / tokens),
            "wrong": float(table[1].sum() / tokens),
            "picked": float((table.argmin(0) == 0).float().mean()),
        }


def rates(minutes: float) -> Iterator[tuple[float, float]]:
    """(learning rate, share of the time that is gone): a warm-up by steps, then half a cosine by the clock."""
    began, step = time.monotonic(), 0
    while (gone := (time.monotonic() - began) / 60 / minutes) < 1:
        step += 1
        yield PEAK_RATE * min(1, step / WARM_UP) * (1 + math.cos(math.pi * gone)) / 2, gone


def train(trainer: Trainer, minutes: float, out: Path) -> None:
    """Write the projector of the best validation loss to `out`."""
    optimiser = torch.optim.AdamW(trainer.projector.parameters(), weight_decay=DECAY)
    rng, best, shown, recent = random.Random(0), math.inf, time.monotonic(), []
    for step, (rate, gone) in enumerate(rates(minutes)):
        for group in optimiser.param_groups:
            group["lr"] = rate
        loss = trainer.step(rng)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainer.projector.parameters(), 1.0)
        optimiser.step()
        recent.append(loss.item())
        if time.monotonic() - shown > 120:
            figures = trainer.evaluate("validation")
            kept = figures["right"] < best
            print(f"step {step} ({gone:.0%}): training {np.mean(recent):.3f}, validation {figures}", flush=True)
            shown, recent = time.monotonic(), []
            if kept:
                best = figures["right"]
                save_file(trainer.folded(), out)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the projector of vits-smollm2.")
    parser.add_argument("folder", type=Path, help="where the npm packages are installed")
    parser.add_argument("--minutes", type=float, default=30.0, help="of training, features not counted")
    parser.add_argument("--out", type=Path, default=PROJECTOR)
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    config, pairs = named_config(NAME), read_pairs(args.folder)
    cache = args.folder / "features.safetensors"
    if not cache.exists():
        save_file({"features": feature_table(pairs, config)}, cache)
    trainer = Trainer(config, pairs, load_file(cache)["features"])
    print({part: len(members) for part, members in trainer.parts.items()}, flush=True)
    train(trainer, args.minutes, args.out)
    trainer.load(args.out)
    shown = [pairs[i] for i in trainer.parts["held-out"]]
    write_held_out([on_white(pair.drawings[0]) for pair in shown], [pair.name for pair in shown])
    print("held out, pick of 8:", trainer.evaluate("held-out", choices=8))


if __name__ == "__main__":
    main()
