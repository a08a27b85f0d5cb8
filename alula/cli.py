"""The command line. Commands parse options, call one function each, and show what it returns."""

import contextlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from alula import cli_machine, cli_module
from alula.cli_module import conclude
from alula.cli_options import (
    BackendName,
    Bits,
    Context,
    EntryName,
    ExitLayer,
    FastV,
    Full,
    ImageStart,
    ImageTokens,
    Jitter,
    Json,
    KeepSchedule,
    KeepVisual,
    Layers,
    Length,
    Machine,
    Mask,
    Memory,
    MemorySeed,
    Mmproj,
    Model,
    Module,
    Recipe,
    Seed,
    Set,
    Sparsity,
    Strategy,
    compression,
)
from alula.cli_rules import CheckedCommand
from alula.machine import misfit, over_card
from alula.output import (
    check_writable,
    console,
    errors,
    progress,
    show,
    size,
    write_atomically,
    write_json,
)
from alula.summary import part_text, phase_text, show_compiled, show_simulation, show_verified
from hw.spec.config import Config, ConfigError
from hw.spec.errors import InternalError, UserError
from hw.spec.machine import resolve
from hw.spec.memory import MemoryModel

app = typer.Typer(
    name="alula",
    help="LLaVA on FPGAs: compile, simulate and verify, bit for bit and cycle for cycle.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
INTERRUPTED = 130
_state = {"verbose": False}


@app.callback()
def _options(verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Show tracebacks.")] = False) -> None:
    _state["verbose"] = verbose


def _open(model: str, config: Config, **options):
    """Open and compile, with a bar; imports are late so that small commands start at once."""
    from alula.session import open_flow

    if line := misfit(config):
        errors.print(f"note: {line}", markup=False)
    with progress(f"compiling {model} for {config}"):
        flow = open_flow(model, config, **options)
    text = flow.model.config.text
    if text.shortened:
        errors.print(f"note: {model} is compiled for at most {text.context:,} tokens: {text.shortened}", markup=False)
    return flow


@app.command("compile")
def compile_command(
    module: Module = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Container file to write.")] = None,
    model: Model = "llava-tiny",
    config: Machine = "tiny",
    set: Set = None,
    timing_only: Annotated[
        bool, typer.Option("--timing-only", help="Without weights: sizes only, -o stores the program alone.")
    ] = False,
    lengths: Annotated[
        str, typer.Option(help="How lengths are served: runtime; baselines (--timing-only): bucketed, unrolled.")
    ] = "runtime",
    mmproj: Mmproj = None,
    layers: Layers = None,
    context: Context = None,
    seed: Seed = 0,
    bits: Bits = "8",
    sparsity: Sparsity = "dense",
    recipe: Recipe = "best",
    full: Full = False,
    json: Json = None,
) -> None:
    """Compile a model for a configuration into one container file."""
    from alula.container import save, sizes

    if out is not None:
        check_writable(out)
    check_writable(json)
    if out is None and not timing_only:
        raise UserError("there is no file to write: give -o FILE, or --timing-only for sizes alone")
    machine = resolve(config, set or ())
    began = time.monotonic()
    if module is not None:
        assert out is not None
        cli_module.compile(module, machine, seed, out, json)
        return
    options = {"compression": compression(bits, sparsity, recipe), "timing_only": timing_only, "program": lengths}
    flow = _open(model, machine, mmproj=mmproj, layers=layers, context=context, seed=seed, **options)
    if timing_only:
        compiled = time.monotonic()
        with progress("sizing the streams of every length"):
            result = sizes(out, flow, lengths) | {"compile_seconds": compiled - began}
        result["wall_seconds"] = time.monotonic() - began
        write_json(json, result)
        show_compiled(result, full)
        return
    assert out is not None
    with progress(f"writing {out}"):
        manifest = save(out, flow)
    result = manifest | {"file": str(out), "file_bytes": out.stat().st_size, "wall_seconds": time.monotonic() - began}
    write_json(json, result)
    show_compiled(result, full)


@app.command()
def simulate(
    module: Module = None,
    length: Length = None,
    entry: EntryName = None,
    model: Model = "llava-tiny",
    config: Machine = "tiny",
    set: Set = None,
    phase: Annotated[str, typer.Option(help="prefill, decode, vision or ttft (time to first token).")] = "prefill",
    tokens: Annotated[int, typer.Option(help="Prompt tokens (prefill; ttft: of text).")] = 16,
    kv: Annotated[int, typer.Option(help="Keys seen, the new token's included (decode).")] = 16,
    mmproj: Mmproj = None,
    layers: Layers = None,
    context: Context = None,
    backend: BackendName = "cycle",
    attention_mask: Mask = None,
    keep_schedule: KeepSchedule = None,
    exit_layer: ExitLayer = None,
    fastv: FastV = None,
    keep_visual: KeepVisual = None,
    strategy: Strategy = "rank",
    image_tokens: ImageTokens = None,
    image_start: ImageStart = None,
    check: Annotated[bool, typer.Option(help="Compare with the golden model, every byte.")] = False,
    memory: Memory = None,
    jitter: Jitter = 0,
    memory_seed: MemorySeed = 0,
    seed: Seed = 0,
    bits: Bits = "8",
    sparsity: Sparsity = "dense",
    recipe: Recipe = "best",
    full: Full = False,
    json: Json = None,
    trace: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a Chrome/Perfetto trace.")] = None,
) -> None:
    """Simulate one phase; print its metrics."""
    from alula.placing import Run, layers_by_entry, trace_json
    from alula.reduction import asked

    check_writable(json)
    check_writable(trace)
    machine = resolve(config, set or ())
    timed_by = MemoryModel.of(machine, memory, jitter, memory_seed)
    if module is not None:
        cli_module.simulate(module, machine, seed, length, entry, timed_by, json, trace)
        return
    began = time.monotonic()
    first = phase == "ttft"
    options = {"vision": first or phase == "vision", "compression": compression(bits, sparsity, recipe)}
    by_values = fastv is not None or (phase == "vision" and keep_visual is not None)
    options["timing_only"] = backend == "cycle" and not check and not by_values
    options |= {"keep_visual": image_tokens if first else keep_visual, "strategy": strategy}
    reduction = asked(keep_schedule, exit_layer, fastv, image_tokens, image_start)
    flow = _open(model, machine, mmproj=mmproj, layers=layers, context=context, seed=seed, **options)
    given = {"tokens": tokens, "kv": kv, "name": backend, "check": check, "reduction": reduction, "memory": timed_by}
    result = _first_token(flow, tokens, timed_by) if first else _phase(flow, phase, attention_mask, **given)
    result |= {"over_card": over_card(machine), "wall_seconds": time.monotonic() - began}
    events = result.pop("trace")
    if trace is not None:
        run = Run(events, layers_by_entry(flow.layout, flow.layers, reduction is not None))
        title = f"{result['model']} on {result['config']}, {phase_text(result)}"
        write_atomically(trace, trace_json(flow.layout, flow.compiled.program, [run], title))
    write_json(json, result)
    show_simulation(result, full)
    if result["bit_exact"] is False or result["cycle_exact"] is False:
        raise InternalError(f"the executors disagree: {result['first_difference'] or 'cycles'}")


def _phase(flow, phase: str, attention_mask: str | None, **options) -> dict:
    """What `simulate` returns, with a bar."""
    from alula.simulation import simulate as run

    mask = flow.mask(attention_mask)
    with progress(f"{phase} on {flow.config.name}") as advance:
        return run(flow, phase, note=lambda text: advance(0, text), mask=mask, **options)


def _first_token(flow, tokens: int, memory: MemoryModel) -> dict:
    """What `simulate --phase ttft` returns, with a bar."""
    from alula.first_token import first_token

    with progress(f"ttft on {flow.config.name}") as advance:
        return first_token(flow, tokens, memory, lambda text: advance(0, text))


@app.command()
def report(
    out: Annotated[Path, typer.Option("-o", "--out", help="HTML page to write.")],
    model: Model = "llava-tiny",
    config: Machine = "tiny",
    set: Set = None,
    phase: Annotated[str, typer.Option(help="prefill, decode or vision.")] = "prefill",
    tokens: Annotated[int, typer.Option(help="Prompt tokens (prefill).")] = 16,
    kv: Annotated[int, typer.Option(help="Keys seen, the new token's included (decode).")] = 16,
    mmproj: Mmproj = None,
    layers: Layers = None,
    context: Context = None,
    attention_mask: Mask = None,
    keep_schedule: KeepSchedule = None,
    exit_layer: ExitLayer = None,
    fastv: FastV = None,
    keep_visual: KeepVisual = None,
    strategy: Strategy = "rank",
    image_tokens: ImageTokens = None,
    image_start: ImageStart = None,
    memory: Memory = None,
    jitter: Jitter = 0,
    memory_seed: MemorySeed = 0,
    seed: Seed = 0,
    bits: Bits = "8",
    sparsity: Sparsity = "dense",
    recipe: Recipe = "best",
    json: Json = None,
) -> None:
    """Simulate one phase in cycles and show it on one HTML page that needs nothing else."""
    from alula.reduction import asked

    check_writable(out)
    check_writable(json)
    machine = resolve(config, set or ())
    timed_by = MemoryModel.of(machine, memory, jitter, memory_seed)
    options = {"vision": phase == "vision", "compression": compression(bits, sparsity, recipe)}
    options |= {"keep_visual": keep_visual, "strategy": strategy}
    reduction = asked(keep_schedule, exit_layer, fastv, image_tokens, image_start)
    timing_only = fastv is None and keep_visual is None  # which choose by values
    options |= {"timing_only": timing_only, "mmproj": mmproj}
    flow = _open(model, machine, layers=layers, context=context, seed=seed, **options)
    result = _phase(flow, phase, attention_mask, tokens=tokens, kv=kv, reduction=reduction, memory=timed_by)
    with progress("drawing"):
        from alula.report import page

        write_atomically(out, page(flow, result))
    del result["trace"]
    write_json(json, result)
    marks = f"; {part_text(result)}" if part_text(result) else ""
    console.print(f"{out}, {size(out.stat().st_size)}: {result['cycles']:,} cycles{marks}", soft_wrap=True)


@app.command()
def verify(
    module: Module = None,
    length: Length = None,
    entry: EntryName = None,
    model: Model = "llava-tiny",
    config: Machine = "tiny",
    set: Set = None,
    mmproj: Mmproj = None,
    layers: Layers = None,
    context: Context = None,
    backend: Annotated[str, typer.Option(help="Last executor: functional, cycle or rtl (all of them).")] = "rtl",
    lengths: Annotated[str, typer.Option(help="Lengths of prefills and of decode steps, separated by commas.")] = "",
    program: Annotated[str, typer.Option(help="runtime: one program; or a baseline: bucketed, unrolled.")] = "runtime",
    steps: Annotated[int, typer.Option(help="Decode steps behind the longest prefill.")] = 4,
    attention_mask: Mask = None,
    keep_schedule: KeepSchedule = None,
    exit_layer: ExitLayer = None,
    fastv: FastV = None,
    keep_visual: KeepVisual = None,
    strategy: Strategy = "rank",
    image_tokens: ImageTokens = None,
    image_start: ImageStart = None,
    memory: Memory = None,
    jitter: Jitter = 0,
    memory_seed: MemorySeed = 0,
    seed: Seed = 0,
    bits: Bits = "8",
    sparsity: Sparsity = "dense",
    recipe: Recipe = "best",
    full: Full = False,
    json: Json = None,
) -> None:
    """Run the same program on golden, functional, cycle and RTL; compare every byte and every cycle."""
    from alula.reduction import asked
    from alula.verification import default_lengths
    from alula.verification import verify as run

    check_writable(json)
    machine = resolve(config, set or ())
    timed_by = MemoryModel.of(machine, memory, jitter, memory_seed)
    if module is not None:
        cli_module.verify(module, machine, seed, backend, length, entry, timed_by, full, json)
        return
    compressed = compression(bits, sparsity, recipe)
    reduction = asked(keep_schedule, exit_layer, fastv, image_tokens, image_start)
    options = {"compression": compressed, "program": program, "keep_visual": keep_visual, "strategy": strategy}
    flow = _open(model, machine, mmproj=mmproj, layers=layers, context=context, seed=seed, **options)
    mask, decode = flow.mask(attention_mask), _lengths(lengths)
    chosen = decode or default_lengths(flow, reduction)
    began = time.monotonic()
    with progress("verify", total=len(chosen) + len(decode) + steps + (flow.model.vision is not None)) as advance:
        result = run(
            flow,
            backend,
            chosen,
            steps,
            lambda text: advance(0, text),
            lambda outcome: advance(1, outcome.name),
            mask,
            reduction,
            decode,
            timed_by,
        )
    result["wall_seconds"] = time.monotonic() - began
    write_json(json, result)
    show_verified(result, full)
    conclude(result)


def _lengths(text: str) -> tuple[int, ...]:
    try:
        found = tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise UserError(f"--lengths {text!r} is no list of numbers: give for example 1,7,16") from None
    if any(n < 1 for n in found):
        raise UserError(f"--lengths {text!r}: every length must be at least 1")
    return found


@app.command()
def generate(
    prompt: Annotated[str, typer.Option(help="Text; <image> stands for the image.")],
    model: Model = "smollm2-135m",
    config: Machine = "small",
    set: Set = None,
    tokens: Annotated[int, typer.Option()] = 32,
    temperature: Annotated[float | None, typer.Option(help="Draw tokens at it (default: greedy).")] = None,
    draw_seed: Annotated[int, typer.Option(help="Seed of the drawing.")] = 0,
    image: Annotated[Path | None, typer.Option(help="Image file.")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Ask in the model's own chat template.")] = False,
    mmproj: Mmproj = None,
    layers: Layers = None,
    context: Context = None,
    attention_mask: Mask = None,
    keep_schedule: KeepSchedule = None,
    exit_layer: ExitLayer = None,
    fastv: FastV = None,
    keep_visual: KeepVisual = None,
    strategy: Strategy = "rank",
    backend: Annotated[str, typer.Option(help="functional, cycle, rtl or xrt (a card).")] = "functional",
    device: Annotated[
        str, typer.Option(help="For xrt: a card's number; a V80's PCIe address; sim, a stand-in over the RTL.")
    ] = "0",
    xclbin: Annotated[
        Path | None, typer.Option(help="For xrt on a card: what `alula build` made, an xclbin, for V80 a vbin.")
    ] = None,
    check: Annotated[bool, typer.Option(help="Compare every step with the golden model.")] = False,
    seed: Seed = 0,
    bits: Bits = "8",
    sparsity: Sparsity = "dense",
    recipe: Recipe = "best",
    json: Json = None,
) -> None:
    """Generate text on the accelerator, simulated or on a card, greedily or with a temperature."""
    from alula import generation
    from alula.reduction import asked
    from alula.sampling import Sampler

    check_writable(json)
    machine = resolve(config, set or ())
    sampler = None if temperature is None else Sampler(temperature, draw_seed)
    tokenizer = generation.tokenizer_of(model, mmproj)
    picture, text = generation.open_inputs(image, prompt)
    ids = generation.prompt_ids(model, tokenizer, text, chat, picture is not None)
    reduction = asked(keep_schedule, exit_layer, fastv)
    options = {"vision": image is not None, "head": True, "compression": compression(bits, sparsity, recipe)}
    options |= {"keep_visual": keep_visual, "strategy": strategy}
    flow = _open(model, machine, mmproj=mmproj, layers=layers, context=context, seed=seed, **options)
    mask = flow.mask(attention_mask)
    patches, order = (None, None) if picture is None else (flow.patches(picture), flow.order(picture))
    stream = generation.Stream(tokenizer, lambda piece: (sys.stdout.write(piece), sys.stdout.flush()))
    began = time.monotonic()
    made_by = {"xrt": generation.card(flow, device, xclbin)} if backend == "xrt" else None
    made = generation.generate(
        flow,
        ids,
        tokens,
        generation.EXECUTORS[backend],
        patches=patches,
        ends=tokenizer.end_ids,
        check=check,
        emit=stream.push,
        mask=mask,
        order=order,
        sampler=sampler,
        reduction=reduction,
        made=made_by,
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
def demo(
    model: Annotated[
        str, typer.Option(help="vits-smollm2 (real weights), or llava-tiny (synthetic ones, all of it in RTL).")
    ] = "vits-smollm2",
    config: Annotated[
        str | None, typer.Option("--config", help="Accelerator (default: small; tiny for llava-tiny), or a .toml file.")
    ] = None,
    set: Set = None,
    image: Annotated[Path | None, typer.Option(help="Image file (default: one that ships).")] = None,
    prompt: Annotated[str | None, typer.Option(help="Text behind the image (default: the model's).")] = None,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the report and the trace.")] = Path("demo-out"),
    backend: Annotated[str, typer.Option(help="Last executor: functional, cycle or rtl (all of them).")] = "rtl",
    tokens: Annotated[int | None, typer.Option(help="Tokens to generate at most (default: the model's).")] = None,
    json: Json = None,
) -> None:
    """A picture and a prompt through a small LLaVA: its text, and simulators and RTL checked against each other."""
    from alula.demo import demo as run

    check_writable(json)
    result = run(
        out,
        backend,
        lambda line: console.print(line, soft_wrap=True, markup=False),
        model=model,
        config=config,
        changes=set or (),
        image=image,
        prompt=prompt,
        n_tokens=tokens,
    )
    write_json(json, result)
    conclude(result)


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
        if type(error).__name__ == "NoArgsIsHelpError":  # a bare `alula`: the help is shown already
            return 0
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


app.add_typer(cli_machine.app)
for registered in (*app.registered_commands, *cli_machine.app.registered_commands):
    registered.cls = CheckedCommand


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the `alula` command."""
    _state["verbose"] = False
    sys.exit(_guarded(lambda: app(args=arguments, standalone_mode=False)))


if __name__ == "__main__":
    main()
