"""What the commands do when they are given FILE.py:NAME, and the lines with which a check ends.

Imports are late: torch takes seconds.
"""

from pathlib import Path

from alula.output import console, progress, show, write_atomically, write_json
from hw.spec.config import Config
from hw.spec.errors import InternalError
from hw.spec.memory import MemoryModel


def compile(text: str, machine: Config, seed: int, out: Path, json: Path | None) -> None:
    """compile FILE.py:NAME -o FILE."""
    with progress(f"compiling {text} for {machine}"):
        from alula import module_commands as own

        result = own.compile_to(own.open_module(text, machine, seed), out)
    write_json(json, result)
    own.show_compiled(result)


def simulate(
    text: str,
    machine: Config,
    seed: int,
    length: list[str] | None,
    entry: str | None,
    memory: MemoryModel,
    json: Path | None,
    trace: Path | None,
) -> None:
    """simulate FILE.py:NAME."""
    from alula import module_commands as own

    asked = own.Asked.of(length, entry)
    with progress(f"simulating {text} on {machine}"):
        program = own.open_module(text, machine, seed)
        result = own.simulate(program, asked, memory)
    events = result.pop("trace")
    if trace is not None:
        write_atomically(trace, own.trace_json(program, events))
    write_json(json, result)
    own.show_simulated(result)


def verify(
    text: str,
    machine: Config,
    seed: int,
    backend: str,
    length: list[str] | None,
    entry: str | None,
    memory: MemoryModel,
    full: bool,
    json: Path | None,
) -> None:
    """verify FILE.py:NAME."""
    from alula import module_commands as own

    asked = own.Asked.of(length, entry)
    with progress(f"compiling {text} for {machine}"):
        program = own.open_module(text, machine, seed)
    with progress(f"verifying {text} on {machine}"):
        result = own.verify(program, backend, asked, memory)
    write_json(json, result)
    own.show_verified(result, full)
    conclude(result)


def conclude(result: dict) -> None:
    """The lines that count; InternalError unless both hold."""
    totals = f"{show(result['cycles_simulated'])} simulated = {show(result['cycles_rtl'])} RTL"
    verdict = "bit-exact" if result["bit_exact"] else "NOT bit-exact"
    console.print(f"{verdict} ({result['compared_bytes']:,} bytes compared)")
    if result["cycle_exact"] is not None:
        console.print(f"{'cycle-exact' if result['cycle_exact'] else 'NOT cycle-exact'} ({totals})")
    if not result["bit_exact"] or result["cycle_exact"] is False:
        wrong = [c for c in result.get("cases", []) if not c["bit_exact"] or c["cycle_exact"] is False]
        first = wrong[0] if wrong else {}
        raise InternalError(
            f"the executors disagree, first in {first.get('name')}: {first.get('first_difference') or 'cycles'}"
        )
