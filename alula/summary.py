"""What commands print: at most ten lines that fit 80 columns, or with --full every figure with its unit."""

from collections.abc import Iterator

from alula.info_tables import budget_table
from alula.output import amount, console, duration, percent, show, size, table
from hw.spec import csr

Lines = list[tuple[str, str]]
"""A subject and what is said of it; the first one is the title, without a subject."""
MEMORIES = {"fixed": "channels of fixed latency", "hbm": "HBM2 timing of the channels"}
_PHASES = {
    "prefill": "prefill of {tokens:,} tokens",
    "decode": "decode step at {kv:,} keys",
    "vision": "one image",
    "ttft": "{image_tokens:,} visual and {tokens:,} text tokens up to the first token",
}
_UNITS = {
    "cycles": "cycles", "cycles_simulated": "cycles", "cycles_rtl": "cycles", "tokens": "tokens", "kv": "keys",
    "context": "tokens", "image_tokens": "tokens", "layers": "layers", "layers_of_model": "layers",
    "vision_layers": "layers", "macs": "MACs", "macs_sparse": "MACs",
    "tokens_per_second": "tokens/s", "instructions": "instructions", "instructions_executed": "instructions",
    "imem_instructions": "instructions", "average_bits": "bits a weight", "bits": "bits a weight",
    "nonzeros": "of 1", "share": "of 1", "jitter": "cycles", "macs_per_cycle": "MACs a cycle",
    "peak_macs_per_second": "MACs/s", "peak_bytes_per_second": "bytes/s", "units": "matrix units",
    "chains": "chains a unit", "lanes": "vector lanes", "ob_blocks": "blocks of 16 bytes", "acc_rows": "rows",
    "ab_granules": "granules of 64 bytes", "pb_granules": "granules of 64 bytes",
    "vb_granules": "granules of 64 bytes", "sb_granules": "granules of 64 bytes", "rs_entries": "entries",
    "fifo_beats": "beats of 64 bytes", "queue_depth": "instructions", "read_latency": "cycles",
    "write_latency": "cycles", "dsp_total": "DSP48E2", "chain_dsps": "DSP48E2", "trace_events": "events",
    "mac_utilisation": "of 1, dense-equivalent", "array_utilisation": "of 1, of the array's own products",
    "trace_events_differing": "events", "sections": "sections", "streams": "programs", "memory_seed": "",
}  # fmt: skip
"""Units of figures whose names do not end in them."""
_COUNTED = {register.name: register.unit for register in csr.registers(0)}
_TABLES = ("budget", "resources", "resources_by_unit", "card_resources", "share_of_card")
"""Parts of a configuration's result that are printed as tables."""
_NAMED_BY = ("part", "name", "unit")
"""Keys that hold the name of an entry of a list."""


def show_simulation(result: dict, full: bool) -> None:
    """The result of `alula simulate`."""
    _show(simulation_lines(result), result, full)


def show_compiled(result: dict, full: bool) -> None:
    """The result of `alula compile`."""
    _show(compiled_lines(result), result, full)


def show_configuration(result: dict, full: bool) -> None:
    """The result of `alula info`."""
    _show(configuration_lines(result), {key: held for key, held in result.items() if key not in _TABLES}, full)
    if full:
        console.print(budget_table(result))


def show_model(result: dict) -> None:
    """The model of `alula info --model`."""
    for subject, text in model_lines(result):
        console.print(f"  {subject:<11}  {text}" if subject else text, markup=False)


