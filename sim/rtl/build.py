"""Builds a simulation binary from Verilog, once for each content.

The binary lies in the cache under a digest of everything that goes into it, so an unchanged design costs nothing and
two designs never meet. A build happens in a folder of its own and is moved into place when it is complete.
"""

import fcntl
import logging
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import files
from pathlib import Path

from hw.spec.errors import InternalError
from sim.rtl import testbench as bench
from sim.rtl.toolchain import cache_dir, cocotb_libs, cocotb_main, tool_environment, toolchain_digest

log = logging.getLogger(__name__)

BINARY = "simulation"
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


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds a lock file, so that two processes do not build the same thing at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def build(design: Design) -> Path:
    """The folder of the simulation of `design`, built if it is not in the cache. Holds `BINARY` and `build.log`."""
    root = cache_dir() / "rtl"
    target = root / design.digest()
    with _locked(root / f"{target.name}.lock"):
        if not (target / BINARY).exists():
            _build_into(design, target)
    return target


def _build_into(design: Design, target: Path) -> None:
    """Builds beside `target` and moves the result there. A failed build stays for inspection, under its own name."""
    work = target.with_name(f"{target.name}.building")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    for name, text in design.sources().items():
        (work / name).write_text(text)
    began = time.monotonic()
    with (work / "build.log").open("w") as output:
        code = subprocess.run(
            _verilator_command(design), cwd=work, env=tool_environment(work / "bin"), stdout=output,
            stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, check=False,
        ).returncode  # fmt: skip
    if code:
        raise InternalError(f"verilator could not build {design.top} (in {work}):\n{_errors(work / 'build.log')}")
    log.info("built the simulation of %s in %.1f s", design.top, time.monotonic() - began)
    (work / "obj" / BINARY).rename(work / BINARY)
    shutil.rmtree(work / "obj")  # objects are ten times the binary's size and never used again
    shutil.rmtree(target, ignore_errors=True)
    work.replace(target)


def _errors(path: Path) -> str:
    """The lines of a build log that say what went wrong, else its end."""
    lines = path.read_text(errors="replace").splitlines()
    errors = [line for line in lines if "%Error" in line or " error: " in line]
    return "\n".join((errors or lines)[-_KEPT_LOG_LINES:])
