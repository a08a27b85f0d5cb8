"""`alula generate`: an image and a prompt (or a prompt alone) to tokens, greedily, on a backend."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from alula.cross import CrossBackend, Outcome
from alula.errors import UserError
from alula.output import peak_memory_bytes
from alula.session import Flow
from alula.verification import check_text, check_vision, pick
from ref_model.checkpoints import PACKAGED
from ref_model.config import MODELS
from ref_model.preprocess import open_image
from ref_model.tokenizer import IMAGE_PLACEHOLDER, Tokenizer, expand_image_tokens, load_tokenizer
from sim.backend import Event

Note = Callable[[str], None]
EXECUTORS = {"functional": ("functional",), "cycle": ("functional", "cycle"), "rtl": ("rtl",)}
"""Backend -> what runs each step; the cycle simulator gives the times of what the functional one computes."""


@dataclass
class Step:
    """One start of the machine."""

    name: str
    cycles: int | None
    trace: list[Event]
    outcome: Outcome | None = None


@dataclass
class Generation:
    """Tokens, what each step took, and with a check the golden model's own tokens."""

    tokens: list[int] = field(default_factory=list)
    golden_tokens: list[int] | None = None
    steps: list[Step] = field(default_factory=list)

    @property
    def outcomes(self) -> list[Outcome]:
        return [step.outcome for step in self.steps if step.outcome is not None]


def generate(
    flow: Flow,
    ids: Sequence[int],
    n_new: int,
    names: Sequence[str],
    *,
    patches: np.ndarray | None = None,
    eos_id: int | None = None,
    check: bool = False,
    note: Note = lambda _: None,
    emit: Callable[[int], None] = lambda _: None,
) -> Generation:
    """Greedy tokens; `names`: executors, the first one's logits count. ids hold one image token an image.

    check compares every step's bytes with the golden model's, fed with the same tokens; ties go to the lowest id.
    """
    ids = expand_image_tokens(ids, flow.model.config)
    flow.require_tokens(len(ids) + n_new - 1)
    return _Run(flow, CrossBackend(names), check, note).run(ids, n_new, patches, eos_id, emit)


class _Run:
    def __init__(self, flow: Flow, cross: CrossBackend, check: bool, note: Note):
        self.flow, self.cross, self.note = flow, cross, note
        self.machine = flow.machine(cross)
        self.golden = flow.golden() if check else None
        self.out = Generation(golden_tokens=[] if check else None)

    def run(self, ids, n_new, patches, eos_id, emit) -> Generation:
        features = self._vision(patches) if patches is not None else None
        while len(self.out.tokens) < n_new:
            name = "prefill" if not self.out.tokens else f"decode {len(self.out.tokens)}"
            token = self._text(name, ids, features)
            self.out.tokens.append(token)
            emit(token)
            if token == eos_id:
                break
            ids, features = [token], None
        return self.out

    def _named(self, name: str) -> str:
        self.cross.note = lambda executor: self.note(f"{name} on {executor}")
        return name

    def _step(self, name: str, outcome: Outcome | None) -> None:
        timed = self.cross.results.get("cycle") or self.cross.results[self.cross.names[-1]]
        self.out.steps.append(Step(name, timed.cycles, timed.trace, outcome))

    def _vision(self, patches: np.ndarray) -> np.ndarray | None:
        self._named("vision")
        if self.golden is None:
            self.machine.encode_image(patches)
            self._step("vision", None)
            return None
        outcome, features = check_vision(self.flow, self.machine, patches)
        self._step("vision", outcome)
        return features

    def _text(self, name: str, ids: Sequence[int], features: np.ndarray | None) -> int:
        self._named(name)
        if self.golden is None:
            logits = self.machine.prefill(self.machine.prompt_rows(ids, self.flow.model.config.image_token_index))
            self._step(name, None)
            assert logits is not None
            return pick(self.flow, logits)
        outcome, token, logits = check_text(self.flow, self.machine, self.golden, name, list(ids), features)
        self._step(name, outcome)
        assert self.out.golden_tokens is not None
        self.out.golden_tokens.append(token)
        return pick(self.flow, logits)


# --- inputs and outputs --------------------------------------------------------------------------------


def tokenizer_of(source: str) -> Tokenizer:
    """The tokenizer that belongs to a model."""
    if source in MODELS and source not in PACKAGED and source != "llava-tiny":
        raise UserError(f"{source} has synthetic weights here and no tokenizer: give a checkpoint's folder")
    return load_tokenizer(source)


def open_inputs(image: Path | None, prompt: str):
    """(Pillow image or None, prompt with its image placeholder)."""
    if image is None:
        if IMAGE_PLACEHOLDER in prompt:
            raise UserError(f"the prompt has {IMAGE_PLACEHOLDER} and there is no image: give --image FILE")
        return None, prompt
    picture = open_image(image)
    return picture, prompt if IMAGE_PLACEHOLDER in prompt else f"{IMAGE_PLACEHOLDER}\n{prompt}"


class Stream:
    """Text as it comes: what decoding the tokens so far adds, whole characters only."""

    def __init__(self, tokenizer: Tokenizer, write: Callable[[str], object]):
        self.tokenizer, self.write = tokenizer, write
        self.ids: list[int] = []
        self.shown = ""

    def push(self, token: int) -> None:
        self.ids.append(token)
        text = self.tokenizer.decode(self.ids)
        if not text.endswith("\ufffd") and text.startswith(self.shown):
            self.write(text[len(self.shown) :])
            self.shown = text

    def end(self) -> None:
        text = self.tokenizer.decode(self.ids)
        self.write((text[len(self.shown) :] if text.startswith(self.shown) else "") + "\n")


def report(flow: Flow, made: Generation, tokenizer: Tokenizer, backend: str, wall_seconds: float) -> dict:
    """The JSON of `alula generate`."""
    cycles = [step.cycles for step in made.steps]
    known = [c for c in cycles if c is not None]
    total = sum(known) if len(known) == len(cycles) else None
    found = made.outcomes
    return {
        "backend": backend, "config": flow.config.name, "model": flow.model.config.name, "layers": flow.layers,
        "tokens": len(made.tokens), "token_ids": made.tokens, "text": tokenizer.decode(made.tokens),
        "golden_token_ids": made.golden_tokens,
        "tokens_equal_golden": None if made.golden_tokens is None else made.tokens == made.golden_tokens,
        "cycles": total, "clock_hz": flow.config.clock_hz,
        "seconds_at_clock": None if total is None else total / flow.config.clock_hz,
        "bit_exact": all(o.bit_exact for o in found) if found else None,
        "compared_bytes": sum(o.compared_bytes for o in found),
        "first_difference": next((o.first_difference for o in found if o.first_difference), None),
        "steps": [{"name": step.name, "cycles": step.cycles} for step in made.steps],
        "wall_seconds": wall_seconds, "peak_memory_bytes": peak_memory_bytes(),
    }  # fmt: skip
