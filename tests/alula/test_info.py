"""Resource tables: how counts add up over a hierarchy."""

from alula.info import against, describe
from hw.spec import cards
from hw.spec.config import CONFIGS
from hw.synth import hierarchy_cells, tally
from hw.synth_units import Netlist


def test_counts_multiply_over_instances() -> None:
    modules = {
        "\\top": {"num_cells_by_type": {"\\leaf": 3, "FDRE": 2, "RAMB18E2": 1}},
        "\\leaf": {"num_cells_by_type": {"DSP48E2": 4, "$lut": 5}},
    }
    table = tally(hierarchy_cells(modules, "\\top")["\\top"])
    assert (table["DSP48E2"], table["LUT"], table["FF"], table["BRAM36"]) == (12, 15, 2, 0.5)


def test_describe() -> None:
    for name in CONFIGS:
        result = describe(name)
        assert result["dsp_total"] > result["chain_dsps"]


def test_counts_against_a_card() -> None:
    """A unit's cells count in each of its instances; what the card has not is named."""
    cells = {f"c{i}": {"type": kind} for i, kind in enumerate(["DSP48E2"] * 2 + ["$lut"] * 5 + ["URAM288"])}
    netlist = Netlist("alula", {"matrix_unit": {"cells": cells, "ports": {}}}, {"matrix_unit": 641})
    result = against("u50", cards.get("u50"), netlist, 1.0)
    assert result["resources"]["DSP48E2"] == 1282 and not result["formula_equal"]["DSP48E2"]
    assert result["over"] == ["URAM"] and result["share_of_card"]["URAM"] == 641 / 640
    assert result["resources_by_unit"]["matrix_unit"]["LUT"] == 5 * 641
