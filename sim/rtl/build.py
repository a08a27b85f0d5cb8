"""Builds a simulation binary from Verilog, once for each content.

The binary lies in the cache under a digest of everything that goes into it, so an unchanged design costs nothing and
two designs never meet.
"""

import logging
import os
import shutil
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import files
from pathlib import Path

from hw.spec.errors import InternalError
from sim.cache import entry
from sim.rtl import testbench as bench
from sim.rtl.toolchain import cocotb_libs, cocotb_main, refuse_spaces, tool_environment, toolchain_digest

log = logging.getLogger(__name__)

BINARY, LOG = "simulation", "build.log"
_BUILD_JOBS = 2
_COMPILER_FLAGS = "-march=native"
_START_UP_FLAGS = "-O0"
"""Of what runs once, before cycle 0: more than half of a large design's code."""
_KEPT_LOG_LINES = 25


@dataclass(frozen=True)
class Design:
    """What is simulated: an accelerator top and the modules below it.

    verilog: one text that holds every module; top: the top module's name; n_ports: AXI4 memory ports, aux (the last)
    included; hierarchical: modules that Verilator compiles apart, once for all of their instances (worth it from a few
    hundred DSPs on; the boundary costs time); waves: the binary can write a VCD, and is slower for it; kernel: the top
    is the packaged one (`hw.kernel`).
    """

    verilog: str
    top: str
    n_ports: int
    hierarchical: tuple[str, ...] = ()
    waves: bool = False
    kernel: bool = False

    def sources(self) -> dict[str, str]:
        """File name -> text of everything that is compiled."""
        return {
            "design.v": self.verilog,
            "tb.sv": bench.testbench(self.top, self.n_ports, self.kernel),
            "axi_guard.sv": files("sim.rtl").joinpath("native", "axi_guard.sv").read_text(),
            "control.vlt": self._control_file(),
            **{name: files("sim.rtl").joinpath("native", name).read_text() for name in ("memory.cpp", "hbm.h")},
        }

    def _control_file(self) -> str:
        lines = ["`verilator_config"]
        lines += [f'public_flat_rw -module "testbench" -var "{name}"' for name in bench.public_signals()]
        lines += [f'hier_block -module "{name}"' for name in self.hierarchical]
        return "\n".join(lines) + "\n"

    def digest(self) -> str:
        """Changes with anything that could change the binary."""
        state = sha256(f"{toolchain_digest()}\n{_verilator_command(self)}\n{_COMPILER_FLAGS}\n".encode())
        for name, text in self.sources().items():
            state.update(f"{name}\0{len(text)}\0{text}".encode())
        return state.hexdigest()[:32]


def _verilator_command(design: Design) -> list[str]:
    libs = cocotb_libs()
    return [
        "verilator", "--cc", "--exe", "--timing", "--vpi", "--build", "-j", str(_BUILD_JOBS),
        "--top-module", "testbench", "--prefix", "Vtop", "-Mdir", "obj", "-o", BINARY,
        *(["--hierarchical"] if design.hierarchical else []), *(["--trace"] if design.waves else []),
        # Warnings are sim.rtl.lint's business; here they would only hide an error.
        "-Wno-lint", "-Wno-style", "-Wno-fatal",
        "--x-assign", "fast", "--x-initial", "fast", "--output-split", "20000",
        "-CFLAGS", _COMPILER_FLAGS, "-MAKEFLAGS", f"OPT_FAST=-O2 OPT_SLOW={_START_UP_FLAGS} OPT_GLOBAL=-O2",
        "-LDFLAGS", f"-Wl,-rpath,{libs} -L{libs} -lcocotbvpi_verilator",
        "control.vlt", "design.v", "axi_guard.sv", "tb.sv", "memory.cpp", str(cocotb_main()),
    ]  # fmt: skip


def build(design: Design) -> Path:
    """The folder of the simulation of `design`, built if it is not in the cache. Holds `BINARY` and `build.log`."""
    refuse_spaces()
    return entry("rtl", design.digest(), lambda folder: _build_into(design, folder))


def _build_into(design: Design, folder: Path) -> None:
    """Builds among the temporary files and keeps the binary, the log and the sources."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="alula-build-") as name:
        work = Path(name)
        for file_name, text in design.sources().items():
            (work / file_name).write_text(text)
        code = _run(_verilator_command(design), work)
        if code:
            raise InternalError(f"verilator could not build {design.top}:\n{_errors(work / LOG)}")
        for file_name in (*design.sources(), LOG, f"obj/{BINARY}"):
            shutil.copy2(work / file_name, folder)
    log.info("built the simulation of %s in %.1f s", design.top, time.monotonic() - began)


def _run(command: list[str], work: Path) -> int:
    """The exit code of a build, whose output goes into `LOG`. Its processes end with ours, also at Ctrl-C."""
    with (
        (work / LOG).open("w") as output,
        subprocess.Popen(
            command,
            cwd=work,
            env=tool_environment(work / "bin"),
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        ) as process,
    ):
        try:
            return process.wait()
        except BaseException:
            os.killpg(process.pid, signal.SIGTERM)
            raise


def _errors(path: Path) -> str:
    """The lines of a build log that say what went wrong, else its end."""
    lines = path.read_text(errors="replace").splitlines()
    errors = [line for line in lines if "%Error" in line or " error: " in line]
    return "\n".join((errors or lines)[-_KEPT_LOG_LINES:])
