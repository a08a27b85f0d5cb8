"""`python -m tools.documents [--check]` and `python -m tools.documents --run [--slow] [--check] [FILE ...]`."""

import argparse
import sys
from pathlib import Path

from alula.output import write_atomically
from tools.documents import pages, recorded
from tools.documents.results import ROOT


def main(arguments: list[str]) -> int:
    """Exit code 1 where `--check` finds a difference or a command does not end as its document says."""
    parser = argparse.ArgumentParser(prog="python -m tools.documents", description=__doc__)
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="with --run: documents (default: all)")
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 where something differs")
    parser.add_argument("--run", action="store_true", help="run the commands of console blocks, record their output")
    parser.add_argument("--slow", action="store_true", help="with --run: run blocks marked slow, too")
    given = parser.parse_args(arguments)
    if given.files and not given.run:
        parser.error("files are for --run: generated blocks are written in all documents")
    return _run(given) if given.run else _generate(given.check)


def _generate(check: bool) -> int:
    differing = pages.differing()
    if check and differing:
        names = ", ".join(str(page.relative_to(ROOT)) for page in differing)
        print(f"not what the files say today: {names} (python -m tools.documents writes them)", file=sys.stderr)
        return 1
    for page in differing if not check else []:
        write_atomically(page, pages.generated(page))
        print(f"wrote {page.relative_to(ROOT)}")
    return 0


def _run(given: argparse.Namespace) -> int:
    code = 0
    for page in given.files or pages.pages():
        text = page.read_text()
        if not recorded.blocks(text):
            continue
        new, faults = recorded.run(text, slow=given.slow, say=lambda line: print(line, file=sys.stderr, flush=True))
        if given.check:
            faults += recorded.differences(text, new, str(page))
        elif new != text and not faults:
            write_atomically(page.absolute(), new)
            print(f"wrote {page}")
        for fault in faults:
            print(fault, file=sys.stderr)
            code = 1
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
