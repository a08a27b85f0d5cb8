"""Tables of measured figures, from benchmarks/results/*.json. Each function is one generated block."""

from tools.documents.results import figure, table

SIMULATED = "cycle simulator"
RTL = "cycle simulator and RTL, equal"
INTEGER = "golden model"
LIKELY_TO_PLACE = 0.75
"""Share of the LUTs above which placers give up clock or fail: a judgement, not a measurement."""
ESTIMATED = "Yosys, an estimate"
NAMES = {"llava-1.5-7b": "LLaVA-1.5-7B", "llava-1.5-13b": "LLaVA-1.5-13B", "smollm2-135m": "SmolLM2-135M"}


def _named(runs: list[dict], **keys: object) -> dict:
    """The one run that has these entries."""
    return next(run for run in runs if all(run[key] == value for key, value in keys.items()))


def _keys(run: dict, runs: list[dict]) -> str:
    """Keys of a decode step; `up to N` where the same step with N keys was measured and takes as long."""
    same = ("phase", "model", "bits", "cycles")
    most = max(other["kv"] for other in runs if all(other.get(key) == run[key] for key in same))
    return f"{run['kv']:,}" if most == run["kv"] else f"up to {most:,}"


def _clock(run: dict) -> str:
    return f"{run['clock_hz'] / 1e6:.0f} MHz"


def _millions(cycles: int) -> str:
    return f"{cycles / 1e6:,.3f}"


def _aim(value: float, aim: float, digits: int = 2) -> str:
    return f"aim {aim:.{digits}f}: {'met' if value <= aim else '**not met**'}"


@figure("headline", "rtl", "quality", "synthesis")
def headline(found: dict, rtl: dict, quality: dict, synthesis: dict) -> str:
    """The README's table."""
    runs = found["runs"]
    prefill = _named(runs, phase="prefill", sparsity="dense")
    rows = [
        [
            f"prefill of {prefill['tokens']} tokens, {NAMES[prefill['model']]}, 8-bit weights",
            f"{prefill['seconds_at_clock']:.2f} s ({prefill['cycles']:,} cycles)",
            SIMULATED,
        ]
    ]
    rows += [
        [
            f"decode, {NAMES[run['model']]}, {run['bits']}-bit weights, {_keys(run, runs)} keys",
            f"{run['tokens_per_second']:.1f} tokens/s",
            SIMULATED,
        ]
        for run in runs
        if run["phase"] == "decode" and run["kv"] != 512
    ]
    first = found["first_token"]
    seconds = first["total"]["seconds_at_clock"]
    rows.append(
        [
            f"image and {first['text_tokens']} text tokens to the first token, {NAMES[first['model']]}, "
            f"{first['visual_tokens']} of 576 visual tokens kept, {first['sparsity']} weights",
            f"{seconds:.3f} s ({_aim(seconds, first['aim_seconds'])})",
            SIMULATED,
        ]
    )
    layer = _named(rtl["runs"], config="u280")
    rows += [
        [
            f"one decode step of one {NAMES[layer['model']]} layer, {layer['bits']}-bit weights, {layer['kv']} keys",
            f"{layer['cycles_rtl']:,} cycles, {layer['compared_bytes']:,} bytes compared",
            RTL if layer["bit_exact"] and layer["cycle_exact"] else "**executors differ**",
        ],
        [
            f"quality: perplexity of {NAMES[quality['model']]}, {', '.join(name for name, _, _ in QUALITY)} weights, "
            "over the float model's (1 is as good)",
            _qualities(quality),
            INTEGER,
        ],
        ["LUTs that the machine takes", _luts(synthesis["whole"]), ESTIMATED],
    ]
    return table([f"on `u280`, assumed clock {_clock(prefill)}", "result", "measured by"], rows)


QUALITY = (("8-bit", "8", "dense"), ("4-bit", "4", "dense"), ("3.5-bit", "3.5", "dense"), ("8:16", "8", "8:16"))
"""Name, bits, sparsity; of each the best recipe that was measured."""


def _qualities(quality: dict) -> str:
    runs = [row for row in quality["runs"] if row["recipe"] != "plain"]
    best = [
        min(row["ratio"] for row in runs if (row["bits"], row["sparsity"]) == (bits, sparsity))
        for _, bits, sparsity in QUALITY
    ]
    aims = sorted({f"{aim:.2f}" for aim in quality["aims"].values()})
    return f"{', '.join(f'{ratio:.3f}' for ratio in best)} (aims at 4 and 3.5 bits, {' and '.join(aims)}: **not met**)"


