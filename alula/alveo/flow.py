"""What differs between the ways to build a card: their files, commands, checks, and the tools that they need."""

from collections.abc import Callable
from dataclasses import dataclass

from hw.spec.cards import Card
from hw.spec.config import Config
from hw.spec.packaging import KERNEL

UNIT_CELL = "/inst/accelerator/core/matrix/unit_"
"""A matrix unit's cell below the kernel's; its number follows."""
VERILOG, PACKAGE, LINK, HOST = f"{KERNEL}.v", "package.tcl", "link.cfg", "host_args.json"
"""The kernel, the script that packages it, what the linker connects (where there is one), the host's register map."""
IP_FOLDER = "ip"
"""Where Vivado's packager puts the IP-XACT core, beside the other files."""
PACKAGING = ("vivado", ["-mode", "batch", "-nojournal", "-log", "package.log", "-source", PACKAGE])
Command = tuple[str, list[str]]
"""A tool and its arguments; FOLDER in them stands for the absolute path of the project's folder."""
_HEADER = "# Written by `alula build --config {config} --card {card}` (configuration {digest}): do not edit.\n"


@dataclass(frozen=True)
class Flow:
    """One way to build: `alula.alveo.vitis`, `alula.alveo.slash`, `alula.alveo.generic`."""

    targets: tuple[str, ...]
    """What `--target` may be; the first is the default."""
    kernel_object: bool
    """The packager makes a kernel of Vitis, an .xo, out of the IP-XACT core."""
    files: Callable[[Config, Card], dict[str, str]]
    """Name -> contents of the files that only this flow has."""
    commands: Callable[[str], list[Command]]
    """What makes a target, in order, run in the project's folder."""
    check: Callable[[Config, Card, dict[str, str]], list[str]]
    """What is wrong with the flow's own files, among all of the project's; a line each."""
    install: str
    """What a user without the tools does; {platform} is the card's."""


def header(config: Config, card: Card) -> str:
    """First line of a written file: where it comes from."""
    return _HEADER.format(config=config.name, card=card.name, digest=config.digest())
