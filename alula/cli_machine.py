"""Commands about a machine and its programs, without a model's run."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from alula.cli_options import (
    Bits,
    Full,
    Json,
    Machine,
    Recipe,
    Set,
    Sparsity,
    compression,
)
from alula.info_tables import placement_table, remarks, resource_table, unit_table
from alula.machine import misfit
from alula.output import (
    check_writable,
    console,
    errors,
    progress,
    read_bytes,
    size,
    write_atomically,
    write_json,
)
from alula.summary import show_configuration, show_figures, show_model
from hw.spec.assembly import AssemblyError, assemble
from hw.spec.errors import UserError
from hw.spec.listing import listing
from hw.spec.machine import resolve

app = typer.Typer()


@app.command()
def disasm(
    source: Annotated[Path, typer.Argument(help="Container, or raw program bytes.")],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Text file to write (default: print).")] = None,
    raw: Annotated[Path | None, typer.Option(help="Also write the program's bytes.")] = None,
    json: Json = None,
) -> None:
    """The text of a container's program with its pcs, entries and operators; `asm` gives the same bytes back."""
    from alula.container import listed

    for path in (out, raw, json):
        check_writable(path)
    found = listed(source, read_bytes(source))
    program, text = found.code, listing(found.code, found.labels, found.operators)
    if raw is not None:
        write_atomically(raw, program)
    if out is not None:
        write_atomically(out, text)
    else:
        sys.stdout.write(text)
    write_json(json, {"file": str(source), "program_bytes": len(program), "instructions": len(program) // 8})


@app.command()
def asm(
    source: Annotated[Path, typer.Argument(help="Assembly text.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Program bytes to write.")],
    json: Json = None,
) -> None:
    """Assemble text into program bytes."""
    check_writable(out)
    check_writable(json)
    try:
        program = assemble(read_bytes(source).decode())
    except UnicodeDecodeError:
        raise UserError(f"{source} is not text: give the output of `alula disasm`") from None
    except AssemblyError as error:
        raise UserError(f"{source}: {error}") from None
    write_atomically(out, program)
    write_json(json, {"file": str(out), "program_bytes": len(program), "instructions": len(program) // 8})


@app.command()
def info(
    config: Machine = "tiny",
    set: Set = None,
    synth: Annotated[str | None, typer.Option(metavar="yosys", help="Resources from Yosys synthesis.")] = None,
    card: Annotated[str | None, typer.Option(help="Compare with u280, u50, u55c or v80.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Also say what a model is; of a quantised one, what quantising it again costs.")
    ] = None,
    bits: Bits = "8",
    sparsity: Sparsity = "dense",
    recipe: Recipe = "best",
    full: Full = False,
    json: Json = None,
) -> None:
    """A configuration's sizes and peaks; with --synth yosys its resources; with --model what a model is."""
    from alula.info import describe, describe_model, resources

    check_writable(json)
    machine = resolve(config, set or ())
    result = describe(machine)
    if synth is not None:
        with progress(f"synthesising {machine} with Yosys") as advance:
            result |= resources(machine, card, lambda text: advance(0, text))
    if model is not None:
        with progress(f"opening {model}") as advance:
            result |= describe_model(model, compression(bits, sparsity, recipe), lambda text: advance(0, text))
    write_json(json, result)
    if not result["over_card"] and (line := misfit(machine)):  # what is over is marked in the budget
        errors.print(f"note: {line}", markup=False)
    show_configuration(result, full)
    if synth is not None:
        _show_resources(result)
    if model is not None:
        show_model(result)


def _show_resources(result: dict) -> None:
    for counts in (resource_table(result), placement_table(result), unit_table(result)):
        console.print(counts)
    for line in remarks(result):
        console.print(line, soft_wrap=True, markup=False)


@app.command()
def emit(
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to write.")],
    config: Machine = "tiny",
    set: Set = None,
    testbench: Annotated[
        bool, typer.Option("--testbench", help="With a self-checking bench for any Verilog simulator.")
    ] = False,
    program: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="What the bench runs, made by `alula asm` (default: a layer of llava-tiny)."),
    ] = None,
    json: Json = None,
) -> None:
    """Write the Verilog of a configuration; with --testbench a run that checks itself."""
    from alula.testbench import README, emit_folder, record_layer, record_program

    check_writable(json)
    machine = resolve(config, set or ())
    recording = None
    if testbench:
        with progress("simulating the run of the test bench"):
            recorded = program is not None and record_program(machine, program, read_bytes(program))
            recording = recorded or record_layer(machine)
    with progress(f"writing the Verilog of {machine}"):
        paths = emit_folder(machine, out, recording)
    result: dict[str, object] = {"config": str(machine), "folder": str(out), "files": [path.name for path in paths]}
    if recording is not None:
        result |= {"run": recording.what, "cycles": recording.result.cycles}
    write_json(json, result)
    for path in paths:
        console.print(f"{path}: {size(path.stat().st_size)}", soft_wrap=True, markup=False)
    if recording is not None:
        console.print(f"{out / README} says how to run it: {recording.what}", soft_wrap=True, markup=False)


@app.command()
def build(
    config: Machine = "u280",
    set: Set = None,
    card: Annotated[
        str | None, typer.Option(help="u280, u50, u55c, v80 or generic (default: by configuration).")
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(help="hw, hw_emu or xo; for v80 hw, sim or ip; for generic ip (default: the first of them)."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Folder to write (default: bitstreams/CONFIG-CARD).")
    ] = None,
    json: Json = None,
) -> None:
    """Write the project of a configuration and a card, build it where the vendor's tools are; exit code 3 where not."""
    from alula.alveo.build import NOT_BUILT, missing_line
    from alula.alveo.build import build as run

    check_writable(json)
    machine = resolve(config, set or ())
    with progress(f"building {machine}") as advance:
        result = run(machine, card, target, out, note=lambda text: advance(0, text))
    write_json(json, result)
    if result["missing"]:
        errors.print(missing_line(result), markup=False)
        raise typer.Exit(NOT_BUILT)
    show_figures(f"{machine} on {result['card']}", result)