def _luts(whole: dict) -> str:
    shares = (whole["share_of_card"]["LUT"], whole["share_of_platform"]["LUT"])
    card, platform = (f"{share:.1%}".replace("%", " %") for share in shares)
    verdict = ": **will hardly place**" if shares[1] > LIKELY_TO_PLACE else ""
    return f"{card} of the U280, {platform} of what its platform leaves to the user{verdict}"


@figure("headline")
def phases(found: dict) -> str:
    """Every simulated phase with its utilisation."""
    rows = [
        [
            f"`{run['command']}`",
            f"{run['cycles']:,}",
            f"{run['seconds_at_clock']:.4f}",
            "" if run["phase"] == "prefill" else f"{run['tokens_per_second']:.1f}",
            f"{run['array_utilisation']:.3f}",
            f"{run['mac_utilisation']:.3f}",
            f"{run['hbm_utilisation']:.3f}",
            f"{run['hbm_busy']:.3f}",
        ]
        for run in found["runs"]
    ]
    return table(
        [
            "command",
            "cycles",
            "seconds",
            "tokens/s",
            "share of the array",
            "dense-equivalent",
            "useful bytes over peak",
            "all bytes",
        ],
        rows,
    )


@figure("headline")
def first_token(found: dict) -> str:
    """Time to first token, part by part."""
    first = found["first_token"]
    names = {
        "vision tower": f"vision tower ({first['vision_tokens']} tokens, {first['vision_layers']} layers)",
        "selection": f"selection of {first['visual_tokens']} visual tokens",
        "language model": f"language model ({first['visual_tokens'] + first['text_tokens']} tokens, "
        f"{first['sparsity']} weights)",
    }
    rows = [[names.get(part["part"], part["part"]), *_part(part)] for part in first["parts"]]
    total = first["total"]
    cells = _part(total)
    cells[1] = f"**{cells[1]}** ({_aim(total['seconds_at_clock'], first['aim_seconds'])})"
    columns = ["part", "cycles", "seconds", "10^9 MACs", "of which with weights", "share of the array"]
    return table(columns, [*rows, ["together", *cells]])


def _part(part: dict) -> list[str]:
    macs = ["", "", ""]
    if part["macs"]:
        billions = (f"{part[key] / 1e9:.1f}" for key in ("macs", "macs_sparse"))
        macs = [*billions, f"{part['array_utilisation']:.3f}"]
    return [f"{part['cycles']:,}", f"{part['seconds_at_clock']:.4f}", *macs]


@figure("rtl")
def rtl(found: dict) -> str:
    """One decode step of one layer in RTL, for three sizes of machine."""
    rows = [
        [
            f"`{run['config']}`: {run['matrix_units']} matrix units, {run['lanes']} lanes",
            f"{run['model']}, one layer, {run['bits']} bits, {run['kv']} keys",
            f"{run['cycles_simulated']:,} = {run['cycles_rtl']:,}" if run["cycle_exact"] else "**differ**",
            f"{run['compared_bytes']:,} equal" if run["bit_exact"] else "**differ**",
            f"{run['emission_seconds'] + run['build_seconds']:.0f} s",
            f"{run['rtl_seconds']:.1f} s",
            f"{run['total_seconds'] / 60:.1f} min",
        ]
        for run in found["runs"]
    ]
    columns = ["machine", "step", "cycles simulated = RTL", "bytes", "building", "running", "everything"]
    return table(columns, rows)


@figure("lengths")
def lengths(found: dict) -> str:
    """Cycles of every length, and of one more token and one more tile."""
    shown = [run["length"] for run in found["runs"] if run["phase"] == "prefill"]
    rows = []
    for phase, name in (("prefill", "prefill"), ("decode", "decode step")):
        runs = [_named(found["runs"], phase=phase, length=length) for length in shown]
        rows.append([f"{name}: 10^6 cycles", *(_millions(run["cycles"]) for run in runs)])
        rows.append(["one more token", *(_millions(run["one_more_token"]) for run in runs)])
        rows.append(["one more tile", *(_millions(run["one_more_tile"]) for run in runs)])
    return table(["tokens, or keys", *(f"{length:,}" for length in shown)], rows)


