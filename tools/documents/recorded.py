"""Recorded commands: blocks fenced as `console`, whose commands run and whose output is kept.

Example::

    <!-- head 3 -->
    ```console
    $ alula info --config tiny
    tiny
    ...
    ```

A line that starts with `$ ` is a command; what follows up to the next command is what it printed. The commands of a
document run one after another in one folder, in which there is nothing but the project's `examples`, with its programs
first on PATH, on a terminal of 80 columns without colours. `make` runs in the project's folder with the environment at
hand.

A comment on the line before a block changes how it runs. Several words are separated by commas.

    slow       runs only with `--slow`
    fails      each command ends with an exit code other than 0
    head N     keeps the first N lines of each command's output; a line `...` stands for the rest
    only RE    keeps the lines in which the regular expression RE is found; `...` stands for what is left out
    not run    is never run: it needs something that a test does not have, such as a card

`<!-- file my.toml -->` before a fenced block of any other kind writes that block into the folder as my.toml.

What differs from run to run is masked as `...`: the numbers behind a word about time or memory of the computer that
simulates (`MASKED`), and dates. The temporary folder is shown as `.`, the project's as `alula`.
"""

import difflib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tools.documents.results import ROOT

MASKED = re.compile(
    r"[\d.,]+ (?:s|seconds|min|minutes) (?:of )?wall|wall|elapsed|took|simulator_seconds|simulated in|compile_seconds"
    r"|peak[_ ]memory|resident",
    re.IGNORECASE,
)
"""From here to the end of a line, every number is masked."""
TOOK = re.compile(r"^(  took +).*$")
"""The line of a summary about the computer that simulates: its units change with its numbers."""
NUMBER = re.compile(r"(\s*)(?<![\w.])(\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?)")
DATE = re.compile(r"\b20\d\d-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d)?)?\b")
ELLIPSIS = "..."
COLUMNS = 80
TIMEOUT_SECONDS = 3600
_BLOCK = re.compile(
    r"(?:^<!-- (?P<marks>[^\n]*?) -->\n)?^```(?P<kind>\w+)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True)
class Block:
    """One fenced block and the words in the comment before it."""

    kind: str
    body: str
    marks: tuple[str, ...]
    start: int
    end: int
    """Where the body lies in the document's text."""

    @property
    def head(self) -> int | None:
        """Lines of output that are kept."""
        return next((int(mark.split()[1]) for mark in self.marks if mark.startswith("head ")), None)

    @property
    def only(self) -> str | None:
        """Lines of output that are kept, as a regular expression."""
        return next((mark.split(maxsplit=1)[1] for mark in self.marks if mark.startswith("only ")), None)

    @property
    def file(self) -> str | None:
        """The file that the block is written to."""
        return next((mark.split(maxsplit=1)[1] for mark in self.marks if mark.startswith("file ")), None)

    def runs(self, slow: bool) -> bool:
        """Whether its commands run."""
        return self.kind == "console" and "not run" not in self.marks and (slow or "slow" not in self.marks)

    @property
    def commands(self) -> list[str]:
        """Its commands; a line that ends in a backslash goes on in the next one."""
        found: list[str] = []
        goes_on = False
        for line in self.body.splitlines():
            if line.startswith("$ "):
                found.append(line)
            elif goes_on:
                found[-1] += f"\n{line}"
            goes_on = (line.startswith("$ ") or goes_on) and line.endswith("\\")
        return found


def blocks(text: str) -> list[Block]:
    """Console blocks and files of a document, in order."""
    found = []
    for match in _BLOCK.finditer(text):
        marks = tuple(mark.strip() for mark in (match["marks"] or "").split(","))
        block = Block(match["kind"], match["body"], marks, match.start("body"), match.end("body"))
        if block.kind == "console" or block.file:
            found.append(block)
    return found


def run(text: str, slow: bool, say: Callable[[str], None] = lambda _: None) -> tuple[str, list[str]]:
    """The document with what its commands print today, and a line a command that did not end as it should."""
    faults: list[str] = []
    pieces, done = [], 0
    with tempfile.TemporaryDirectory(prefix="alula-documents-") as name:
        folder = Path(name)
        (folder / "examples").symlink_to(ROOT / "examples")
        for block in blocks(text):
            if block.file:
                (folder / block.file).write_text(block.body)
            if not block.runs(slow):
                continue
            body, wrong = _record(block, folder, say)
            faults += wrong
            pieces += [text[done : block.start], body]
            done = block.end
    return "".join([*pieces, text[done:]]), faults


def _record(block: Block, folder: Path, say: Callable[[str], None]) -> tuple[str, list[str]]:
    lines, faults = [], []
    for command in block.commands:
        began = time.monotonic()
        code, output = _execute(command[2:], folder)
        say(f"{time.monotonic() - began:6.1f} s  {command}")
        if (code != 0) != ("fails" in block.marks):
            faults.append(f"exit code {code}: {command}\n{output}")
        lines += [command, *_kept(masked(output, folder), block)]
    return "".join(f"{line}\n" for line in lines), faults


def _kept(shown: list[str], block: Block) -> list[str]:
    """The lines that the block asks for."""
    if block.only is not None:
        found: list[str] = []
        for line in shown:
            if re.search(block.only, line):
                found.append(line)
            elif found[-1:] != [ELLIPSIS]:
                found.append(ELLIPSIS)
        return found
    if block.head is not None and len(shown) > block.head:
        return [*shown[: block.head], ELLIPSIS]
    return shown


def _execute(command: str, folder: Path) -> tuple[int, str]:
    binaries = Path(sys.executable).parent
    environment = os.environ | {
        "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "COLUMNS": str(COLUMNS),
        "NO_COLOR": "1",
        "TERM": "dumb",
        "ALULA_BIN": str(binaries),
    }
    command = re.sub(r"^make\b", f"make --no-print-directory -C '{ROOT}'", command)
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, timeout=TIMEOUT_SECONDS, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout


def masked(output: str, folder: Path) -> list[str]:
    """The output's lines with what varies as `...`, without trailing spaces and empty lines at the end."""
    for path, name in ((folder, "."), (ROOT, "alula"), (Path(sys.prefix), ".venv"), (Path.home(), "~")):
        output = output.replace(str(path), name)
    lines = [_masked(line).rstrip() for line in output.splitlines()]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def _masked(line: str) -> str:
    line = TOOK.sub(rf"\1{ELLIPSIS}", DATE.sub(ELLIPSIS, line))
    found = MASKED.search(line)
    return line[: found.start()] + NUMBER.sub(_hidden, line[found.start() :]) if found else line


def _hidden(match: re.Match) -> str:
    """`...` instead of a number; to the right where the number stood to the right, so that tables stay tables."""
    space, number = match[1], match[2]
    return ELLIPSIS.rjust(len(space) + len(number)) if len(space) > 1 else space + ELLIPSIS


def differences(text: str, new: str, name: str) -> list[str]:
    """The difference between what a document says and what its commands print, if there is one."""
    if text == new:
        return []
    lines = difflib.unified_diff(
        text.splitlines(), new.splitlines(), f"{name} (recorded)", f"{name} (now)", lineterm=""
    )
    return ["\n".join(lines)]
