"""Lints Verilog with every Verilator warning on; `hw/verilog/waivers.vlt` holds the exceptions and their reasons."""

import re
import subprocess
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from hw.spec.errors import UserError
from sim.rtl.toolchain import tool_environment

_MESSAGE = re.compile(r"^%(?:Warning|Error)")


def lint(verilog: str, top: str, file_name: str = "design.v") -> list[str]:
    """The warnings and errors of a design whose top module is `top`, one a string; empty when it is clean.

    file_name: the name that the messages and the waivers know the text by.
    """
    with tempfile.TemporaryDirectory(prefix="alula-lint-") as name:
        folder = Path(name)
        (folder / file_name).write_text(verilog)
        waivers = files("hw").joinpath("verilog", "waivers.vlt").read_text()
        (folder / "waivers.vlt").write_text(waivers)
        run = subprocess.run(
            ["verilator", "--lint-only", "-Wall", "-Wno-fatal", "--top-module", top, "waivers.vlt", file_name],
            cwd=folder,
            env=tool_environment(folder / "bin"),
            capture_output=True,
            text=True,
            check=False,
        )
    lines = run.stderr.splitlines()
    # Verilator ends a failed run by counting its messages and by naming its own command.
    messages = [line for line in lines if _MESSAGE.match(line) and "Exiting due to" not in line]
    if run.returncode and not messages:
        messages = lines[-5:] or [f"verilator ended with code {run.returncode} and no message"]
    return messages


def main(arguments: list[str]) -> int:
    """`python -m sim.rtl.lint [FILE.v ...]`: each file apart, its first module on top; all of hw/verilog by default."""
    folder = files("hw").joinpath("verilog")
    paths = [Path(a) for a in arguments] or sorted(Path(str(folder)).glob("*.v"))
    n_messages = 0
    for path in paths:
        text = path.read_text()
        found = re.search(r"^\s*module\s+(\w+)", text, flags=re.M)
        if found is None:
            raise UserError(f"{path}: no module in it")
        for message in lint(text, found[1], path.name):
            print(message)
            n_messages += 1
    print(f"verilog lint: {len(paths)} files, {n_messages} messages")
    return 1 if n_messages else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
