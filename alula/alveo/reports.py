"""Reads Vivado's text reports. Every figure keeps the name of the report it came from."""

import re
from pathlib import Path

from hw.spec.errors import InternalError

UTILISATION = {"LUT": "CLB LUTs", "FF": "CLB Registers", "BRAM36": "Block RAM Tile", "URAM": "URAM", "DSP48E2": "DSPs"}
"""Our resource -> the row of `report_utilization`."""
POWER = {"total_watts": "Total On-Chip Power (W)", "dynamic_watts": "Dynamic (W)", "static_watts": "Device Static (W)"}
_NUMBER = r"(-?\d+(?:\.\d+)?)"


def utilisation(text: str) -> dict[str, float]:
    """Resource -> used, of `report_utilization` for UltraScale+."""
    return {kind: _row(text, label, "utilisation") for kind, label in UTILISATION.items()}


def power(text: str) -> dict:
    """Watts as Vivado estimates them, and how sure it is of that, of `report_power`."""
    found = re.search(r"^\|\s*Confidence Level\s*\|\s*(\w+)\s*\|", text, flags=re.M)
    return {kind: _row(text, label, "power") for kind, label in POWER.items()} | {
        "confidence": found[1] if found else None
    }


def timing(text: str) -> dict:
    """Worst slacks in ns of the Design Timing Summary; met: no endpoint fails setup or hold."""
    found = re.search(
        r"^\s*WNS\(ns\)\s+TNS\(ns\)\s+TNS Failing Endpoints\s+TNS Total Endpoints\s+WHS\(ns\)[^\n]*\n[\s-]*\n\s*"
        rf"{_NUMBER}\s+{_NUMBER}\s+(\d+)\s+(\d+)\s+{_NUMBER}\s+{_NUMBER}\s+(\d+)\s+(\d+)",
        text,
        flags=re.M,
    )
    if found is None:
        raise InternalError("the timing report has no Design Timing Summary with numbers")
    setup, hold = float(found[1]), float(found[5])
    failing = int(found[3]) + int(found[7])
    return {
        "setup_slack_ns": setup,
        "hold_slack_ns": hold,
        "failing_endpoints": failing,
        "met": failing == 0 and setup >= 0 and hold >= 0,
    }


def tool_version(text: str) -> str | None:
    """From a report's header."""
    found = re.search(r"^\|\s*Tool Version\s*:\s*(.+?)\s*$", text, flags=re.M)
    return found[1] if found else None


READERS = {
    "utilization.rpt": ("device_utilisation", utilisation),
    "utilization_kernel.rpt": ("kernel_utilisation", utilisation),
    "timing.rpt": ("timing", timing),
    "power.rpt": ("power", power),
}
"""File of the reports' folder -> (its place in the manifest, reader)."""


def collect(folder: Path) -> dict:
    """What the reports that are there say; each entry names its report and the tool that wrote it."""
    found = {}
    for name, (place, read) in READERS.items():
        path = folder / name
        if path.exists():
            text = path.read_text(errors="replace")
            found[place] = read(text) | {"report": f"{folder.name}/{name}", "tool": tool_version(text)}
    return found


def _row(text: str, label: str, report: str) -> float:
    found = re.search(rf"^\|\s*{re.escape(label)}\*?\s*\|\s*{_NUMBER}\s*\|", text, flags=re.M)
    if found is None:
        raise InternalError(f"the {report} report has no row {label!r} with a number")
    return float(found[1])
