"""The Verilog of one configuration, and a manifest beside it."""

import json
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

from hw.accelerator import TOP, Accelerator
from hw.kernel import Kernel
from hw.spec import config as configurations
from hw.spec.config import Config
from hw.spec.packaging import KERNEL
from hw.verilog_writer import convert, module_names

DSP_MODEL = files("hw").joinpath("verilog", "dsp48e2.v")


@lru_cache
def accelerator_verilog(machine: str | Config) -> str:
    """The synthesisable text; DSP48E2 is the vendor's primitive."""
    return convert(Accelerator(configurations.get(machine), primitive=True, shared=True), TOP)


def kernel_verilog(machine: str | Config, accelerator: str | None = None) -> str:
    """The packaged top and the accelerator's text below it (`accelerator`: where the caller has it already)."""
    return convert(Kernel(configurations.get(machine)), KERNEL) + "\n" + (accelerator or accelerator_verilog(machine))


def simulation_verilog(machine: str | Config) -> str:
    """`accelerator_verilog` and the behavioural model of the primitive."""
    return accelerator_verilog(machine) + "\n" + DSP_MODEL.read_text()


def emit(machine: str | Config, folder: Path) -> list[Path]:
    """Writes alula_NAME.v, dsp48e2.v (simulation only) and manifest.json; returns their paths."""
    config = configurations.get(machine)
    text = accelerator_verilog(config)
    manifest = {
        "config": config.name,
        "digest": config.digest(),
        "top": TOP,
        "memory_ports": config.units + 1,
        "chain_dsps": config.chain_dsps,
        "clock_hz": config.clock_hz,
        "modules": len(module_names(text)),
    }
    contents = {
        f"alula_{config.name}.v": text,
        "dsp48e2.v": DSP_MODEL.read_text(),
        "manifest.json": json.dumps(manifest, indent=2) + "\n",
    }
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    try:
        for file_name, content in contents.items():
            paths.append(folder / file_name)
            paths[-1].write_text(content)
    except OSError:
        for path in paths:  # half of a design is none
            path.unlink(missing_ok=True)
        raise
    return paths
