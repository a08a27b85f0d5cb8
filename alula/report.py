"""`alula report`: one simulated phase as a page that needs nothing else, and is the same for the same input."""

import json
from collections.abc import Sequence
from pathlib import Path

import jinja2
import matplotlib

from alula.report_plots import STYLE, colours, draw, svg
from alula.report_profile import OperatorRow, Profile
from alula.session import Flow
from hw.spec.config import Config
from hw.spec.errors import InternalError, UserError
from hw.spec.isa import Unit
from hw.spec.memory import MemoryModel

HERE = Path(__file__).parent
CAUSES = {
    "stall_queue": "sequencer: a unit's queue is full (units are behind, instructions are ahead)",
    "stall_fence": "sequencer: waits at a fence or at the end until units have finished",
    "stall_lds": "sequencer: waits for a scalar from auxiliary memory",
    "wait_rd": "RD idle: its next instruction waits for another unit's result",
    "wait_mx": "MX idle: its next instruction waits for another unit's result",
    "wait_vu": "VU idle: its next instruction waits for another unit's result",
    "wait_ld": "LD idle: its next instruction waits for another unit's result",
    "wait_st": "ST idle: its next instruction waits for another unit's result",
    "mx_weight_stall": "MX at work, but its weights have not arrived: bound by memory",
    "mx_drain_stall": "MX at work, but its accumulators are still being emptied",
    "unpack_stall": "unit 0's weight buffer is full: memory is ahead of the array",
}
"""Counters and what they say."""
PHASES = {"prefill": "prefill of {tokens} tokens", "decode": "decode step at {kv} keys", "vision": "one image"}
NO_VALUE = "\N{EN DASH}"


def check(phase: str, cycles: int | None) -> int:
    """The cycles of a run that can be shown; UserError for a phase that has none."""
    if not cycles:
        raise UserError(f"the run of phase {phase} has no cycles: report needs the cycle simulator")
    return cycles


def page(flow: Flow, result: dict) -> str:
    """HTML of a run. result: what `alula.simulation.simulate` returns on the cycle simulator, its trace included."""
    cycles, config = check(result["phase"], result["cycles"]), flow.config
    memory = MemoryModel.of(config, result["memory"])
    profile = Profile(result["trace"], flow.compiled.program.operators, config, cycles, memory)
    rows = profile.rows()
    tiled = result["layers"] if result["phase"] == "vision" else None
    window = profile.layer(_first_operator(flow, result["phase"]), tiled)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"n": _number, "share": lambda value: NO_VALUE if value is None else f"{100 * value:.1f} %"}
    causes = [(name, result["counters"].get(name, 0), meaning) for name, meaning in CAUSES.items()]
    return environment.get_template("report.html.jinja").render(
        title=f"{result['model']} on {config.name}: {PHASES[result['phase']].format(**result)}",
        result=result,
        config=config,
        digest=config.digest(),
        causes=causes,
        inputs=_inputs(flow, result),
        headline=_headline(result),
        figures=figures(profile, rows, window, result, causes),
        window=window,
        operators=_operator_rows(rows, profile),
        totals=_totals(rows, result),
        units=[unit.name for unit in Unit],
        traffic=_traffic(result),
        published=published(result["phase"]),
        here=_this_run(result),
    )


def figures(
    profile: Profile,
    rows: Sequence[OperatorRow],
    window: tuple[int, int],
    result: dict,
    causes: Sequence[tuple[str, int, str]],
) -> dict[str, str]:
    """SVG by name."""
    macs, moved = sum(row.macs for row in rows), result["hbm_bytes_read"]
    whole = macs / max(moved, 1), macs / profile.cycles
    with matplotlib.rc_context(STYLE):
        return {name: svg(figure, name) for name, figure in draw(profile, rows, window, whole, causes).items()}


def published(phase: str) -> list[dict]:
    """Published systems that report this phase."""
    systems = json.loads((HERE / "published.json").read_text())["systems"]
    return [system for system in systems if system["phase"] == phase]


def memory_model(config: Config, result: dict) -> str:
    """What the simulator takes memory for."""
    fixed = f"the first beat {config.read_latency} cycles behind an accepted read address, then a beat a cycle"
    channels = {"fixed": f"fixed latency: {fixed}", "hbm": "HBM2 timing of every channel (rows, refresh, turnaround)"}
    jitter = f"; reads up to {result['jitter']} cycles later, seed {result['memory_seed']}" if result["jitter"] else ""
    writes = f"a write's response after {config.write_latency}"
    return f"{channels[result['memory']]}; auxiliary memory: {fixed}; {writes}{jitter}"


