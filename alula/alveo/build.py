"""`alula build`: writes the project of a configuration and a card, runs the vendor's tools where they are."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

from alula.alveo import checks, recipes, reports
from alula.output import write_atomically
from hw.spec import cards, config
from hw.spec.errors import InternalError, UserError

_VERSION_OPTIONS = {"vivado": "-version", "v++": "--version"}
"""A tool that is not here (slashkit) does not tell its version."""
MANIFEST, REPORTS_FOLDER = "manifest.json", "reports"
NOT_BUILT = 3
"""Exit code when everything was written and a tool is missing."""
DEFAULT_FOLDER = "bitstreams"


def build(
    chosen: str | config.Config,
    card_name: str | None = None,
    target: str | None = None,
    out: Path | None = None,
    verilog: Callable[[config.Config], str] | None = None,
    find: Callable[[str], str | None] = shutil.which,
    note: Callable[[str], None] = lambda _: None,
) -> dict:
    """The manifest, also written to `out`, with `missing` naming the tools that were not found.

    card_name: by default the one that the configuration is meant for. target: by default the first of the card's flow
    (`alula.alveo.flow.Flow`). verilog: gives the kernel's text (by default the configuration's, from the cache).
    """
    machine = config.get(chosen)
    name = machine.name
    card = cards.get(card_name) if card_name else cards.card_of(machine)
    flow = recipes.flow_of(card)
    target = target or flow.targets[0]
    if target not in flow.targets:
        raise UserError(f"{card.name} has no target {target!r}: choose one of {', '.join(flow.targets)}")
    card.check(machine)
    note("writing Verilog")
    contents = recipes.files(machine, card, (verilog or kernel_verilog)(machine))
    note("checking")
    if wrong := checks.all_checks(machine, card, contents):
        raise InternalError(f"the project of {name} for {card.name} is wrong: {wrong[0]} ({len(wrong)} findings)")
    folder = out or Path(DEFAULT_FOLDER) / f"{name}-{card.name}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {folder}: {error.strerror}; choose another --out") from error
    for file_name, text in contents.items():
        write_atomically(folder / file_name, text)
    commands = flow.commands(target)
    missing = [tool for tool, _ in commands if find(tool) is None]
    manifest = {
        "config": name,
        "digest": machine.digest(),
        "card": card.name,
        "part": card.part,
        "platform": card.platform,
        "target": target,
        "clock_asked_hz": machine.clock_hz,
        "project_digest": recipes.digest(contents),
        "files": {file_name: sha256(text.encode()).hexdigest() for file_name, text in sorted(contents.items())},
        "commands": [" ".join([tool, *arguments]) for tool, arguments in commands],
        "missing": missing,
        "tools": {},
        "results": {},
    }
    write_manifest(folder, manifest)
    if not missing:
        _run(folder, commands, manifest, find, note)
    return manifest | {"folder": str(folder)}


def missing_line(manifest: dict) -> str:
    """What is missing, in one line."""
    tools = " and ".join(manifest["missing"])
    are = "are" if len(manifest["missing"]) > 1 else "is"
    install = recipes.flow_of(cards.get(manifest["card"])).install.format(platform=manifest["platform"])
    return f"{manifest['folder']} is written and not built: {tools} {are} not on PATH; {install}, and run this again"


def kernel_verilog(machine: config.Config) -> str:
    """The packaged top and everything below it; DSP48E2 is the vendor's primitive."""
    from hw import emit
    from sim.rtl.accelerator import synthesisable

    return emit.kernel_verilog(machine, synthesisable(machine))


def write_manifest(folder: Path, manifest: dict) -> None:
    write_atomically(folder / MANIFEST, json.dumps(manifest, indent=2) + "\n")


def _run(folder: Path, commands: list, manifest: dict, find: Callable, note: Callable) -> None:
    """Runs the tools; what they report goes into the manifest. InternalError names the log of the one that failed."""
    (folder / REPORTS_FOLDER).mkdir(exist_ok=True)
    environment = os.environ | {"ALULA_REPORTS": str((folder / REPORTS_FOLDER).resolve())}
    for tool, arguments in commands:
        note(tool)
        path = find(tool)
        manifest["tools"][tool] = _version(tool, path)
        log = folder / f"{tool.replace('+', 'p')}.log"
        resolved = [argument.replace("FOLDER", str(folder.resolve())) for argument in arguments]
        with log.open("w") as output:
            done = subprocess.run(
                [path, *resolved],
                cwd=folder,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                check=False,
            )
        if done.returncode:
            raise InternalError(f"{tool} failed with code {done.returncode}: see {log}")
    manifest["results"] = reports.collect(folder / REPORTS_FOLDER)
    write_manifest(folder, manifest)


def _version(tool: str, path: str) -> str | None:
    """The first line of what a tool says of its version; None where it has no option for that."""
    if tool not in _VERSION_OPTIONS:
        return None
    said = subprocess.run([path, _VERSION_OPTIONS[tool]], capture_output=True, text=True, check=False).stdout
    return next((line.strip() for line in said.splitlines() if line.strip()), None)
