"""`python -m tools.pictures`: writes docs/img/machine.svg and docs/img/timeline.svg; `--check` compares them."""

import sys

from alula.output import write_atomically
from hw.spec.config import get
from tools.pictures import IMAGES, machine, timeline


def drawn() -> dict[str, str]:
    """File name -> picture."""
    return {"machine.svg": machine.svg(get("u280")), "timeline.svg": timeline.svg(*timeline.simulated())}


def main(arguments: list[str]) -> int:
    """Exit code 1 where `--check` finds an old picture."""
    code = 0
    for name, picture in drawn().items():
        path = IMAGES / name
        if path.is_file() and path.read_text() == picture:
            continue
        if arguments == ["--check"]:
            print(f"docs/img/{name} is old: python -m tools.pictures draws it", file=sys.stderr)
            code = 1
        else:
            write_atomically(path, picture)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
