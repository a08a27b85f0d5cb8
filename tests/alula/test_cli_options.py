"""No option is ignored: every option of every command, in every phase, is refused before work starts or changes what
comes out."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.main import get_command

import alula.session
from alula.cli import app, main
from alula.cli_rules import CHOICES, LIMITS, RULES, check
from hw.spec.errors import UserError

COMMANDS = get_command(app).commands
PROMPT = "a prompt that is longer than one tile of keys, so that a mask can leave some out"
SITUATIONS = {
    "simulate prefill": ["simulate", "--tokens", "66"],
    "simulate decode": ["simulate", "--phase", "decode"],
    "simulate vision": ["simulate", "--phase", "vision"],
    "simulate ttft": ["simulate", "--phase", "ttft"],
    "report prefill": ["report", "-o", "{tmp}/page.html", "--tokens", "66"],
    "report decode": ["report", "-o", "{tmp}/page.html", "--phase", "decode"],
    "report vision": ["report", "-o", "{tmp}/page.html", "--phase", "vision"],
    "verify": ["verify", "--backend", "cycle", "--lengths", "66", "--steps", "0"],
    "verify functional": ["verify", "--backend", "functional", "--lengths", "66", "--steps", "0"],
    "generate text": ["generate", "--model", "llava-tiny", "--config", "tiny", "--tokens", "2", "--prompt", PROMPT],
    "generate image": [
        "generate",
        "--model",
        "llava-tiny",
        "--config",
        "tiny",
        "--tokens",
        "2",
        "--prompt",
        PROMPT,
        "--image",
        "{tmp}/noise.png",
    ],
    "compile": ["compile", "-o", "{tmp}/tiny.alula"],
    "compile timing": ["compile", "--timing-only"],
    "info": ["info"],
}
"""A command in a phase, or in another situation in which other options act."""
MASKED = {"attention_mask"}
REDUCING = {"keep_schedule", "exit_layer", "fastv"}
REFUSED = {
    "simulate prefill": {"kv", "keep_visual", "strategy", "image_tokens", "image_start", "memory_seed", "seed",
                         "recipe", "mmproj"},
    "simulate decode": {"tokens", *MASKED, *REDUCING, "keep_visual", "strategy", "image_tokens", "image_start",
                        "memory_seed", "seed", "recipe", "mmproj"},
    "simulate vision": {"tokens", "kv", *MASKED, *REDUCING, "strategy", "image_tokens", "image_start", "memory_seed",
                        "seed", "recipe", "mmproj"},
    "simulate ttft": {"kv", *MASKED, *REDUCING, "keep_visual", "strategy", "image_start", "check", "backend",
                      "memory_seed", "seed", "recipe", "mmproj"},
    "report prefill": {"kv", "keep_visual", "strategy", "image_tokens", "image_start", "memory_seed", "seed",
                       "recipe", "mmproj"},
    "report decode": {"tokens", *MASKED, *REDUCING, "keep_visual", "strategy", "image_tokens", "image_start",
                      "memory_seed", "seed", "recipe", "mmproj"},
    "report vision": {"tokens", "kv", *MASKED, *REDUCING, "strategy", "image_tokens", "image_start", "memory_seed",
                      "seed", "recipe", "mmproj"},
    "verify": {"strategy", "image_tokens", "image_start", "memory_seed", "recipe", "mmproj"},
    "verify functional": {"strategy", "image_tokens", "image_start", "memory_seed", "recipe", "memory", "jitter",
                          "mmproj"},
    "generate text": {"draw_seed", *REDUCING, "keep_visual", "strategy", "device", "xclbin", "recipe", "mmproj"},
    "generate image": {"draw_seed", "strategy", "device", "xclbin", "recipe", "mmproj"},
    "compile": {"recipe", "lengths", "mmproj"},
    "compile timing": {"recipe", "seed", "mmproj"},
    "info": {"card", "bits", "sparsity", "recipe"},
}  # fmt: skip
REFUSED |= {
    name: options | {"length", "entry"}
    for name, options in REFUSED.items()
    if name.split()[0] in ("simulate", "verify")
}
"""Situation -> options that have no effect there when they come alone."""
SAMPLES = {
    "model": "smollm2-135m", "config": "small", "phase": "decode", "tokens": "60", "kv": "30", "layers": "1",
    "context": "128", "backend": "functional", "attention_mask": "window:1", "keep_schedule": "1:4", "exit_layer": "1",
    "fastv": "1:4", "keep_visual": "5", "strategy": "row", "image_tokens": "9", "image_start": "3", "check": None,
    "memory": "hbm", "jitter": "20", "memory_seed": "5", "seed": "3", "bits": "4", "sparsity": "8:16",
    "recipe": "plain", "json": "{tmp}/more.json", "trace": "{tmp}/trace.json", "out": "{tmp}/other", "lengths": "40",
    "steps": "1", "program": "unrolled", "temperature": "9.0", "draw_seed": "4", "image": "{tmp}/other.png",
    "device": "sim", "xclbin": "{tmp}/x", "prompt": "something else", "timing_only": None, "synth": "yosys",
    "card": "u50", "mmproj": "{tmp}/p.gguf", "chat": None, "full": None, "set": "units=4",
    "length": "seq=3", "entry": "decode",
}  # fmt: skip
"""A value that differs from the default; None: a flag."""
OTHERWISE = {
    ("compile timing", "lengths"): "bucketed",
    ("compile", "lengths"): "bucketed",
    ("simulate ttft", "tokens"): "20",
    ("verify functional", "backend"): "cycle",
    ("generate text", "backend"): "cycle",
    ("generate image", "backend"): "cycle",
}
COMPANIONS = {
    ("simulate prefill", "seed"): ["--check"],
    ("simulate decode", "seed"): ["--check"],
    ("simulate vision", "seed"): ["--check"],
    ("report prefill", "seed"): ["--fastv", "1:4"],
    ("report vision", "seed"): ["--keep-visual", "5"],
    **{("generate text", option): ["--check"] for option in ("attention_mask",)},
    **{
        ("generate image", option): ["--check"] for option in ("attention_mask", "keep_schedule", "exit_layer", "fastv")
    },
    "memory_seed": ["--jitter", "20"],
    "recipe": ["--bits", "4"],
    "image_start": ["--keep-schedule", "1:4"],
    "image_tokens": ["--keep-schedule", "1:8"],
    "draw_seed": ["--temperature", "9.0"],
    "strategy": ["--keep-visual", "9"],
}
"""What an option has its effect together with, everywhere or in one situation."""
VOLATILE = {"wall_seconds", "simulator_seconds", "compile_seconds", "peak_memory_bytes", "file", "seconds"}
TWICE = {"chat", "model", "config", "out", "json", "synth", "timing_only", "phase", "device", "xclbin", "full"}
"""Options that choose the situation, the files, or a tool, or what is printed: other tests run them (--chat:
test_generate_files.py, --full: test_summary.py)."""
SLOW = ("verify", "report", "generate")


_bases = {}
"""Situation and companions -> what is observed without the option."""


def options(command):
    """The module of one's own is an argument: what acts with it is in test_module_commands.py."""
    found = [parameter for parameter in COMMANDS[command].params if parameter.param_type_name == "option"]
    return [parameter.name for parameter in found if parameter.name.isidentifier()]


