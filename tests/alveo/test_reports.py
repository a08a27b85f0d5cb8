"""Vivado's reports, from small made-up ones in its format."""

from pathlib import Path

import pytest

from alula.alveo import reports
from hw.spec.errors import InternalError

FOLDER = Path(__file__).parent / "reports"


def text(name: str) -> str:
    return (FOLDER / name).read_text()


def test_utilisation():
    assert reports.utilisation(text("utilization_kernel.rpt")) == {
        "LUT": 111222,
        "FF": 222333,
        "BRAM36": 77.5,
        "URAM": 42,
        "DSP48E2": 1234,
    }


def test_timing_that_is_met_and_that_is_not():
    good = text("timing.rpt")
    assert reports.timing(good) == {
        "setup_slack_ns": 0.012,
        "hold_slack_ns": 0.010,
        "failing_endpoints": 0,
        "met": True,
    }
    late = good.replace("0.012        0.000                      0", "-0.301      -17.500                     99")
    found = reports.timing(late)
    assert (found["met"], found["setup_slack_ns"], found["failing_endpoints"]) == (False, -0.301, 99)


def test_power():
    assert reports.power(text("power.rpt")) == {
        "total_watts": 12.345,
        "dynamic_watts": 9.345,
        "static_watts": 3.0,
        "confidence": "Medium",
    }


def test_every_figure_names_its_report():
    found = reports.collect(FOLDER)
    assert set(found) == {"device_utilisation", "kernel_utilisation", "timing", "power"}
    assert {entry["report"] for entry in found.values()} == {f"reports/{name}" for name in reports.READERS}
    assert {entry["tool"] for entry in found.values()} == {"Vivado v.2099.9 (made up)"}


def test_without_reports_there_are_no_figures(tmp_path):
    assert reports.collect(tmp_path) == {}


@pytest.mark.parametrize(
    ("name", "row"), [("utilization.rpt", "URAM"), ("power.rpt", "Dynamic (W)"), ("timing.rpt", "WNS(ns)")]
)
def test_a_report_without_the_row_is_no_zero(name, row):
    read = reports.READERS[name][1]
    with pytest.raises(InternalError, match="report"):
        read(text(name).replace(row, "something else"))
