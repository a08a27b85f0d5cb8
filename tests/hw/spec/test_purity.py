"""hw/spec is the source of truth of everybody and imports the standard library only; its page is up to date."""

import ast
import sys
from pathlib import Path

import pytest

from hw.spec.isa_doc import page

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("path", sorted((ROOT / "hw/spec").glob("*.py")), ids=lambda p: p.name)
def test_imports_the_standard_library_only(path):
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module]
        for name in names:
            top = name.split(".")[0]
            assert top in sys.stdlib_module_names or name.startswith("hw.spec"), f"{path.name} imports {name}"


def test_isa_page_is_generated():
    assert (ROOT / "docs/isa.md").read_text() == page(), "regenerate: python -m hw.spec.isa_doc > docs/isa.md"
