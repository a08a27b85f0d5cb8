"""`alula info`: what a configuration is, and what it costs; what quantising a packed checkpoint again costs."""

import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from math import prod
from typing import TYPE_CHECKING

from alula.machine import over_card
from hw.spec import cards
from hw.spec import config as configurations
from hw.spec.config import Config
from hw.spec.errors import UserError
from hw.spec.isa import ISA_VERSION
from hw.spec.memory import MemoryModel
from hw.spec.resources import CROSSING, KIND, NETLIST_BOUNDS, Store, dsp_total, memories

if TYPE_CHECKING:
    from hw.synth_units import Netlist
    from ref_model.checkpoints import Checkpoint
    from ref_model.compress import Compression


def describe(machine: str | Config) -> dict:
    """Every field and the peaks that follow from them."""
    config = configurations.get(machine)
    board = cards.card_of(config)
    return asdict(config) | {
        "digest": config.digest(),
        "isa_version": ISA_VERSION,
        "macs_per_cycle": config.macs_per_cycle,
        "peak_macs_per_second": config.macs_per_cycle * config.clock_hz,
        "chain_dsps": config.chain_dsps,
        "memory": config.memory.kind,
        "memory_clock_hz": config.memory.clock_hz,
        "peak_bytes_per_second": MemoryModel.of(config).peak_bytes_per_cycle(config) * config.clock_hz,
        "dsp_total": dsp_total(config),
        "budget_card": board.name,
        "over_card": over_card(config),
        "budget": [asdict(row) | {"share": row.used / row.limit} for row in board.budget(config)],
    }


def resources(name: str | Config, card: str | None = None, note: Callable[[str], None] = lambda _: None) -> dict:
    """Yosys's counts by unit and in all, against a card's totals (by default the one of the configuration's name, else
    u280) and what its platform leaves of them; what makes the netlist hard to place (`placement`)."""
    from hw.synth_units import digest, synthesise_units
    from sim.cache import entry
    from sim.rtl.accelerator import synthesisable

    began = time.monotonic()
    board = cards.get(card) if card else cards.card_of(configurations.get(name))
    if not board.dies:
        raise UserError(f"--card {card}: there is no card to compare with; choose one of {', '.join(cards.CARDS)}")
    verilog = synthesisable(name)
    netlist = synthesise_units(verilog, note=note, cache=partial(entry, "yosys"))
    note("nets and paths")
    return (
        against(name, board, netlist)
        | placement(netlist, board, configurations.get(name))
        | {
            "synthesis_commit_digest": digest(verilog),
            "synthesis_wall_seconds": time.monotonic() - began,
        }
    )


def placement(netlist: "Netlist", board: cards.Card, config: Config) -> dict:
    """The figures of `hw.spec.resources.NETLIST_BOUNDS`, and which of them are above their bounds.

    Shares are of what the platform leaves, of the card's totals where that is not known. `wires_share` is that of the
    boundary of two dies that is the fullest, None on a card of one die. `slr_shares`: packed LUTs of each die, with the
    matrix units where the floorplan has them and all else on the core's die, of what is left there.
    """
    from hw.levels import levels
    from hw.netlist_check import check
    from hw.packing import packed_luts

    longest = levels(netlist, netlist.top)
    limits = board.region.resources if board.region else board.resources
    wires = next((row for row in board.budget(config) if row.kind == CROSSING), None)
    packed, in_units = packed_luts(netlist), packed_luts(netlist, "matrix_unit")
    shares = [
        (in_units * len(units) / config.units + (packed - in_units) * (die == board.core_slr)) / left
        for (die, units), left in zip(board.floorplan(config).items(), board.luts_left(), strict=True)
    ]
    figures: dict[str, float | None] = {
        **check(netlist).figures,
        "lut_levels_whole": longest.luts,
        "packed_share": packed / limits["LUT"],
        "slr_share": max(shares),
        "wires_share": None if wires is None else wires.platform_share or wires.used / wires.limit,
    }
    return figures | {
        "slr_shares": shares,
        "longest_path": asdict(longest),
        "netlist_bounds": NETLIST_BOUNDS,
        "above_bounds": [name for name, bound in NETLIST_BOUNDS.items() if (figures[name] or 0) > bound],
    }


