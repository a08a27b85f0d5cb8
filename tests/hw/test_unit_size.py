"""One matrix unit and one vector lane take no more logic than what is recorded of them."""

import json
from pathlib import Path

import pytest

from benchmarks.synthesis import excess, part_figures
from sim.rtl.accelerator import PARTS

RECORDED = json.loads((Path(__file__).parents[2] / "benchmarks" / "results" / "synthesis.json").read_text())["parts"]


@pytest.mark.parametrize("part", PARTS)
def test_a_part_takes_no_more_than_recorded(part):
    if found := excess(part, part_figures(part), RECORDED[part]):
        pytest.fail("\n".join(found), pytrace=False)


@pytest.mark.parametrize(
    "figure, what",
    [
        ("LUT", "LUTs of logic"),
        ("LUTRAM", "LUTs of memories and shift registers"),
        ("FF", "flip-flops"),
        ("lut_levels", "LUT levels"),
    ],
)
def test_a_doubled_figure_is_found(figure, what):
    recorded = RECORDED["matrix_unit"]
    doubled = recorded | {figure: 2 * recorded[figure]}
    (line,) = excess("matrix_unit", doubled, recorded)
    assert line.startswith(f"matrix_unit: {what} = ") and "python -m benchmarks.run synthesis" in line


def test_up_to_two_percent_and_less_are_no_excess():
    recorded = RECORDED["matrix_unit"]
    assert not excess("matrix_unit", recorded | {"LUT": 1.02 * recorded["LUT"], "FF": 0}, recorded)
    assert len(excess("matrix_unit", recorded | {"LUT": 1.021 * recorded["LUT"]}, recorded)) == 1
    assert len(excess("matrix_unit", recorded | {"lut_levels": recorded["lut_levels"] + 1}, recorded)) == 1
