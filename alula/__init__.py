"""alula: an open mapping flow for LLaVA on FPGAs.

    program = alula.compile(module, inputs, dynamic={"x": {0: "seq"}}, lengths={"seq": (1, 616)}, config="u280")
    program.verify(seq=37)
    program.simulate(seq=616).cycles

What is here is loaded when it is first asked for: torch takes seconds.
"""

from typing import Any

__all__ = ["Entry", "Program", "compile"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from alula import api

        return getattr(api, name)
    raise AttributeError(f"module 'alula' has no attribute {name!r}")