def against(name: str | Config, board: cards.Card, netlist: "Netlist") -> dict:
    """The tables of `resources`. Shares of LUTs are those of logic, memories and shift registers together;
    `formula_equal` says whether DSPs and memories are those of `hw.spec.resources`."""
    from hw.synth import luts

    total = netlist.table()
    used = total | {"LUT": luts(total)}
    config = configurations.get(name)
    formula = {"DSP48E2": dsp_total(config)} | {
        KIND[store]: sum(memory.primitives for memory in memories(config) if memory.store is store) for store in Store
    }
    region = board.region.resources if board.region else None
    return {
        "resources": total,
        "resources_by_unit": {unit: netlist.table(unit) for unit in netlist.units},
        "unit_seconds": netlist.seconds,
        "primitives": dict(netlist.cells()),
        "formula": formula,
        "formula_equal": {kind: total[kind] == number for kind, number in formula.items()},
        "card": board.name,
        "platform": board.platform,
        "card_resources": board.resources,
        "platform_resources": region,
        "share_of_card": _shares(used, board.resources),
        "share_of_platform": region and _shares(used, region),
        "over": _above(used, board.resources),
        "over_platform": region and _above(used, region),
    }


def _shares(used: dict[str, float], limits: dict[str, int]) -> dict[str, float]:
    return {kind: used[kind] / limit for kind, limit in limits.items()}


def _above(used: dict[str, float], limits: dict[str, int]) -> list[str]:
    return [kind for kind, limit in limits.items() if used[kind] > limit]


def describe_model(
    source: str, compression: "Compression | None", note: Callable[[str], None] = lambda _: None
) -> dict:
    """What a model is; of a packed checkpoint also what quantising it again costs.

    compression: as the machine would hold the weights (None: INT8). UserError for a compression of a floating-point
    checkpoint, which nothing is compared with.
    """
    from alula.session import open_model
    from ref_model.checkpoints.base import HEAD

    checkpoint = open_model(source)
    if compression is not None and not checkpoint.quantised:
        raise UserError(
            f"{source} holds floating-point weights: --bits and --sparsity have an effect on a quantised checkpoint "
            "only, leave them out"
        )
    vision, text = checkpoint.config.vision, checkpoint.config.text
    found = {
        "model": source,
        "model_name": checkpoint.config.name,
        "parameters": sum(
            prod(shape) for name, shape in checkpoint.shapes.items() if not (text.tied_embeddings and name == HEAD)
        ),
        "quantised": checkpoint.quantised,
        "text": asdict(text),
        "vision": None if vision is None else asdict(vision) | {"visual_tokens": checkpoint.config.n_visual_tokens},
        "requantisation": None,
    }
    if checkpoint.quantised:
        note(f"quantising {source} again")
        found["requantisation"] = requantisation(source, checkpoint, compression)
    return found


def requantisation(source: str, checkpoint: "Checkpoint", compression: "Compression | None") -> dict:
    """Relative RMS error of the machine's integers against a packed checkpoint's dequantised weights, over the language
    model's linears."""
    from alula.session import calibration, compression_ids
    from ref_model.compress.imports import requantisation_error

    compressor = maxima = None
    if compression is None:
        maxima = calibration(source, checkpoint)
    else:
        compressor = compression.compressor(checkpoint, compression_ids(source, checkpoint, compression))
    report = requantisation_error(checkpoint, compressor, maxima)
    name, worst = report.worst
    return {"mean_relative_rms_error": report.mean, "worst_relative_rms_error": worst, "worst_module": name}
