"""No option is ignored: what a command cannot act on is refused before work starts.

A rule says where an option acts. `check` holds the options that were given on the command line against the rules of
their command. Example: `simulate --phase decode --tokens 5` ends with

    --tokens has an effect only with --phase prefill or ttft: leave it out
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import typer
from typer.core import TyperCommand

from alula.alveo.recipes import TARGETS
from hw.spec.config import MEMORY_KINDS
from hw.spec.errors import UserError
from ref_model.selection import STRATEGIES

Values = Mapping[str, object]
"""Every option of a command by its Python name, given or by default."""
Acts = Callable[[Values], bool]
PHASES = ("prefill", "decode", "vision", "ttft")
SIMULATORS = ("functional", "cycle", "rtl")
REDUCTIONS = ("keep_schedule", "exit_layer", "fastv")


@dataclass(frozen=True)
class Rule:
    """The options act where `acts` says so; `where` says it to people, behind "--option has an effect only "."""

    options: tuple[str, ...]
    acts: Acts
    where: str


CHOICES: dict[str, dict[str, tuple[str, ...]]] = {
    "simulate": {"phase": PHASES, "backend": SIMULATORS},
    "report": {"phase": PHASES[:3]},
    "verify": {"backend": SIMULATORS, "program": ("runtime", "bucketed", "unrolled")},
    "generate": {"backend": (*SIMULATORS, "xrt")},
    "demo": {"backend": SIMULATORS},
    "compile": {"lengths": ("runtime", "bucketed", "unrolled")},
    "info": {"synth": ("yosys",)},
    "build": {"target": TARGETS},
}
"""Command -> option -> what it can be."""
CHOICES_EVERYWHERE = {"memory": MEMORY_KINDS, "strategy": STRATEGIES}
LIMITS: dict[str, tuple[int, int]] = {
    "tokens": (1, 1 << 20),
    "kv": (1, 1 << 20),
    "steps": (0, 1 << 20),
    "layers": (1, 1 << 16),
    "context": (1, 1 << 24),
    "image_tokens": (0, 1 << 20),
    "image_start": (0, 1 << 20),
    "keep_visual": (1, 1 << 20),
    "exit_layer": (1, 1 << 16),
    "jitter": (0, 65535),
    "memory_seed": (0, (1 << 32) - 1),
    "seed": (0, (1 << 63) - 1),
    "draw_seed": (0, (1 << 63) - 1),
}
"""Least and largest value of a number, whatever the model: a model's own limits come when it is open."""


def _phase(*names: str) -> Acts:
    return lambda values: values["phase"] in names


def _timed(values: Values) -> bool:
    return values.get("backend", "cycle") != "functional"


def _compressed(values: Values) -> bool:
    return values["bits"] != "8" or values["sparsity"] != "dense"


def _reduces(values: Values) -> bool:
    return any(values.get(name) is not None for name in REDUCTIONS)


def _synthetic(values: Values) -> bool:
    from ref_model.checkpoints import PACKAGED  # late: small commands start at once
    from ref_model.config import MODELS

    return values["model"] in MODELS and values["model"] not in PACKAGED


def _reads_weights(values: Values) -> bool:
    """Whether `simulate` needs values: the cycle simulator alone times a model without them."""
    chosen = values["phase"] == "vision" and values["keep_visual"] is not None
    return bool(values["backend"] != "cycle" or values["check"] or values["fastv"] is not None or chosen)


