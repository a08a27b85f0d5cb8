"""`alula demo`: a photograph and a prompt through llava-tiny on `tiny`, on the RTL, checked at every step."""

import json
import time
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from alula.cross import Outcome, executors
from alula.errors import UserError
from alula.generation import Generation, generate
from alula.output import progress, write_atomically
from alula.session import Flow, open_flow
from alula.verification import summary
from ref_model.tokenizer import ByteTokenizer
from sim.backend import Event
from sim.trace import write_chrome

MODEL, CONFIG = "llava-tiny", "tiny"
PROMPT = "<image>\nWhat is this?"


def photograph() -> tuple[str, Image.Image]:
    """A photograph that ships inside a Python package."""
    try:
        from skimage import data
    except ImportError:
        raise UserError(
            "the demo's photograph is in scikit-image: run `make venv` or `pip install scikit-image==0.26.0`"
        ) from None
    return "scikit-image's astronaut (NASA, public domain)", Image.fromarray(data.astronaut())


def demo(out: Path, last: str, n_tokens: int, say: Callable[[str], object]) -> dict:
    """Runs and checks; writes trace.json and report.json (and report.md) into `out`; returns the report."""
    if n_tokens < 1:
        raise UserError(f"--tokens {n_tokens} must be at least 1")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {out}: {error.strerror}") from None
    began = time.monotonic()
    title, image = photograph()
    say(f"photograph: {title}; prompt: {PROMPT!r}")
    with progress("compiling"):
        flow = open_flow(MODEL, CONFIG)
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode(PROMPT)
    count = len(flow.compiled.program.words)
    say(f"{MODEL} (seeded synthetic weights) on {CONFIG}: {count:,} instructions, for every length")
    with progress("running", total=None) as advance:
        made = generate(
            flow,
            ids,
            n_tokens,
            executors(last),
            patches=flow.patches(image),
            check=True,
            note=lambda text: advance(0, text),
        )
    report = _report(flow, made, last, title, time.monotonic() - began)
    say(f"tokens: {made.tokens} (golden model: {made.golden_tokens})")
    for step in report["cases"]:
        cycles, n_bytes = step["cycles_simulated"] or 0, step["compared_bytes"]
        say(f"  {step['name']:<10} {cycles:>9,} cycles  {n_bytes:>9,} bytes compared")
    _write(out, flow, made, report)
    say(f"trace: {out / 'trace.json'} (open it in ui.perfetto.dev), report: {out / 'report.md'}")
    return report


def _report(flow: Flow, made: Generation, last: str, title: str, wall_seconds: float) -> dict:
    outcomes: list[Outcome] = made.outcomes
    return summary(outcomes) | {
        "model": MODEL, "config": CONFIG, "backend": last, "image": title, "prompt": PROMPT,
        "token_ids": made.tokens, "golden_token_ids": made.golden_tokens,
        "tokens_equal_golden": made.tokens == made.golden_tokens, "clock_hz": flow.config.clock_hz,
        "cases": [outcome.as_json() for outcome in outcomes], "wall_seconds": wall_seconds,
    }  # fmt: skip


def joined_trace(made: Generation) -> list[Event]:
    """The steps' events on one time axis, one run after the other."""
    events, offset = [], 0
    for step in made.steps:
        events += [Event(e.start + offset, e.unit, e.tag, e.end + offset) for e in step.trace]
        offset += step.cycles or 0
    return events


def _write(out: Path, flow: Flow, made: Generation, report: dict) -> None:
    write_chrome(out / "trace.json", joined_trace(made), flow.config.clock_hz)
    write_atomically(out / "report.json", json.dumps(report, indent=2) + "\n")
    rows = "".join(
        f"| {c['name']} | {c['cycles_simulated']} | {c['cycles_rtl']} | {c['compared_bytes']} | "
        f"{c['bit_exact']} | {c['cycle_exact']} |\n"
        for c in report["cases"]
    )
    text = (
        f"# {MODEL} on {CONFIG}\n\nImage: {report['image']}. Prompt: {PROMPT!r}. Weights: seeded, synthetic.\n\n"
        f"Tokens: {report['token_ids']}; golden model: {report['golden_token_ids']}.\n\n"
        "| step | cycles simulated | cycles RTL | bytes compared | bit-exact | cycle-exact |\n"
        "|---|---|---|---|---|---|\n"
        f"{rows}"
    )
    write_atomically(out / "report.md", text)