@figure("sparse")
def sparse_layer(found: dict) -> str:
    """Cycles of a linear layer with fewer non-zeros."""
    rows, kept = [], (16, 8, 4, 2)
    for config in ("u280", "small"):
        runs = [_named(found["runs"], config=config, nonzeros_of_16=n) for n in kept]
        first = runs[0]
        by = "cycle simulator = RTL, bits equal" if first["cycle_exact"] else SIMULATED
        title = f"{first['n_in']} x {first['n_out']}, {first['tokens']} tokens, `{config}` ({by}): cycles"
        rows.append([title, *(f"{run['cycles']:,}" for run in runs)])
        rows.append(["dense over sparse", *(f"{run['dense_over_sparse']:.2f}" for run in runs)])
    return table(["linear layer", "dense", *(f"{n}:16" for n in kept[1:])], rows)


@figure("bits")
def stream_bytes(found: dict) -> str:
    """Bytes a weight in the stream of a 4096 x 4096 layer."""
    runs = [run for run in found["runs"] if (run["n_in"], run["n_out"]) == (4096, 4096)]
    names = [
        f"{run['bits']} bits" + ("" if run["nonzeros_of_16"] == 16 else f", {run['nonzeros_of_16']}:16") for run in runs
    ]
    rows = [
        ["bytes a weight", *(f"{run['bytes_a_weight']:.3f}" for run in runs)],
        ["over the bytes of weights and masks alone", *(f"{run['overhead']:.3f}" for run in runs)],
        ["cycles in which a full weight buffer stops the stream", *(f"{run['unpack_stall_cycles']}" for run in runs)],
        ["cycles of one token", *(f"{run['cycles']:,}" for run in runs)],
    ]
    return table(["4096 x 4096 on `u280`", *names], rows)


@figure("perplexity")
def perplexity(found: dict) -> str:
    """Perplexity of dense INT8."""
    rows = [
        ["float model", f"{found['perplexity_float']:.2f}", "1"],
        ["golden model, 8-bit weights and activations", f"{found['perplexity_golden']:.2f}", f"{found['ratio']:.3f}"],
    ]
    return table([f"{NAMES[found['model']]}, {found['tokens']} tokens", "perplexity", "ratio to float"], rows)


@figure("quality")
def quality(found: dict) -> str:
    """Perplexity over the float model's by recipe and compression."""
    kinds = (("8", "dense"), ("4", "dense"), ("3.5", "dense"), ("8", "8:16"))
    rows = []
    for recipe in ("plain", "best", "tuned"):
        cells = []
        for bits, sparsity in kinds:
            runs = [
                run
                for run in found["runs"]
                if (run["bits"], run["sparsity"], run["recipe"]) == (bits, sparsity, recipe)
            ]
            aim = found["aims"].get(f"{bits} {sparsity} {recipe}")
            cells.append("" if not runs else f"{runs[0]['ratio']:.3f}" + _with_aim(runs[0]["ratio"], aim))
        rows.append([f"`--recipe {recipe}`", *cells])
    return table(["ratio to float", "8 bits", "4 bits", "3.5 bits on average", "8 bits, 8:16"], rows)


def _with_aim(ratio: float, aim: float | None) -> str:
    return "" if aim is None else f" ({_aim(ratio, aim)})"


@figure("tokens")
def visual_tokens(found: dict) -> str:
    """Prefill with fewer visual tokens."""
    names = {
        "encoder": "`--keep-visual R` (language model alone)",
        "schedule": "`--keep-schedule 2:R`",
        "score": "`--fastv 2:R` (estimate)",
    }
    counts = [run["visual_tokens"] for run in found["runs"] if run["mechanism"] == "encoder"]
    rows = []
    for mechanism, name in names.items():
        runs = [_named(found["runs"], mechanism=mechanism, visual_tokens=count) for count in counts]
        rows += _reduced(name, runs)
    return table(["visual tokens R", *(str(count) for count in counts)], rows)


def _reduced(name: str, runs: list[dict]) -> list[list[str]]:
    return [
        [f"{name}: seconds", *(f"{run['seconds_at_clock']:.3f}" for run in runs)],
        ["its 10^12 MACs", *(f"{run['macs'] / 1e12:.3f}" for run in runs)],
        ["cycles a MAC, all tokens = 1", *(f"{run['cycles_a_mac_over_full']:.3f}" for run in runs)],
    ]


@figure("tokens")
def exit_layers(found: dict) -> str:
    """Prefill whose visual tokens leave behind a layer."""
    runs = [run for run in found["runs"] if run["mechanism"] == "exit"]
    runs.append(_named(found["runs"], mechanism="encoder", visual_tokens=576))
    return table(
        ["exit layer E", *(str(run["visual_tokens"]) for run in runs[:-1]), "none"], _reduced("`--exit-layer E`", runs)
    )