def model_lines(result: dict) -> Lines:
    """The summary of a model, and what quantising it again costs."""
    text, vision = result["text"], result["vision"]
    heads = f"{text['heads']} query and {text['kv_heads']} key heads of {text['head_dim']}"
    form = result["quantised"] or "floating point"
    lines = [
        ("", f"{result['model_name']}: {amount(result['parameters'] / 1e6)} million parameters, {form}"),
        ("text", f"{text['layers']} layers of {text['hidden']:,}, {heads}, context {text['context']:,}"),
        ("sizes", f"feed-forward {text['ffn']:,}, vocabulary {text['vocab']:,}"),
    ]
    if vision:
        tower = f"{vision['layers']} layers of {vision['hidden']:,}, images of {vision['image_size']} pixels"
        lines.append(("vision", f"{tower}: {vision['visual_tokens']:,} visual tokens"))
    if found := result["requantisation"]:
        lines.append(("requantised", f"relative RMS error {found['mean_relative_rms_error']:.4f} in the mean"))
        lines.append(("worst", f"{found['worst_relative_rms_error']:.4f} ({found['worst_module']})"))
    return lines


def show_verified(result: dict, full: bool) -> None:
    """The result of `alula verify`; the verdict follows."""
    cases = result["cases"]
    scalars = {key: value for key, value in result.items() if key != "cases"}
    _show(verified_lines(result), scalars, full)
    if full:
        heads = ["case", "bytes\ncompared", "bit-\nexact", "cycles\nsimulated", "cycles\nRTL", "cycle-\nexact"]
        keys = ("name", "compared_bytes", "bit_exact", "cycles_simulated", "cycles_rtl", "cycle_exact")
        console.print(table("cases", heads, [[case[key] for key in keys] for case in cases]))


def show_figures(title: str, values: dict) -> None:
    """Every figure with its unit."""
    rows = [[name, show(value), unit] for name, value, unit in figures(values)]
    shown = table(title, ["figure", "value", "unit"], rows)
    shown.columns[-1].justify = "left"
    console.print(shown)


def phase_text(result: dict) -> str:
    """What a run did: "decode step at 512 keys"."""
    return _PHASES[result["phase"]].format(**result)


def layers_text(result: dict) -> str:
    """How much of a model a result is about: "1 of 32 layers"."""
    n, of = result["layers"], result["layers_of_model"]
    if result.get("phase") == "vision":
        return f"{n} layers of the vision tower"
    return f"all {of} layers" if n == of else f"{n} of {of} layers"


def part_text(result: dict) -> str:
    """Why there is no rate of the whole model; empty where all of it ran."""
    if result["whole_model"]:
        return ""
    missing = layers_text(result) if result["layers"] != result["layers_of_model"] else "without the head"
    return f"{missing}: no rate of the whole model is given"


def weights_text(result: dict) -> str:
    """The precision and sparsity that were asked for."""
    bits = "mixed precisions" if result["bits"] == "mixed" else f"{result['bits']} bits"
    return f"{bits}, {'dense' if result['sparsity'] == 'dense' else result['sparsity'] + ' sparse'}"


def array_text(result: dict) -> str:
    """How busy the array is with useful products; of pruned weights the dense-equivalent share as well."""
    own = f"{percent(result['array_utilisation'])} of what it can multiply"
    if result["macs_sparse"] == result["macs"]:
        return own
    return f"{own}; dense-equivalent {percent(result['mac_utilisation'])}"


def simulation_lines(result: dict) -> Lines:
    """The summary of `alula simulate`."""
    lines = [
        ("", f"{result['model']}, {layers_text(result)}: {phase_text(result)}"),
        ("machine", f"{result['config']}, {MEMORIES[result['memory']]}{_jitter(result)}"),
        ("weights", f"{weights_text(result)}: {size(result['weight_bytes'])} in the channels"),
    ]
    if result["cycles"] is None:
        lines.append(("time", f"the {result['backend']} backend counts no cycles"))
    else:
        lines.append(("time", f"{result['cycles']:,} cycles, {_at_clock(result)}"))
        lines += [*_rate(result), ("array", array_text(result))]
    if "parts" in result:
        return lines + [(part["part"], _part_text(part)) for part in result["parts"] if part["cycles"]]
    lines += [*_memory(result), ("check", _verdict(result))]
    took = f"{duration(result['wall_seconds'])} on this computer, {size(result['peak_memory_bytes'])} of its memory"
    return [*lines, ("took", took)]


