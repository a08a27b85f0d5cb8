"""What several commands share: options, the compression asked for, how values are shown."""

from pathlib import Path
from typing import Annotated

import typer

from hw.spec.errors import UserError

Json = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the result as JSON.")]
Model = Annotated[
    str, typer.Option(help="llava-tiny, vits-smollm2, smollm2-135m, llava-1.5-7b, llava-1.5-13b, or a path.")
]
Module = Annotated[
    str | None,
    typer.Argument(metavar="[FILE.py:NAME]", help="A module of your own instead of a model: docs/howto/own-module.md."),
]
Length = Annotated[
    list[str] | None,
    typer.Option("--length", metavar="SYMBOL=N", help="Symbolic length of a module of your own: seq=37 (repeatable)."),
]
EntryName = Annotated[
    str | None,
    typer.Option("--entry", metavar="NAME", help="Which entry of a module of your own that has several: decode."),
]
Mmproj = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Vision half (mmproj-*.gguf) of a LLaVA whose model is a GGUF file.")
]
Machine = Annotated[
    str,
    typer.Option(
        "--config", help="Accelerator: tiny, small, u280, u50, u55c or v80, or a .toml file that changes one."
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="Change a field of the accelerator, as lanes=32 (repeatable)."),
]
Layers = Annotated[int | None, typer.Option(help="Decoder layers (default: all).")]
Context = Annotated[int | None, typer.Option(help="Tokens to compile for (default: by configuration).")]
Seed = Annotated[int, typer.Option(help="Seed of synthetic weights.")]
Bits = Annotated[str, typer.Option(help="Weight precision: 8, 4, 3, 2, an average such as 3.5, or mixed (random).")]
Sparsity = Annotated[str, typer.Option(help="Non-zeros of 16: dense, 8:16, 4:16, 2:16, 1:16 or mixed (random).")]
Recipe = Annotated[str, typer.Option(help="Compression: best, tuned (and trained) or plain (nearest, by magnitude).")]
Mask = Annotated[
    str | None,
    typer.Option("--attention-mask", help="Keys a prefill attends to: causal, window:N or a .npy file of bool tiles."),
]
KeepSchedule = Annotated[
    str | None,
    typer.Option(
        help="Evenly spaced visual tokens that go on from layers on: LAYER:COUNT,..; or {layer: [visual "
        "tokens from 0]} in a .json file."
    ),
]
ExitLayer = Annotated[int | None, typer.Option(help="Visual tokens go through that many layers only.")]
FastV = Annotated[
    str | None,
    typer.Option(help="LAYER:COUNT,..: so many visual tokens go on from a layer on, by attention in the one before."),
]
ImageTokens = Annotated[int | None, typer.Option(help="Visual tokens of a synthetic prompt (reduction, ttft).")]
ImageStart = Annotated[int | None, typer.Option(help="Place of the first visual token of a synthetic prompt.")]
KeepVisual = Annotated[
    int | None, typer.Option(help="Visual tokens the vision tower keeps, by the class token's attention.")
]
Strategy = Annotated[str, typer.Option(help="What --keep-visual keeps: rank (strongest patches) or row (grid rows).")]
Memory = Annotated[
    str | None, typer.Option(help="fixed (latency), or hbm: DRAM timing of the channels (default: configuration's).")
]
Jitter = Annotated[int, typer.Option(help="Largest random extra latency of a read, cycles.")]
MemorySeed = Annotated[int, typer.Option(help="Seed of the jitter.")]
Full = Annotated[bool, typer.Option("--full", help="Print every figure with its unit instead of a summary.")]
BackendName = Annotated[str, typer.Option(help="functional, cycle or rtl.")]


def compression(bits: str, sparsity: str, recipe: str):
    """The compression asked for, None for dense INT8."""
    from ref_model.compress import Compression

    try:
        return Compression.parse(bits, sparsity, recipe)
    except ValueError as error:
        raise UserError(str(error)) from None
