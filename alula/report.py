"""`alula report`: one simulated phase as a page that needs nothing else, and is the same for the same input."""

import json
from collections.abc import Sequence
from pathlib import Path

import jinja2
import matplotlib

from alula.output import amount, percent, size
from alula.placing import Places, joint_names, layers_by_entry
from alula.report_plots import STYLE, colours, draw, svg
from alula.report_profile import OperatorRow, Profile
from alula.runtime.work import operator_shares
from alula.session import Flow
from alula.summary import layers_text, part_text, phase_text, weights_text
from hw.spec.config import Config
from hw.spec.errors import UserError
from hw.spec.isa import Unit
from hw.spec.memory import MemoryModel
from sim.trace import UNIT_NAMES

HERE = Path(__file__).parent
UNIT_CAUSES = {
    f"wait_{unit.name.lower()}": f"{UNIT_NAMES[unit]} idle: the next instruction waits for another unit's result"
    for unit in (Unit.RD, Unit.MX, Unit.VU, Unit.LD, Unit.ST)
}
CAUSES = {
    "stall_queue": "sequencer: a unit's queue is full (units are behind, instructions are ahead)",
    "stall_fence": "sequencer: waits at a fence or at the end until units have finished",
    "stall_lds": "sequencer: waits for a scalar from auxiliary memory",
    **UNIT_CAUSES,
    "mx_weight_stall": "matrix units (MX) at work, but weights have not arrived: bound by memory",
    "mx_drain_stall": "matrix units (MX) at work, but accumulators are still being emptied",
    "unpack_stall": "unit 0's weight buffer is full: memory is ahead of the array",
}
"""Counters and what they say."""
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
    profile = profile_of(flow, result, cycles, memory)
    rows = profile.rows()
    window, part = _window(flow, result, cycles)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"n": _number, "big": _big, "size": size}
    environment.filters["share"] = lambda value: NO_VALUE if value is None else percent(value)
    causes = [(name, result["counters"].get(name, 0), meaning) for name, meaning in CAUSES.items()]
    return environment.get_template("report.html.jinja").render(
        title=f"{result['model']} on {config.name}, {layers_text(result)}: {phase_text(result)}",
        missing=part_text(result),
        result=result,
        config=config,
        digest=config.digest(),
        causes=causes,
        inputs=_inputs(flow, result),
        headline=_headline(result),
        figures=figures(profile, rows, window, result, causes, part),
        window=window,
        part=part,
        operators=_operator_rows(rows, profile),
        totals=_totals(rows, result),
        units={unit.name: UNIT_NAMES[unit] for unit in Unit},
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
    part: str,
) -> dict[str, str]:
    """SVG by name."""
    macs, moved = sum(row.array_macs for row in rows), result["channel_bytes_read"]
    whole = macs / max(moved, 1), macs / profile.cycles
    with matplotlib.rc_context(STYLE):
        return {name: svg(figure, name) for name, figure in draw(profile, rows, window, whole, causes, part).items()}


def profile_of(flow: Flow, result: dict, cycles: int, memory: MemoryModel | None = None) -> Profile:
    """The run by operator. What shares a weight stream is one operator: its bytes cannot be told apart in time."""
    pairs, shares = joint_names(flow.layout), operator_shares(flow.layout, result["phase"], result["layers"])
    operators = {pc: pairs.get(name, name) for pc, name in flow.compiled.program.operators.items()}
    by_row = {pairs.get(name, name): share for name, share in shares.items()}
    return Profile(result["trace"], operators, flow.config, cycles, memory, by_row)


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


def _window(flow: Flow, result: dict, cycles: int) -> tuple[tuple[int, int], str]:
    """The cycles that are shown in detail, and what they are: a layer in the middle of the run where one is told."""
    layers = layers_by_entry(flow.layout, flow.layers, result["reduction"] is not None)
    found = Places(flow.compiled.program, result["trace"], layers).layer_window()
    if found is None:
        return (0, cycles), "the whole run"
    first, end, layer = found
    return (first, end), "one layer" if layer is None else f"layer {layer} (of 0 to {result['layers'] - 1})"


def _inputs(flow: Flow, result: dict) -> list[tuple[str, str]]:
    """What was simulated."""
    config = flow.config
    mean = result["average_bits"]
    return [
        ("model", f"{result['model']}, {layers_text(result)}, context {flow.context:,} tokens"),
        ("phase", phase_text(result)),
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
            f"{size(result['weight_bytes'])} in the channels",
        ),
        ("sparsity", f"{result['sparsity']}; {100 * result['nonzeros']:.3g} % of the compressed weights are kept"),
        ("recipe", result["recipe"] or "none (dense INT8)"),
        ("values", "timing only, no weights are needed" if flow.timing_only else "with weights"),
        ("program", f"{size(result['program_bytes'])}, {result['instructions_executed']:,} instructions executed"),
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
        ("no rate", "of the whole model", f"{part_text(result).partition(':')[0]} ran") if part_text(result) else None,
        (
            percent(result["array_utilisation"]),
            "of the array",
            f"{_big(result['macs_sparse'])} useful MACs that it multiplied",
        ),
        (
            percent(result["mac_utilisation"]),
            "dense-equivalent",
            f"{_big(result['macs'])} useful MACs of the dense model, those of pruned weights included",
        )
        if result["macs"] != result["macs_sparse"]
        else None,
        (
            percent(result["hbm_utilisation"]),
            "of the channels",
            f"useful share of their peak bandwidth; {size(result['channel_bytes_read'])} read",
        ),
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
            "macs": row.array_macs,
            "channel_bytes": row.channel_bytes,
            "aux_bytes": row.aux_bytes,
            "busy": row.busy,
            "array": row.array_macs / (row.moving_cycles * peak) if row.macs and row.moving_cycles else None,
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
        "macs": sum(row.array_macs for row in rows),
        "channel_bytes": sum(row.channel_bytes for row in rows),
        "aux_bytes": sum(row.aux_bytes for row in rows),
        "busy": {unit.name: sum(row.busy[unit.name] for row in rows) for unit in Unit},
    }


def _traffic(result: dict) -> list[tuple[str, int]]:
    """Bytes by purpose, those that moved."""
    return [(name.replace("_", " "), value) for name, value in result["traffic"].items() if value]


def _this_run(result: dict) -> dict:
    """This run as a row among the published systems; a part of a model has no time to compare."""
    rate, seconds = result["tokens_per_second"], result["seconds_at_clock"] if result["whole_model"] else None
    return {
        "model": f"{result['model']}, {layers_text(result)}, {weights_text(result)}",
        "board": f"{result['config']}, {result['clock_hz'] / 1e6:g} MHz configured",
        "length": {"decode": f"{result['kv']:,} keys", "prefill": f"{result['tokens']:,} tokens"}.get(
            result["phase"], "one image"
        ),
        "tokens_per_second": rate if result["phase"] == "decode" else None,
        "milliseconds": None if seconds is None else 1e3 * seconds,
        "bandwidth": percent(result["hbm_utilisation"]),
    }


def _big(value: float) -> str:
    """A large number with a multiple behind it: 1.234 G."""
    for multiple, power in (("T", 12), ("G", 9), ("M", 6)):
        if value >= 10**power:
            return f"{amount(value / 10**power)} {multiple}"
    return f"{value:,}"


def _number(value: float | None) -> str:
    """Thousands separated; what is not known is a dash."""
    if value is None:
        return NO_VALUE
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"
