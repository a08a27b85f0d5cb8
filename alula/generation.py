"""`alula generate`: an image and a prompt (or a prompt alone) to tokens, greedily, on a backend."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from alula.cross import CrossBackend, Outcome
from alula.output import peak_memory_bytes
from alula.reduction import Asked
from alula.sampling import Sampler
from alula.session import Flow
from alula.verification import check_text, check_vision, pick
from hw.spec.config import BEAT_BYTES
from hw.spec.errors import UserError
from hw.spec.memory import MemoryModel
from hw.spec.run import Backend, Event
from ref_model.chat import Chat
from ref_model.checkpoints import PACKAGED
from ref_model.config import MODELS
from ref_model.mask import BlockMask
from ref_model.preprocess import open_image
from ref_model.reduction import Reduction
from ref_model.tokenizer import IMAGE_PLACEHOLDER, Tokenizer, expand_image_tokens, load_tokenizer

Note = Callable[[str], None]
EXECUTORS = {"functional": ("functional",), "cycle": ("functional", "cycle"), "rtl": ("rtl",), "xrt": ("xrt",)}
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
    ends: Collection[int] = (),
    check: bool = False,
    note: Note = lambda _: None,
    emit: Callable[[int], None] = lambda _: None,
    mask: BlockMask | None = None,
    order: np.ndarray | None = None,
    reduction: Asked | None = None,
    sampler: Sampler | None = None,
    made: Mapping[str, Backend] | None = None,
) -> Generation:
    """Tokens, greedy or drawn by `sampler`; `names`: executors, the first one's count. ids hold a token an image.

    check compares every step's bytes with the golden model's, fed with the same tokens; ties go to the lowest id.
    mask and reduction are the prefill's. patches and order: of one image, as `Flow.patches` and `Flow.order` give them.
    ends: token ids that end the text. made: executors that are open already.
    """
    per_image = (flow.visual_tokens if patches is not None else 0) if order is None else len(order)
    ids = expand_image_tokens(ids, flow.model.config, [] if patches is None else [per_image])
    flow.require_tokens(len(ids) + n_new - 1)
    reduced = None if reduction is None else reduction.prompt(flow, ids)
    cross = CrossBackend(names, model=MemoryModel.of(flow.config), made=made)
    machine = _Run(flow, cross, check, note, mask, order, reduced, sampler)
    return machine.run(ids, n_new, patches, ends, emit)


class _Run:
    def __init__(
        self,
        flow: Flow,
        cross: CrossBackend,
        check: bool,
        note: Note,
        mask: BlockMask | None,
        order: np.ndarray | None,
        reduction: Reduction | None,
        sampler: Sampler | None,
    ):
        self.flow, self.cross, self.note, self.mask, self.order = flow, cross, note, mask, order
        self.reduction, self.sampler = reduction, sampler
        self.machine = flow.machine(cross)
        self.golden = flow.golden() if check else None
        self.out = Generation(golden_tokens=[] if check else None)

    def run(self, ids, n_new, patches, ends, emit) -> Generation:
        features = self._vision(patches) if patches is not None else None
        while len(self.out.tokens) < n_new:
            name = "prefill" if not self.out.tokens else f"decode {len(self.out.tokens)}"
            token = self._text(name, ids, features)
            self.out.tokens.append(token)
            emit(token)
            if token in ends:
                break
            ids, features, self.mask, self.order, self.reduction = [token], None, None, None, None
        return self.out

    def _named(self, name: str) -> str:
        self.cross.note = lambda executor: self.note(f"{name} on {executor}")
        return name

    def _step(self, name: str, outcome: Outcome | None) -> None:
        timed = self.cross.results.get("cycle") or self.cross.results[self.cross.names[-1]]
        self.out.steps.append(Step(name, timed.cycles, timed.trace, outcome))

    def _vision(self, patches: np.ndarray) -> np.ndarray | None:
        """Features of all tiles one after another, if they are checked."""
        if patches.ndim == 2:
            return self._tile("vision", 0, patches)
        features = [self._tile(f"vision tile {tile}", tile, part) for tile, part in enumerate(patches)]
        return None if self.golden is None else np.concatenate([part for part in features if part is not None])

    def _tile(self, name: str, tile: int, patches: np.ndarray) -> np.ndarray | None:
        self._named(name)
        if self.golden is None:
            self.machine.encode_image(patches, tile=tile, keep=self.flow.keep_visual, strategy=self.flow.strategy)
            self._step(name, None)
            return None
        outcome, features = check_vision(self.flow, self.machine, patches, tile)
        self._step(name, outcome)
        return features

    def _text(self, name: str, ids: Sequence[int], features: np.ndarray | None) -> int:
        self._named(name)
        if self.golden is None:
            rows = self.machine.prompt_rows(ids, self.flow.model.config.image_token_index, self.order)
            logits = self.machine.prefill(rows, mask=self.mask, reduction=self.reduction)
            self._step(name, None)
            assert logits is not None
            return self._choice(logits)
        outcome, expected, logits = check_text(
            self.flow,
            self.machine,
            self.golden,
            name,
            list(ids),
            features,
            self.mask,
            self.order,
            self.reduction,
        )
        self._step(name, outcome)
        assert self.out.golden_tokens is not None
        self.out.golden_tokens.append(self._pick(expected))
        return self._choice(logits)

    def _choice(self, logits: np.ndarray) -> int:
        """The machine's own greedy choice; the image token, which is never generated, gives way to the next best."""
        if self.sampler is not None or self.machine.choice == self.flow.model.config.image_token_index:
            return self._pick(logits)
        return self.machine.choice

    def _pick(self, logits: np.ndarray) -> int:
        """The next token by logits."""
        if self.sampler is None:
            return pick(self.flow, logits)
        return self.sampler.draw(logits, len(self.out.tokens), self.flow.model.config.image_token_index)