@figure("vlm")
def pictures(found: dict) -> str:
    """What a picture is worth to its caption."""
    order = {"float": 0, "golden W8A8": 1}
    runs = sorted(found["runs"], key=lambda run: (-run["visual_tokens"], order.get(run["model"], 2)))
    rows = [
        [
            run["model"],
            str(run["visual_tokens"]),
            *(f"{run[key]:.3f}" for key in ("right", "wrong", "gap")),
            "1" if run["model"] == "float" else f"{run['gap_of_float']:.3f} ± {run['gap_of_float_standard_error']:.3f}",
        ]
        for run in runs
    ]
    return table(["model", "visual tokens", "right picture", "wrong picture", "gap", "gap over float's"], rows)


@figure("simulator")
def simulator_speed(found: dict) -> str:
    """How fast the cycle simulator is, and SCALE-Sim on the same layer."""
    rows = []
    for run in found["runs"]:
        size = f"{run['tokens']} tokens" if run["phase"] == "prefill" else f"{run['kv']} keys"
        title = f"{run['model']} on `{run['config']}`, {run['phase']}, {size}"
        rows.append([title, f"{run['cycles']:,}", f"{run['simulator_seconds']:.2f} s", ""])
    other = found["against_scale_sim"]
    for phase in other["phases"]:
        least = "at least " if phase["scale_sim_is_lower_bound"] else ""
        rows.append(
            [
                f"{other['model']} on `{other['config']}`, one layer, {phase['phase']}",
                f"{phase['cycles']:,}",
                f"{phase['simulator_seconds']:.2f} s",
                f"{least}{phase['scale_sim_layer_seconds']:,.0f} s",
            ]
        )
    return table(["run", "cycles", "alula, wall time", f"SCALE-Sim ({other['scale_sim'][0]})"], rows)


@figure("modules")
def modules(found: dict) -> str:
    """Modules of the zoo, one a line, by family."""
    rows = []
    for run in found["runs"]:
        if run["compiled"]:
            error = f"{run['float_error']:.1%}" + (" (a choice)" if run["router"] else "")
            exact = "equal" if run["bit_exact"] and run["cycle_exact"] else "**DIFFERS**"
            rows.append([run["name"], run["family"], exact, f"{run['cases'][-1]['cycles']:,}", error])
        else:
            rows.append(
                [run["name"], run["family"], "refused", "", run["refusal"].split(" with result")[0].split(": ")[-1]]
            )
    total = f"{found['compiled']} of {found['modules']} compile; bits and cycles are equal in {found['cycle_exact']}."
    return f"{total}\n\n" + table(
        ["module", "family", "golden = functional = RTL, cycles", "cycles", "error to torch"], rows
    )


@figure("synthesis")
def longest_paths(found: dict) -> str:
    """The longest path of each unit in LUT levels, and that of the whole."""
    rows = [[run["unit"], str(run["lut_levels"]), str(run["carry_cells"])] for run in found["runs"]]
    whole = found["whole"]["longest_path"]
    rows.append(["**the whole netlist**", f"**{whole['luts']}**", str(whole["carries"])])
    return table([f"unit of `{found['config']}`", "LUT levels", "carry cells"], rows)


@figure("tables")
def tables(found: dict) -> str:
    """What the sparse mode costs in LUTs: of logic, of memories, of shift registers."""
    kinds = ["DSP48E2", "LUT", "LUTRAM", "SRL", "FF"]
    rows = [[run["block"], run["design"], *(f"{run[kind]:,}" for kind in kinds)] for run in found["runs"]]
    return table(["block", "design", *kinds], rows)


@figure("commands")
def commands(found: dict) -> str:
    """How long the two commands take and how much disk."""
    rows = []
    for run in found["runs"]:
        takes = f"{run['wall_minutes']:.0f} min"
        if run["processor_minutes"] is not None:
            takes += f", {run['processor_minutes']:.0f} min of processor time"
        rows.append([f"`{run['command']}`", run["does"], takes, run["disk"] or ""])
    return table(["command, the first time", "does", "takes (two cores)", "disk"], rows)


@figure("hbm")
def hbm(found: dict) -> str:
    """The HBM model beside public figures."""
    rows = [[run["pattern"], _range(run), f"{run['share']:.3f}", f"{run['tolerance']:.0%}"] for run in found["runs"]]
    return table(["pattern", "public", "model", "tolerance of the test"], rows)


def _range(run: dict) -> str:
    least, largest = run["public_least"], run["public_largest"]
    return f"{least:g}" if least == largest else f"{least:g} to {largest:g}"