def given(situation, option, companions=()):
    """The arguments of a situation with one option more; the first word is the command."""
    sample = OTHERWISE.get((situation, option), SAMPLES[option])
    flag = f"--{option.replace('_', '-')}"
    return [*SITUATIONS[situation], *companions, flag, *([] if sample is None else [sample])]


def refused(arguments):
    """Why a command refuses its options, or None."""
    context = COMMANDS[arguments[0]].make_context(arguments[0], arguments[1:])
    try:
        check(context)
    except UserError as error:
        return str(error)
    return None


def cases():
    return [(situation, option) for situation, words in SITUATIONS.items() for option in options(words[0])]


def acting():
    """Options that act in a situation, alone or with their companions."""
    for situation, option in cases():
        alone = () if option not in REFUSED[situation] else COMPANIONS.get(option, ())
        companions = COMPANIONS.get((situation, option), alone)
        if option in TWICE or (option in REFUSED[situation] and refused(given(situation, option, companions))):
            continue
        marks = [pytest.mark.slow] if situation.startswith(SLOW) else []
        yield pytest.param(situation, option, tuple(companions), marks=marks, id=f"{situation}-{option}")


@pytest.fixture
def place(tmp_path):
    rng = np.random.default_rng(3)
    for name in ("noise", "other"):
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(tmp_path / f"{name}.png")
    return tmp_path


