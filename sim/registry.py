"""Executors by name. This file stands on top of `sim`: it imports all of them, none of them imports it."""

from importlib import import_module

from hw.spec.errors import UserError
from hw.spec.run import Backend

BACKENDS = {
    "functional": ("sim.functional", "FunctionalBackend"),
    "cycle": ("sim.cycle", "CycleBackend"),
    "rtl": ("sim.rtl.backend", "RtlBackend"),
    "xrt": ("sim.xrt.backend", "XrtBackend"),
}
"""Name -> module and class. A module is imported when it is first asked for: RTL needs tools that others do without."""


def backend(name: str, **options) -> Backend:
    """The executor called `name`, made with its own options; UserError for a name that is not in `BACKENDS`."""
    if name not in BACKENDS:
        raise UserError(f"backend is {name!r}: choose one of {', '.join(BACKENDS)}")
    module, of_class = BACKENDS[name]
    return getattr(import_module(module), of_class)(**options)