def _jitter(result: dict) -> str:
    return f", reads up to {result['jitter']:,} cycles late" if result["jitter"] else ""


def _at_clock(result: dict) -> str:
    return f"{duration(result['seconds_at_clock'])} at an assumed {result['clock_hz'] / 1e6:g} MHz"


def _rate(result: dict) -> Lines:
    if why := part_text(result):
        return [("rate", why)]
    if result.get("tokens_per_second") is None:
        return []
    return [("rate", f"{amount(result['tokens_per_second'])} tokens/s at that clock")]


def _part_text(part: dict) -> str:
    share = "" if part["array_utilisation"] is None else f", {percent(part['array_utilisation'])} of the array"
    return f"{part['cycles']:,} cycles, {duration(part['seconds_at_clock'])}{share}"


def _memory(result: dict) -> Lines:
    """Bandwidth and bytes, by the memory they are in."""
    moved = {key: size(result[key]) for key in result if key.endswith(("_bytes_read", "_bytes_written"))}
    lines = [
        ("channels", f"{moved['channel_bytes_read']} read, {moved['channel_bytes_written']} written"),
        ("auxiliary", f"{moved['aux_bytes_read']} read, {moved['aux_bytes_written']} written"),
    ]
    if result["cycles"] is None:
        return lines
    bytes_moved = result["channel_bytes_read"] + result["channel_bytes_written"]
    peak = bytes_moved / result["hbm_busy"] / result["seconds_at_clock"] if result["hbm_busy"] else 0
    bandwidth = f"{percent(result['hbm_utilisation'])} of {amount(peak / 1e9)} GB/s useful"
    return [(name, f"{text}; {bandwidth}" if name == "channels" else text) for name, text in lines]


def _verdict(result: dict) -> str:
    if result["bit_exact"] is None:
        return "not compared: --check compares every byte with the golden model"
    verdict = "bit-exact" if result["bit_exact"] else "NOT bit-exact"
    cycles = {None: "", True: ", cycle-exact with RTL", False: ", NOT cycle-exact with RTL"}[result["cycle_exact"]]
    return f"{verdict} with the golden model ({result['compared_bytes']:,} bytes){cycles}"


def compiled_lines(result: dict) -> Lines:
    """The summary of `alula compile`."""
    lines = [
        ("", f"{result['model']} for {result['config']}: {layers_text(result)}, context {result['context']:,} tokens"),
        ("weights", f"{weights_text(result)}: {size(result['weight_bytes'])}, {result['average_bits']:.4g} bits each, "
                    f"{percent(result['nonzeros'])} kept"),
        ("program", f"{result['instructions']:,} instructions, {size(result['instructions'] * 8)}, "
                    f"SHA-256 {result['program_sha256'][:12]}.."),
    ]  # fmt: skip
    for name, key in (("each channel", "channel"), ("auxiliary", "aux")):
        used, of = result[f"{key}_bytes_used"], result[f"{key}_capacity_bytes"]
        lines.append((name, f"{size(used)} of {size(of)} ({percent(used / of)})"))
    if "file" in result:
        lines.append(("file", f"{result['file']}, {size(result['file_bytes'])}"))
    for mode, found in result.get("by_lengths", {}).items():
        estimate = " (estimated from samples)" if found["sampled"] else ""
        lines.append(
            (mode, f"{found['streams']:,} programs, {size(found['program_bytes'])} for every length{estimate}")
        )
    return [*lines, ("took", duration(result["wall_seconds"]))]


