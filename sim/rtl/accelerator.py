"""The accelerator as a simulation design. Its Verilog is kept in the cache under a digest of the sources in `hw`."""

from functools import lru_cache
from hashlib import sha256
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

from hw.spec import config as configurations
from sim.rtl.build import Design
from sim.rtl.toolchain import cache_dir


def source_digest() -> str:
    """Changes with anything that the Verilog is made from."""
    folder = Path(str(files("hw")))
    state = sha256(" ".join(version(package) for package in ("amaranth", "pyosys")).encode())
    for path in sorted([*folder.rglob("*.py"), *folder.rglob("*.v")]):
        content = path.read_bytes()
        state.update(f"{path.relative_to(folder)}\0{len(content)}\0".encode() + content)
    return state.hexdigest()[:24]


def verilog(name: str) -> str:
    """`hw.emit.simulation_verilog`, from the cache if the sources are unchanged."""
    path = cache_dir() / "verilog" / f"{configurations.get(name).digest()}-{source_digest()}.v"
    if not path.exists():
        from hw.emit import simulation_verilog

        path.parent.mkdir(parents=True, exist_ok=True)
        text = simulation_verilog(name)
        work = path.with_suffix(".tmp")
        work.write_text(text)
        work.replace(path)
    return path.read_text()


@lru_cache
def design(name: str, *, waves: bool = False) -> Design:
    """The configuration's design for `sim.rtl.run`. Its memory ports: the channels, then aux."""
    from hw.emit import TOP

    units = configurations.get(name).units
    large = units > 2
    return Design(verilog(name), TOP, units + 1, hierarchical=("matrix_unit",) if large else (), waves=waves)
