"""The control registers as the host and the packaging see them; every offset is `hw.spec.csr`'s."""

from dataclasses import asdict, dataclass

from hw.spec import csr
from hw.spec.config import Config
from hw.spec.packaging import port_name

ADDRESS_SPACE_BYTES = 4096
_CONTROL = {"CTRL": csr.CTRL, "GIER": csr.GIER, "IP_IER": csr.IER, "IP_ISR": csr.ISR}
_FIRST_STATUS = csr.REGISTERS["status"]


@dataclass(frozen=True)
class Argument:
    """A kernel argument: a 32-bit scalar, or the 64-bit address of the buffer behind `port`."""

    index: int
    name: str
    offset: int
    bits: int
    port: str | None = None


def control() -> dict[str, int]:
    """Name, as Vitis expects it, to offset."""
    return dict(_CONTROL)


def arguments(config: Config) -> list[Argument]:
    """In the order of their offsets, which is the order of their numbers."""
    scalars = [(name, at, 32, None) for name, at in csr.REGISTERS.items() if at < _FIRST_STATUS]
    bases = [(f"base{i:02d}", csr.base_offset(i), 64, port_name(i)) for i in range(config.units + 1)]
    ordered = sorted([*scalars, *bases], key=lambda item: item[1])
    return [Argument(index, *item) for index, item in enumerate(ordered)]


def status() -> dict[str, int]:
    """What the host reads beside its arguments: status, identification, and (low words of) 64-bit counters."""
    fixed = {name: at for name, at in csr.REGISTERS.items() if at >= _FIRST_STATUS}
    return fixed | {name: csr.counter_offset(name) for name in csr.COUNTERS}


def host_arguments(config: Config) -> dict:
    """The contents of host_args.json."""
    return {"control": control(), "arguments": [asdict(a) for a in arguments(config)], "status": status()}