def _first_operator(flow: Flow, phase: str) -> str:
    """The operator that begins a layer."""
    layer = flow.layout.tower.layer if phase == "vision" else flow.layout.model.text.layer
    name = getattr(layer[0], "name", None)
    if name is None:
        raise InternalError(f"a layer of {flow.source} begins with {type(layer[0]).__name__}, a norm was expected")
    return name


def _inputs(flow: Flow, result: dict) -> list[tuple[str, str]]:
    """What was simulated."""
    config = flow.config
    mean = result["average_bits"]
    return [
        ("model", f"{result['model']}, {result['layers']} layers, context {flow.context:,} tokens"),
        ("phase", PHASES[result["phase"]].format(**result)),
        ("configuration", f"{config.name}, digest {config.digest()}"),
        (
            "machine",
            f"{config.units} matrix units x {config.chains} chains ({config.macs_per_cycle:,} MACs a cycle), "
            f"{config.lanes} vector lanes, {config.units} channels of 64 bytes a cycle",
        ),
        ("clock", f"{config.clock_hz / 1e6:g} MHz, as configured; nothing here was measured on a board"),
        ("memory model", memory_model(config, result)),
        (
            "weights",
            f"{result['bits']} bits asked for, {mean:.4g} on average in compressed layers; "
            f"{result['weight_bytes']:,} bytes in the channels",
        ),
        ("sparsity", f"{result['sparsity']}; {100 * result['nonzeros']:.3g} % of the compressed weights are kept"),
        ("recipe", result["recipe"] or "none (dense INT8)"),
        ("values", "timing only, no weights are needed" if flow.timing_only else "with weights"),
        ("program", f"{result['program_bytes']:,} bytes, {result['instructions_executed']:,} instructions executed"),
    ]


def _headline(result: dict) -> list[tuple[str, str, str]]:
    """(figure, unit, note)."""
    at_clock = f"at the configured {result['clock_hz'] / 1e6:g} MHz, not a measured board"
    seconds = result["seconds_at_clock"]
    rate = result["tokens_per_second"]
    found = [
        (f"{result['cycles']:,}", "cycles", "in the cycle simulator"),
        (f"{1e3 * seconds:,.4g}", "ms", at_clock),
        (f"{rate:,.1f}", "tokens/s", at_clock) if rate is not None else None,
        (f"{100 * result['mac_utilisation']:.1f} %", "of the array", f"{result['macs']:,} useful MACs"),
        (f"{100 * result['hbm_utilisation']:.1f} %", "of the channels", f"{result['hbm_bytes_read']:,} bytes read"),
    ]
    return [entry for entry in found if entry is not None]


def _operator_rows(rows: Sequence[OperatorRow], profile: Profile) -> list[dict]:
    shade = colours(profile.names)
    peak = profile.config.macs_per_cycle
    return [
        {
            "name": row.name,
            "colour": shade[row.name],
            "cycles": row.cycles,
            "share": row.cycles / profile.cycles,
            "macs": row.macs,
            "channel_bytes": row.channel_bytes,
            "aux_bytes": row.aux_bytes,
            "busy": row.busy,
            "array": row.macs / (row.moving_cycles * peak) if row.macs and row.moving_cycles else None,
        }
        for row in rows
    ]


def _totals(rows: Sequence[OperatorRow], result: dict) -> dict:
    """Sums over operators, and the cycles that belong to none."""
    cycles = sum(row.cycles for row in rows)
    return {
        "cycles": cycles,
        "nobody": result["cycles"] - cycles,
        "all": result["cycles"],
        "macs": sum(row.macs for row in rows),
        "channel_bytes": sum(row.channel_bytes for row in rows),
        "aux_bytes": sum(row.aux_bytes for row in rows),
        "busy": {unit.name: sum(row.busy[unit.name] for row in rows) for unit in Unit},
    }


def _traffic(result: dict) -> list[tuple[str, int]]:
    """Bytes by purpose, those that moved."""
    return [(name.replace("_", " "), value) for name, value in result["traffic"].items() if value]


def _this_run(result: dict) -> dict:
    """This run as a row among the published systems."""
    rate, seconds = result["tokens_per_second"], result["seconds_at_clock"]
    return {
        "model": f"{result['model']}, {result['bits']}-bit weights, {result['sparsity']}",
        "board": f"{result['config']}, {result['clock_hz'] / 1e6:g} MHz configured",
        "length": {"decode": f"{result['kv']:,} keys", "prefill": f"{result['tokens']:,} tokens"}.get(
            result["phase"], "one image"
        ),
        "tokens_per_second": rate if result["phase"] == "decode" else None,
        "milliseconds": 1e3 * seconds,
        "bandwidth": f"{100 * result['hbm_utilisation']:.1f} %",
    }


def _number(value: float | None) -> str:
    """Thousands separated; what is not known is a dash."""
    if value is None:
        return NO_VALUE
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"