MEMORY = (
    Rule(("memory", "jitter"), _timed, "where cycles are counted (--backend cycle or rtl)"),
    Rule(("memory_seed",), lambda values: bool(values["jitter"]), "together with --jitter"),
)
SEED = Rule(("seed",), _synthetic, "on synthetic weights, which this model has none of")
PAIR = Rule(
    ("mmproj",),
    lambda values: str(values["model"]).endswith(".gguf"),
    "with a language model in a .gguf file, whose vision half it is",
)
RECIPE = Rule(("recipe",), _compressed, "together with --bits or --sparsity other than 8 and dense")
RANKED = Rule(("strategy",), lambda values: values["keep_visual"] is not None, "together with --keep-visual")
SYNTHETIC_PROMPT = Rule(
    ("image_tokens", "image_start"), _reduces, "together with --keep-schedule, --exit-layer or --fastv"
)
ONE_PHASE = (
    Rule(("kv",), _phase("decode"), "with --phase decode"),
    Rule(("attention_mask", *REDUCTIONS), _phase("prefill"), "with --phase prefill"),
    Rule(("keep_visual",), _phase("vision"), "with --phase vision (--phase ttft: say --image-tokens)"),
)
OWN = Rule(
    ("length", "entry"), lambda values: values["module"] is not None, "together with a module of your own, FILE.py:NAME"
)
RULES: dict[str, tuple[Rule, ...]] = {
    "simulate": (
        OWN, *MEMORY, SEED, PAIR, RECIPE, *ONE_PHASE,
        Rule(("tokens",), _phase("prefill", "ttft"), "with --phase prefill or ttft"),
        Rule(("seed",), _reads_weights, "where weights are read (--check, --backend functional or rtl, a choice by "
             "values), which the cycle simulator alone does not"),
        Rule(("strategy",), lambda values: values["keep_visual" if values["phase"] != "ttft" else "image_tokens"]
             is not None, "together with --keep-visual (--phase ttft: --image-tokens)"),
        Rule(("image_tokens",), lambda values: values["phase"] == "ttft" or _reduces(values),
             "together with --keep-schedule, --exit-layer or --fastv, or with --phase ttft"),
        Rule(("image_start",), _reduces, SYNTHETIC_PROMPT.where),
        Rule(("trace",), _timed, "where cycles are counted (--backend cycle or rtl)"),
        Rule(("check",), _phase("prefill", "decode", "vision"), "with --phase prefill, decode or vision"),
        Rule(("backend",), lambda values: values["phase"] != "ttft" or values["backend"] == "cycle",
             "with --phase prefill, decode or vision (ttft is timed by the cycle simulator alone)"),
    ),
    "report": (
        *MEMORY, SEED, PAIR, RECIPE, *ONE_PHASE, RANKED, SYNTHETIC_PROMPT,
        Rule(("tokens",), _phase("prefill"), "with --phase prefill"),
        Rule(("seed",), lambda values: values["fastv"] is not None or values["keep_visual"] is not None,
             "together with --fastv or --keep-visual (nothing else reads weights)"),
    ),
    "verify": (OWN, *MEMORY, SEED, PAIR, RECIPE, RANKED, SYNTHETIC_PROMPT),
    "generate": (
        SEED, PAIR, RECIPE, RANKED,
        Rule(("draw_seed",), lambda values: values["temperature"] is not None, "together with --temperature"),
        Rule(("keep_visual", *REDUCTIONS), lambda values: values["image"] is not None, "together with --image FILE"),
        Rule(("device",), lambda values: values["backend"] == "xrt", "with --backend xrt"),
        Rule(("xclbin",), lambda values: values["backend"] == "xrt" and values["device"] != "sim",
             "with --backend xrt on a card"),
    ),
    "compile": (
        SEED, PAIR, RECIPE,
        Rule(("seed",), lambda values: not values["timing_only"], "where weights are stored: leave --timing-only out"),
        Rule(("lengths",), lambda values: bool(values["timing_only"]) or values["lengths"] == "runtime",
             "with --timing-only, which gives the size of such a baseline (no container holds one)"),
    ),
    "emit": (Rule(("program",), lambda values: bool(values["testbench"]), "together with --testbench"),),
    "info": (
        Rule(("card",), lambda values: values["synth"] is not None, "together with --synth yosys"),
        Rule(("bits", "sparsity"), lambda values: values["model"] is not None, "together with --model"),
        Rule(("recipe",), lambda values: values["model"] is not None and _compressed(values),
             "together with --model and --bits or --sparsity other than 8 and dense"),
    ),
}  # fmt: skip
"""Command -> its rules; an option that no rule names acts wherever its command runs."""


class CheckedCommand(TyperCommand):
    """A command whose options are checked before it runs."""

    def invoke(self, ctx: Any) -> object:
        check(ctx)
        return super().invoke(ctx)


def check(context: typer.Context) -> None:
    """UserError for an option that its command cannot act on, for a value that is none of its choices, and for a number
    outside its limits."""
    command, values = context.info_name or "", context.params
    for option, choices in (CHOICES_EVERYWHERE | CHOICES.get(command, {})).items():
        _check_choice(option, values.get(option), choices)
    given = [name for name in values if getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"]
    if values.get("module") is not None:
        _check_module(given, values)
        return
    for option in given:
        _check_limits(option, values[option])
        for rule in RULES.get(command, ()):
            if option in rule.options and not rule.acts(values):
                raise UserError(f"{flag(option)} has an effect only {rule.where}: leave it out")


OF_MODULES = (
    "module",
    "config",
    "set",
    "seed",
    "backend",
    "length",
    "entry",
    "memory",
    "jitter",
    "memory_seed",
    "full",
    "json",
    "out",
    "trace",
)
"""Options that act on a module of the user's own."""


def _check_module(given: list[str], values: Values) -> None:
    """UserError for an option that is about models."""
    for option in given:
        if option not in OF_MODULES:
            raise UserError(f"{flag(option)} is about models, a module of your own was given: leave it out")
        _check_limits(option, values[option])
        for rule in MEMORY:
            if option in rule.options and not rule.acts(values):
                raise UserError(f"{flag(option)} has an effect only {rule.where}: leave it out")


def flag(option: str) -> str:
    """How the command line spells an option."""
    return f"--{option.replace('_', '-')}"


def _check_choice(option: str, value: object, choices: tuple[str, ...]) -> None:
    if value is None or value in choices:
        return
    close = get_close_matches(str(value), choices, 1)
    raise UserError(
        f"{flag(option)} is {value!r}{f', is {close[0]!r} meant?' if close else ''}: choose one of {', '.join(choices)}"
    )


def _check_limits(option: str, value: object) -> None:
    if option not in LIMITS or not isinstance(value, int):
        return
    least, largest = LIMITS[option]
    if not least <= value <= largest:
        raise UserError(f"{flag(option)} {value:,} is outside {least:,}..{largest:,}: choose another")


__all__ = ["CHOICES", "CHOICES_EVERYWHERE", "LIMITS", "RULES", "CheckedCommand", "Rule", "check", "flag"]