def run(arguments, place):
    with pytest.raises(SystemExit) as ended:
        main([part.replace("{tmp}", str(place)) for part in arguments])
    return ended.value.code or 0


def steady(value):
    """A result without what differs from run to run."""
    if isinstance(value, dict):
        return {key: steady(item) for key, item in value.items() if key not in VOLATILE}
    return [steady(item) for item in value] if isinstance(value, list) else value


def observed(arguments, place, monkeypatch):
    """What a run leaves: its JSON, the names of its files, the seeds of the weights that it read."""
    seeds, original = [], alula.session.open_synthetic

    def noted(name, seed):
        seeds.append(seed)
        return original(name, seed)

    monkeypatch.setattr(alula.session, "open_synthetic", noted)
    result = place / "result.json"
    before = set(place.iterdir())
    assert run([*arguments, "--json", str(result)], place) == 0, arguments
    files = {path.name for path in set(place.iterdir()) - before}
    found = steady(json.loads(result.read_text()))
    for path in set(place.iterdir()) - before:
        path.unlink()
    monkeypatch.undo()
    return found, files, seeds


def test_every_option_has_a_sample():
    assert {option for situation in SITUATIONS.values() for option in options(situation[0])} <= set(SAMPLES) | {"help"}


@pytest.mark.parametrize("situation", SITUATIONS)
def test_what_is_refused(situation):
    """Exactly the options that have no effect, each by its name."""
    found = {}
    for option in options(SITUATIONS[situation][0]):
        if option not in ("help", "phase") and (why := refused(given(situation, option))):
            found[option] = why
    assert set(found) == REFUSED[situation]
    for option, why in found.items():
        assert why.startswith(f"--{option.replace('_', '-')} has an effect only ") and "\n" not in why


@pytest.mark.parametrize("situation", SITUATIONS)
def test_a_refusal_comes_before_work(situation, place, monkeypatch, capsys):
    def opened(*arguments, **more):
        raise AssertionError("a model was opened")

    monkeypatch.setattr(alula.session, "open_flow", opened)
    before = sorted(place.iterdir())
    for option in sorted(REFUSED[situation]):
        assert run(given(situation, option), place) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: --{option.replace('_', '-')} has an effect only ")
    assert sorted(place.iterdir()) == before


@pytest.mark.parametrize(("situation", "option", "companions"), list(acting()))
def test_an_option_that_is_taken_acts(situation, option, companions, place, monkeypatch):
    base = (situation, *companions)
    if base not in _bases:
        _bases[base] = observed([*SITUATIONS[situation], *companions], place, monkeypatch)
    assert observed(given(situation, option, companions), place, monkeypatch) != _bases[base]


def test_tables_name_what_there_is():
    """A rule for an option that was renamed would be a rule no more."""
    everywhere = {name for command in COMMANDS for name in options(command)}
    assert set(LIMITS) <= everywhere
    for command, rules in RULES.items():
        assert {name for rule in rules for name in rule.options} <= set(options(command))
    for command, choices in CHOICES.items():
        assert set(choices) <= set(options(command))


@pytest.mark.parametrize("option", LIMITS)
def test_numbers_have_limits(option, place, capsys):
    command = next(name for name in COMMANDS if option in options(name))
    required = {"report": ["-o", "x.html"], "generate": ["--prompt", "x"]}.get(command, [])
    for wrong in (LIMITS[option][0] - 1, LIMITS[option][1] + 1):
        assert run([command, *required, f"--{option.replace('_', '-')}", str(wrong)], place) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert f"{wrong:,}" in line and f"{LIMITS[option][0]:,}..{LIMITS[option][1]:,}" in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["simulate", "--phase", "decod"], ["'decode' meant", "prefill, decode, vision, ttft"]),
        (["verify", "--backend", "rlt"], ["functional, cycle, rtl"]),
        (["simulate", "--memory", "ddr"], ["fixed, hbm"]),
    ],
)
def test_a_wrong_choice_names_the_right_ones(arguments, words, place, capsys):
    assert run(arguments, place) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert all(part in line for part in words)


def test_help_without_a_command_is_no_error(place: Path, capsys):
    assert run([], place) == 0
    assert not capsys.readouterr().err