def card(flow: Flow, device: str, xclbin: Path | None) -> Backend:
    """The XRT backend on a card's number with an xclbin, or on `sim`, with buffers as large as the model needs."""
    from sim.xrt.backend import XrtBackend

    space = [flow.layout.channel.at] * flow.config.units + [flow.layout.aux.at]
    return XrtBackend(device, xclbin, sizes_bytes=[beats * BEAT_BYTES for beats in space])


# --- inputs and outputs --------------------------------------------------------------------------------


def tokenizer_of(source: str, mmproj: Path | None = None) -> Tokenizer:
    """The tokenizer that belongs to a model; mmproj: the vision half of one in GGUF."""
    if source in MODELS and source not in PACKAGED and source != "llava-tiny":
        raise UserError(f"{source} has synthetic weights here and no tokenizer: give a checkpoint's folder")
    return load_tokenizer(source, mmproj is not None)


def prompt_ids(source: str, tokenizer: Tokenizer, text: str, chat: bool, image: bool) -> list[int]:
    """Token ids of a prompt; chat: as the user's question in the model's chat template.

    A template of a language model writes what the text begins with, or nothing does; the processors of models with
    images put it in front if the template has not.
    """
    if not chat:
        return tokenizer.encode(text)
    template = Chat(source)
    asked = template.question(text, image)
    return tokenizer.encode(asked, begin=image and not template.begins(asked))


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
        try:
            text = self.tokenizer.decode(self.ids)
        except UserError:  # An id in the padding of the vocabulary: the message is not to be glued to the text.
            self.write("\n")
            raise
        if not text.endswith("\ufffd") and text.startswith(self.shown):
            self.write(text[len(self.shown) :])
            self.shown = text

    def end(self) -> None:
        text = self.tokenizer.decode(self.ids)
        self.write((text[len(self.shown) :] if text.startswith(self.shown) else "") + "\n")


def _step(step: Step) -> dict:
    return {
        "name": step.name,
        "cycles": step.cycles,
        "expected_sha256": None if step.outcome is None else step.outcome.expected_sha256,
    }


def report(flow: Flow, made: Generation, tokenizer: Tokenizer, backend: str, wall_seconds: float) -> dict:
    """The JSON of `alula generate`."""
    cycles = [step.cycles for step in made.steps]
    known = [c for c in cycles if c is not None]
    total = sum(known) if len(known) == len(cycles) else None
    found = made.outcomes
    return {
        "backend": backend,
        "config": flow.config.name,
        "model": flow.model.config.name,
        "layers": flow.layers,
        "tokens": len(made.tokens),
        "token_ids": made.tokens,
        "text": tokenizer.decode(made.tokens),
        "golden_token_ids": made.golden_tokens,
        **flow.compression_report,
        "tokens_equal_golden": None if made.golden_tokens is None else made.tokens == made.golden_tokens,
        "cycles": total,
        "clock_hz": flow.config.clock_hz,
        "seconds_at_clock": None if total is None else total / flow.config.clock_hz,
        "bit_exact": all(o.bit_exact for o in found) if found else None,
        "compared_bytes": sum(o.compared_bytes for o in found),
        "first_difference": next((o.first_difference for o in found if o.first_difference), None),
        "context": flow.context,
        "steps": [_step(step) for step in made.steps],
        "wall_seconds": wall_seconds,
        "peak_memory_bytes": peak_memory_bytes(),
    }
