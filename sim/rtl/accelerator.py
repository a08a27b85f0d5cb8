"""The accelerator as a simulation design. Its Verilog is kept in the cache under a digest of the sources in `hw`."""

from functools import lru_cache
from hashlib import sha256
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

from hw.spec import config as configurations
from hw.spec.config import GRANULE_LANES, Config
from sim.cache import entry
from sim.rtl.build import Design

VERILOG = "accelerator.v"
"""The file of an entry of the cache."""


def source_digest() -> str:
    """Changes with anything that the Verilog is made from."""
    folder = Path(str(files("hw")))
    state = sha256(" ".join(version(package) for package in ("amaranth", "pyosys")).encode())
    for path in sorted([*folder.rglob("*.py"), *folder.rglob("*.v")]):
        content = path.read_bytes()
        state.update(f"{path.relative_to(folder)}\0{len(content)}\0".encode() + content)
    return state.hexdigest()[:24]


def verilog(machine: str | Config) -> str:
    """A configuration's Verilog and the model of its primitive, from the cache if the sources are unchanged."""
    config = configurations.get(machine)

    def make(folder: Path) -> None:
        from hw.accelerator import Accelerator
        from hw.emit import DSP_MODEL, TOP
        from hw.verilog_writer import convert

        text = convert(Accelerator(config, primitive=True, shared=True), TOP) + "\n" + DSP_MODEL.read_text()
        (folder / VERILOG).write_text(text)

    return (entry("verilog", f"{config.digest()}-{source_digest()}", make) / VERILOG).read_text()


def synthesisable(machine: str | Config) -> str:
    """The accelerator's text without the primitive's model, from the same cache."""
    from hw.emit import DSP_MODEL

    return verilog(machine).removesuffix("\n" + DSP_MODEL.read_text())


PARTS = ("matrix_unit", "vector_lane")
"""Blocks that are written once, however many a configuration has."""


def synthesisable_part(machine: str | Config, part: str) -> str:
    """One of a configuration's `PARTS` as it stands in `synthesisable`, which takes several times as long to write."""
    config = configurations.get(machine)

    def make(folder: Path) -> None:
        from hw.matrix_unit import MatrixUnit
        from hw.vector_lane import VectorLane
        from hw.verilog_writer import convert

        block = MatrixUnit(config, primitive=True) if part == "matrix_unit" else VectorLane()
        (folder / VERILOG).write_text(convert(block, part))

    return (entry("verilog", f"{part}-{config.digest()}-{source_digest()}", make) / VERILOG).read_text()


def compiled_apart(config: Config) -> tuple[str, ...]:
    """The modules of which a configuration has so many that compiling them once is worth the boundary's cost."""
    many = {"matrix_unit": config.units > 2, "vector_lane": config.lanes > GRANULE_LANES}
    return tuple(name for name, worth in many.items() if worth)


@lru_cache
def design(machine: str | Config, *, waves: bool = False) -> Design:
    """The configuration's design for `sim.rtl.run`. Its memory ports: the channels, then aux."""
    from hw.emit import TOP

    config = configurations.get(machine)
    text, parts = verilog(config), compiled_apart(config)
    return Design(text, TOP, config.units + 1, hierarchical=parts, waves=waves)


@lru_cache
def kernel_design(machine: str | Config) -> Design:
    """The same, packaged as XRT takes it (`hw.kernel`): no trace."""
    from hw.emit import kernel_verilog
    from hw.spec.packaging import KERNEL

    config = configurations.get(machine)
    text, parts = kernel_verilog(config, verilog(config)), compiled_apart(config)
    return Design(text, KERNEL, config.units + 1, hierarchical=parts, kernel=True)
