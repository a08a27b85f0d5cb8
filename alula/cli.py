"""The command line. Commands parse options, call one function each, and show what it returns."""

import contextlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from alula.errors import InternalError, UserError
from alula.output import (
    check_writable,
    console,
    errors,
    progress,
    read_bytes,
    show,
    table,
    write_atomically,
    write_json,
)
from hw.spec.assembly import AssemblyError, assemble, disassemble
from hw.spec.config import ConfigError

app = typer.Typer(
    name="alula",
    help="LLaVA on FPGAs: compile, simulate and verify, bit for bit and cycle for cycle.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
INTERRUPTED = 130
_state = {"verbose": False}

Json = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the result as JSON.")]
Model = Annotated[str, typer.Option(help="llava-tiny, smollm2-135m, llava-1.5-7b, llava-1.5-13b, or a path.")]
Machine = Annotated[str, typer.Option("--config", help="Accelerator: tiny, small or u280.")]
Layers = Annotated[int | None, typer.Option(help="Decoder layers (default: all).")]
Context = Annotated[int | None, typer.Option(help="Tokens to compile for (default: by configuration).")]
Seed = Annotated[int, typer.Option(help="Seed of synthetic weights.")]
BackendName = Annotated[str, typer.Option(help="functional, cycle or rtl.")]


@app.callback()
def _options(verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Show tracebacks.")] = False) -> None:
    _state["verbose"] = verbose


def _backend(name: str) -> str:
    if name not in ("functional", "cycle", "rtl"):
        raise UserError(f"unknown backend {name!r}: choose functional, cycle or rtl")
    return name


def _open(model: str, config: str, **options):
    """Open and compile, with a bar; imports are late so that small commands start at once."""
    from alula.session import open_flow

    with progress(f"compiling {model} for {config}"):
        return open_flow(model, config, **options)


def _show(title: str, values: dict) -> None:
    console.print(
        table(
            title,
            ["", ""],
            [[key, value] for key, value in values.items() if value is not None and not isinstance(value, list | dict)],
        )
    )


@app.command("compile")
def compile_command(
    out: Annotated[Path, typer.Option("-o", "--out", help="Container file to write.")],
    model: Model = "llava-tiny",
    config: Machine = "tiny",
    layers: Layers = None,
    context: Context = None,
    seed: Seed = 0,
    json: Json = None,
) -> None:
    """Compile a model for a configuration into one container file."""
    from alula.container import save

    check_writable(out)
    check_writable(json)
    began = time.monotonic()
    flow = _open(model, config, layers=layers, context=context, seed=seed)
    with progress(f"writing {out}"):
        manifest = save(out, flow)
    result = manifest | {"file": str(out), "file_bytes": out.stat().st_size, "wall_seconds": time.monotonic() - began}
    write_json(json, result)
    _show(f"{model} on {config}", result)


@app.command()
def simulate(
    model: Model = "llava-tiny",
    config: Machine = "tiny",
    phase: Annotated[str, typer.Option(help="prefill, decode or vision.")] = "prefill",
    tokens: Annotated[int, typer.Option(help="Prompt tokens (prefill).")] = 16,
    kv: Annotated[int, typer.Option(help="Keys seen, the new token's included (decode).")] = 16,
    layers: Layers = None,
    context: Context = None,
    backend: BackendName = "cycle",
    check: Annotated[bool, typer.Option(help="Compare with the golden model, every byte.")] = False,
    seed: Seed = 0,
    json: Json = None,
    trace: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a Chrome/Perfetto trace.")] = None,
) -> None:
    """Simulate one phase; print its metrics."""
    from alula.simulation import simulate as run
    from sim.trace import write_chrome

    check_writable(json)
    check_writable(trace)
    _backend(backend)
    flow = _open(model, config, layers=layers, context=context, seed=seed, vision=phase == "vision")
    with progress(f"{phase} on {config}") as advance:
        result = run(flow, phase, tokens=tokens, kv=kv, name=backend, check=check, note=lambda text: advance(0, text))
    events = result.pop("trace")
    if trace is not None:
        write_chrome(trace, events, flow.config.clock_hz)
    write_json(json, result)
    _show(f"{flow.model.config.name} on {config}, {phase}", result)
    if result["bit_exact"] is False or result["cycle_exact"] is False:
        raise InternalError(f"the executors disagree: {result['first_difference'] or 'cycles'}")


@app.command()
def verify(
    model: Model = "llava-tiny",
    config: Machine = "tiny",
    layers: Layers = None,
    context: Context = None,
    backend: Annotated[str, typer.Option(help="Last executor: functional, cycle or rtl (all of them).")] = "rtl",
    lengths: Annotated[str, typer.Option(help="Prefill lengths, separated by commas.")] = "",
    steps: Annotated[int, typer.Option(help="Decode steps behind the longest prefill.")] = 4,
    seed: Seed = 0,
    json: Json = None,
) -> None:
    """Run the same program on golden, functional, cycle and RTL; compare every byte and every cycle."""
    from alula.verification import PREFILL_LENGTHS
    from alula.verification import verify as run

    check_writable(json)
    _backend(backend)
    chosen = _lengths(lengths) or ((16,) if layers is not None else PREFILL_LENGTHS)
    flow = _open(model, config, layers=layers, context=context, seed=seed)
    began = time.monotonic()
    with progress("verify", total=len(chosen) + steps + (flow.model.vision is not None)) as advance:
        result = run(
            flow, backend, chosen, steps, lambda text: advance(0, text), lambda outcome: advance(1, outcome.name)
        )
    result["wall_seconds"] = time.monotonic() - began
    write_json(json, result)
    _show_cases(result)
    _conclude(result)


def _lengths(text: str) -> tuple[int, ...]:
    try:
        found = tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise UserError(f"--lengths {text!r} is no list of numbers: give for example 1,7,16") from None
    if any(n < 1 for n in found):
        raise UserError(f"--lengths {text!r}: every length must be at least 1")
    return found


def _show_cases(result: dict) -> None:
    columns = ["case", "bytes compared", "bit-exact", "cycles simulated", "cycles RTL", "cycle-exact"]
    keys = ["name", "compared_bytes", "bit_exact", "cycles_simulated", "cycles_rtl", "cycle_exact"]
    console.print(
        table(
            f"{result['model']} on {result['config']}",
            columns,
            [[case[key] for key in keys] for case in result["cases"]],
        )
    )


def _conclude(result: dict) -> None:
    """The two lines that count; InternalError unless both hold."""
    totals = f"{show(result['cycles_simulated'])} simulated = {show(result['cycles_rtl'])} RTL"
    verdict = "bit-exact" if result["bit_exact"] else "NOT bit-exact"
    console.print(f"{verdict} ({result['compared_bytes']:,} bytes compared)")
    if result["cycle_exact"] is not None:
        console.print(f"{'cycle-exact' if result['cycle_exact'] else 'NOT cycle-exact'} ({totals})")
    if not result["bit_exact"] or result["cycle_exact"] is False:
        wrong = [c for c in result.get("cases", []) if not c["bit_exact"] or c["cycle_exact"] is False]
        first = wrong[0] if wrong else {}
        raise InternalError(
            f"the executors disagree, first in {first.get('name')}: {first.get('first_difference') or 'cycles'}"
        )


@app.command()
def generate(
    prompt: Annotated[str, typer.Option(help="Text; <image> stands for the image.")],
    model: Model = "smollm2-135m",
    config: Machine = "small",
    tokens: Annotated[int, typer.Option()] = 32,
    image: Annotated[Path | None, typer.Option(help="Image file.")] = None,
    layers: Layers = None,
    context: Context = None,
    backend: BackendName = "functional",
    check: Annotated[bool, typer.Option(help="Compare every step with the golden model.")] = False,
    seed: Seed = 0,
    json: Json = None,
) -> None:
    """Generate text greedily on the simulated accelerator."""
    from alula import generation

    check_writable(json)
    _backend(backend)
    if tokens < 1:
        raise UserError(f"--tokens {tokens} must be at least 1")
    tokenizer = generation.tokenizer_of(model)
    picture, text = generation.open_inputs(image, prompt)
    flow = _open(model, config, layers=layers, context=context, seed=seed, vision=image is not None, head=True)
    patches = None if picture is None else flow.patches(picture)
    stream = generation.Stream(tokenizer, lambda piece: (sys.stdout.write(piece), sys.stdout.flush()))
    began = time.monotonic()
    made = generation.generate(
        flow,
        tokenizer.encode(text),
        tokens,
        generation.EXECUTORS[backend],
        patches=patches,
        eos_id=tokenizer.eos_id,
        check=check,
        emit=stream.push,
    )
    stream.end()
    result = generation.report(flow, made, tokenizer, backend, time.monotonic() - began)
    write_json(json, result)
    if check:
        console.print(
            f"tokens equal the golden model's: {show(result['tokens_equal_golden'])}; "
            f"bit-exact: {show(result['bit_exact'])} ({result['compared_bytes']:,} bytes compared)"
        )
        if not result["bit_exact"] or not result["tokens_equal_golden"]:
            raise InternalError(f"the executors disagree: {result['first_difference']}")


@app.command()
def disasm(
    source: Annotated[Path, typer.Argument(help="Container, or raw program bytes.")],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Text file to write (default: print).")] = None,
    raw: Annotated[Path | None, typer.Option(help="Also write the program's bytes.")] = None,
    json: Json = None,
) -> None:
    """The text of a container's program; `asm` gives the same bytes back."""
    from alula.container import program_bytes

    for path in (out, raw, json):
        check_writable(path)
    program = program_bytes(source, read_bytes(source))
    text = disassemble(program)
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
    synth: Annotated[str | None, typer.Option(metavar="yosys", help="Resources from Yosys synthesis.")] = None,
    json: Json = None,
) -> None:
    """A configuration's sizes and peaks; with --synth yosys its resources."""
    from alula.info import describe, resources

    check_writable(json)
    result = describe(config)
    if synth is not None:
        if synth != "yosys":
            raise UserError(f"unknown synthesis tool {synth!r}: choose yosys")
        with progress(f"synthesising {config} with Yosys"):
            result |= resources(config)
    write_json(json, result)
    _show(config, result)
    for title, rows in (("resources (Yosys, UltraScale+; LUT counts are rough)", result.get("resources")),):
        if rows:
            _show(title, rows)


@app.command()
def demo(
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the report and the trace.")] = Path("demo-out"),
    backend: BackendName = "rtl",
    tokens: Annotated[int, typer.Option(help="Tokens to generate.")] = 5,
    json: Json = None,
) -> None:
    """A photograph and a prompt through a tiny LLaVA on the simulated RTL, checked at every step."""
    from alula.demo import demo as run

    check_writable(json)
    result = run(out, _backend(backend), tokens, console.print)
    write_json(json, result)
    _conclude(result)


def _guarded(run: Callable[[], object]) -> int:
    """The exit code of a command; failures become one line on stderr."""
    try:
        code = run()
        if code == INTERRUPTED:  # typer turns Ctrl-C into this code
            errors.print("interrupted")
        return code if isinstance(code, int) else 0
    except KeyboardInterrupt:
        errors.print("interrupted")
        return INTERRUPTED
    except (UserError, ConfigError) as error:
        return _fail(f"error: {error}", error)
    except InternalError as error:
        return _fail(f"internal error: {_one_line(error)} (run with -v for the traceback)", error)
    except BrokenPipeError:
        with contextlib.suppress(OSError):
            sys.stdout.close()
        return 1
    except Exception as error:
        if hasattr(error, "format_message"):  # click's usage errors, wherever typer keeps click
            return _fail(f"error: {error.format_message()}", error)
        if type(error).__name__ == "Abort":
            errors.print("interrupted")
            return INTERRUPTED
        what = f"{type(error).__name__}: {_one_line(error)}"
        return _fail(f"internal error: {what} (run with -v for the traceback)", error)


def _one_line(error: Exception) -> str:
    return " / ".join(str(error).splitlines()) if _state["verbose"] else (str(error).splitlines() or [""])[0]


def _fail(line: str, error: Exception) -> int:
    if _state["verbose"]:
        import traceback

        traceback.print_exception(error)
    errors.print(line, markup=False)
    return 1


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the `alula` command."""
    _state["verbose"] = False
    sys.exit(_guarded(lambda: app(args=arguments, standalone_mode=False)))


if __name__ == "__main__":
    main()
