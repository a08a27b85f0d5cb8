"""Resource tables: how counts add up over a hierarchy."""

import io
import json

import pytest
from rich.console import Console

from alula.cli import main
from alula.info import against, describe, placement, resources
from alula.info_tables import budget_table, placement_table, remarks, resource_table, unit_table
from alula.output import percent
from hw.spec import cards
from hw.spec.config import CONFIGS
from hw.spec.errors import UserError
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
    result = against("u50", cards.get("u50"), netlist)
    assert result["resources"]["DSP48E2"] == 1282 and not result["formula_equal"]["DSP48E2"]
    assert result["over"] == ["URAM"] and result["share_of_card"]["URAM"] == 641 / 640
    assert result["resources_by_unit"]["matrix_unit"]["LUT"] == 5 * 641
    assert result["share_of_platform"] is None and result["over_platform"] is None


def counted(card: str, kinds: dict[str, int]) -> dict:
    """The answer to a netlist of so many primitives, with a path through it."""
    cells = {f"{kind}{i}": {"type": kind} for kind, n in kinds.items() for i in range(n)}
    netlist = Netlist("alula", {"matrix_unit": {"cells": cells, "ports": {}}}, {"matrix_unit": 1000})
    path = {"luts": 19, "carries": 2, "muxes": 0, "starts_in": "core.state[1] (FDRE)", "ends_in": "status[3] (FDRE)"}
    return against("u280", cards.get(card), netlist) | {"lut_levels_whole": 19, "longest_path": path}


def test_counts_against_the_platform() -> None:
    """1,200,000 LUTs are less than U280 has and more than its platform leaves; those of all three kinds count."""
    result = counted("u280", {"$lut": 600, "SRL16E": 200, "RAM32M16": 50, "FDRE": 10})
    assert result["over"] == [] and result["over_platform"] == ["LUT"]
    assert result["share_of_platform"]["LUT"] == 1_200_000 / 1_135_680
    assert [result["resources"][kind] for kind in ("LUT", "SRL", "LUTRAM")] == [600_000, 200_000, 400_000]


@pytest.mark.parametrize("card", ["u280", "u50"])
def test_tables_fit_80_columns(card: str) -> None:
    """What is too much is marked; a card whose platform is not known says so."""
    result = counted(card, {"$lut": 600, "SRL16E": 200, "RAM32M16": 50, "FDRE": 999}) | describe("u280")
    console = Console(width=80, file=io.StringIO())
    for table in (budget_table(result), resource_table(result), unit_table(result)):
        console.print(table)
    text = console.file.getvalue()
    assert "…" not in text and max(map(len, text.splitlines())) <= 80
    assert "600,000" in text and "1,200,000" in text and percent(result["share_of_card"]["LUT"]) in text
    told = " ".join(remarks(result))
    if card == "u280":
        assert "105.7 % !" in text and "xilinx_u280_gen3x16_xdma_1_202211_1 leaves to the user: LUT" in told
    else:
        assert "unknown" in text and "137.7 % !" in text and "is not known" in told and "more than u50 has: LUT" in told


def test_what_is_hard_to_place_is_marked() -> None:
    """A register drives 300 others, of which a unit on another die has 20; 20 of them, outside of it, are reset."""

    def register(i: int, o: int, **pins: list[int]) -> dict:
        connections = {"C": [1], "D": [i], "Q": [o], **pins}
        return {
            "type": "FDRE",
            "connections": connections,
            "port_directions": {pin: "output" if pin == "Q" else "input" for pin in connections},
            "net": "held[0]",
        }

    def ports(**bits: list[int]) -> dict:
        return {name: {"direction": "input", "bits": of} for name, of in bits.items()}

    unit = {"cells": {f"c{i}": register(2, 10 + i) for i in range(20)}, "ports": ports(i=[2])}
    cells = {"start": register(4, 3), "unit": {"type": "matrix_unit", "connections": {"i": [3]}}}
    cells |= {f"c{i}": register(3, 10 + i, **({"R": [5]} if i < 20 else {})) for i in range(280)}
    top = {"cells": cells, "ports": ports(i=[4], rst=[5])}
    board = cards.get("u280")
    netlist = Netlist("alula", {"matrix_unit": unit, "alula": top}, {"matrix_unit": 1, "alula": 1})
    found = placement(netlist, board, CONFIGS["u280"])
    assert [found[name] for name in ("largest_fanout", "payload_resets", "unregistered_crossings")] == [300, 20, 0]
    assert found["lut_levels_whole"] == 0 and found["packed_share"] == found["slr_share"] == 0
    assert {"largest_fanout", "payload_resets"} <= set(found["above_bounds"]) <= set(found["netlist_bounds"])
    console = Console(width=80, file=io.StringIO())
    console.print(placement_table(found))
    text = console.file.getvalue()
    assert "…" not in text and max(map(len, text.splitlines())) <= 80
    assert "300 !" in text and "20 !" in text and "0 !" not in text.replace("300 !", "").replace("20 !", "")


def test_dies_hold_their_matrix_units_and_one_all_else() -> None:
    lut = {
        "type": "$lut",
        "parameters": {"LUT": "10"},
        "connections": {"A": [2], "Y": [3]},
        "port_directions": {"A": "input", "Y": "output"},
    }
    module = {"cells": {"lut": lut}, "ports": {}}
    counts = {"matrix_unit": 32 * 10_000, "alula": 200_000}
    top = module | {"cells": {"lut": lut, "unit": {"type": "matrix_unit", "connections": {}}}}
    netlist = Netlist("alula", {"matrix_unit": module, "alula": top}, counts)
    found = placement(netlist, cards.get("u280"), CONFIGS["u280"])
    units = [len(units) for units in cards.get("u280").floorplan(CONFIGS["u280"]).values()]
    left = [388_800 - 100_000, 364_800, 382_080]
    used = [10_000 * n + extra for n, extra in zip(units, (0, 200_000, 0), strict=True)]
    assert found["slr_shares"] == [n / of for n, of in zip(used, left, strict=True)]
    assert found["slr_share"] == max(found["slr_shares"])


def test_a_model_is_described_whatever_its_weights(tmp_path, capsys) -> None:
    path = tmp_path / "info.json"
    with pytest.raises(SystemExit) as ended:
        main(["info", "--model", "llava-tiny", "--json", str(path)])
    assert not ended.value.code
    found, said = json.loads(path.read_text()), capsys.readouterr().out
    assert found["quantised"] == "" and found["requantisation"] is None
    assert found["text"]["layers"] == 2 and found["vision"]["visual_tokens"] == 16
    assert "floating point" in said and "16 visual tokens" in said
    assert max(map(len, said.splitlines())) <= 80


def test_bits_of_a_floating_point_model_compare_with_nothing(capsys) -> None:
    with pytest.raises(SystemExit):
        main(["info", "--model", "llava-tiny", "--bits", "4"])
    assert "llava-tiny holds floating-point weights: --bits and --sparsity have an effect" in capsys.readouterr().err


def test_no_card_is_nothing_to_compare_with():
    with pytest.raises(UserError, match="--card generic: there is no card to compare with"):
        resources("tiny", "generic")