def verified_lines(result: dict) -> Lines:
    """The summary of `alula verify`."""
    cases = [case["name"] for case in result["cases"]]
    kinds = {kind: sum(name.startswith(kind) for name in cases) for kind in ("vision", "prefill", "decode")}
    counted = ", ".join(f"{count} {kind}" for kind, count in kinds.items() if count)
    memory = f", {MEMORIES[result['memory']]}" if result["backend"] != "functional" else ""
    executors = {"functional": "functional simulator", "cycle": "functional and cycle simulator",
                 "rtl": "functional and cycle simulator, RTL"}  # fmt: skip
    return [
        ("", f"{result['model']}, {layers_text(result)}: {len(cases)} cases ({counted})"),
        ("machine", f"{result['config']}{memory}"),
        ("weights", weights_text(result)),
        ("executors", f"golden model, {executors[result['backend']]}"),
        ("program", f"{', '.join(digest[:12] + '..' for digest in result['program_sha256'][:2])} (SHA-256)"),
        ("took", duration(result["wall_seconds"])),
    ]


def configuration_lines(result: dict) -> Lines:
    """The summary of `alula info`."""
    clock = f"at an assumed {result['clock_hz'] / 1e6:g} MHz"
    lines = [
        ("", f"{result['name']}, digest {result['digest']}, instruction set version {result['isa_version']}"),
        ("array", f"{result['units']} units of {result['chains']} chains: "
                  f"{amount(result['peak_macs_per_second'] / 1e9)} billion MACs/s {clock}"),
        ("vector", f"{result['lanes']} lanes; program memory of {result['imem_instructions']:,} instructions"),
        ("memory", f"{result['units']} channels of {size(result['channel_bytes'])}, "
                   f"{result['peak_bytes_per_second'] / 1e9:,.4g} GB/s at peak; auxiliary {size(result['aux_bytes'])}"),
    ]  # fmt: skip
    board = result["budget_card"]
    for row in result["budget"]:
        used = f"{show(row['used'])} of {show(row['limit'])} {row['unit'].partition(' (')[0]}"
        lines.append((f"on {board}", f"{used} ({_shares(row)})"))
    return lines


def _shares(row: dict) -> str:
    """Of the device; and of what the platform leaves of it, where that is too little."""
    if row["share"] > 1:
        return f"{percent(row['share'])} TOO MANY"
    of_platform = row["platform_share"]
    return percent(row["share"]) + (f"; platform {percent(of_platform)}!" if of_platform and of_platform > 1 else "")


def figures(values: dict, prefix: str = "") -> Iterator[tuple[str, object, str]]:
    """Name, value and unit of every figure of a result, those of nested entries behind the entry's name."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from figures(value, f"{prefix}{key}: ")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for number, entry in enumerate(value):
                name = next((entry[by] for by in _NAMED_BY if by in entry), number)
                rest = {inner: held for inner, held in entry.items() if inner not in _NAMED_BY}
                yield from figures(rest, f"{prefix}{name}: ")
        elif value is not None and value != []:
            shown = ", ".join(map(str, value)) if isinstance(value, list) else value
            yield f"{prefix}{key}", shown, unit_of(key, prefix)


def unit_of(key: str, prefix: str = "") -> str:
    """The unit of a figure; empty where it is a name, a code or a verdict."""
    if prefix.startswith("counters") and key in _COUNTED:
        return _COUNTED[key]
    if prefix.startswith("traffic"):
        return "bytes"
    if key in _UNITS:
        return _UNITS[key]
    if "bytes" in key:
        return "bytes"
    endings = {"seconds": "s", "seconds_at_clock": "s", "_hz": "Hz", "utilisation": "of 1", "_busy": "of 1"}
    return next((unit for ending, unit in endings.items() if key.endswith(ending)), "")


def _show(lines: Lines, values: dict, full: bool) -> None:
    """Prints the summary, or everything."""
    title = lines[0][1]
    if full:
        show_figures(title, values)
        return
    width = max(len(subject) for subject, _ in lines)
    console.print(title, markup=False)
    for subject, text in lines[1:]:
        console.print(f"  {subject:<{width}}  {text}", markup=False)
