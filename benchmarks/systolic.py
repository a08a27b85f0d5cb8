"""Wall time of SCALE-Sim, a simulator of systolic arrays, on single matrix products: what the cycle simulator is held
against. It runs in a virtual environment of its own, because it needs an older NumPy."""

import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from hw.spec.errors import InternalError

PACKAGES = ("scalesim==3.0.0", "numpy==2.2.6")
"""It crashes with NumPy 2.4."""
ROWS, COLUMNS = 64, 128
"""The array: as many multipliers as u280 has, 8,192."""
WORDS_PER_CYCLE = 2048
"""Memory bandwidth, as u280's 32 channels of 64 bytes."""
FOLDER = Path(__file__).parents[1] / "build" / "scale-sim"

CONFIG = f"""[general]
run_name = gemm
[architecture_presets]
ArrayHeight : {ROWS}
ArrayWidth : {COLUMNS}
IfmapSramSzkB : 2048
FilterSramSzkB : 2048
OfmapSramSzkB : 2048
IfmapOffset : 0
FilterOffset : 100000000
OfmapOffset : 200000000
Bandwidth : {WORDS_PER_CYCLE}
Dataflow : ws
ReadRequestBuffer : 512
WriteRequestBuffer : 512
[layout]
IfmapCustomLayout : False
IfmapSRAMBankBandwidth : {WORDS_PER_CYCLE}
IfmapSRAMBankNum : 1
IfmapSRAMBankPort : 2
FilterCustomLayout : False
FilterSRAMBankBandwidth : {WORDS_PER_CYCLE}
FilterSRAMBankNum : 1
FilterSRAMBankPort : 2
[sparsity]
SparsitySupport : false
[run_presets]
InterfaceBandwidth : USER
UseRamulatorTrace : False
"""
LAYOUT = "Layer,\ng," + 20 * "1," + "\n"
DRIVER = """import sys
from scalesim.scale_sim import scalesim
config, topology, layout, out = sys.argv[1:]
scalesim(save_disk_space=True, verbose=False, config=config, topology=topology, layout=layout,
         input_type_gemm=True).run_scale(top_path=out)
"""


@dataclass(frozen=True)
class Gemm:
    """[m, k] x [k, n], `count` times in a layer."""

    name: str
    m: int
    n: int
    k: int
    count: int = 1


def environment() -> Path:
    """The Python of the virtual environment, made on first use."""
    python, stamp = FOLDER / "venv" / "bin" / "python", FOLDER / ("-".join(PACKAGES) + ".installed")
    if not stamp.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(FOLDER / "venv")], check=True)
        install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PACKAGES]
        subprocess.run(install, check=True)
        stamp.touch()
    return python


def run(python: Path, gemm: Gemm, limit_seconds: float) -> dict:
    """One product, its process stopped after the limit: then `seconds` is a lower bound and `cycles` None."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = {
            "config.cfg": CONFIG,
            "layout.csv": LAYOUT,
            "driver.py": DRIVER,
            "topology.csv": f"Layer,M,N,K,\ng,{gemm.m},{gemm.n},{gemm.k},\n",
        }
        for file, text in files.items():
            (folder / file).write_text(text)
        names = ("driver.py", "config.cfg", "topology.csv", "layout.csv", "out")
        began, cpu = time.monotonic(), children_cpu_seconds()
        finished = _within([str(python), *(str(folder / n) for n in names)], limit_seconds)
        seconds, cpu = time.monotonic() - began, children_cpu_seconds() - cpu
        cycles = _cycles(folder / "out" / "gemm" / "COMPUTE_REPORT.csv") if finished else None
    end = "finished" if finished else f"stopped after {limit_seconds:g} s: lower bound"
    return {
        "gemm": gemm.name,
        "m": gemm.m,
        "n": gemm.n,
        "k": gemm.k,
        "times_in_a_layer": gemm.count,
        "wall_seconds": seconds,
        "cpu_seconds": cpu,
        "finished": finished,
        "end": end,
        "cycles": cycles,
    }


def children_cpu_seconds() -> float:
    """Processor time of the processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _within(command: list[str], limit_seconds: float) -> bool:
    """Whether the command ends in time; its whole process group is stopped otherwise."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)
    try:
        _, said = process.communicate(timeout=limit_seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return False
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    if process.returncode:
        last = said.decode(errors="replace").strip().splitlines()[-1:] or ["no message"]
        raise InternalError(f"SCALE-Sim ended with code {process.returncode}: {last[0]}")
    return True


def _cycles(report: Path) -> int:
    """Total cycles, stalls included, of the only layer."""
    header, row = (line.split(",") for line in report.read_text().splitlines()[:2])
    return int(float(row[[name.strip() for name in header].index("Total Cycles")]))
