"""The documents, and their generated blocks (cog)."""

import io
from pathlib import Path

from cogapp import Cog

from tools.documents.results import ROOT

PROLOGUE = """
import cog
from tools.documents import figures, machine, resources

def show(text):
    cog.outl(text.strip())
"""


def pages(root: Path = ROOT) -> list[Path]:
    """README.md and every Markdown file below docs/."""
    return [root / "README.md", *sorted((root / "docs").rglob("*.md"))]


def generated(page: Path) -> str:
    """The page's text with its generated blocks as they are today."""
    text = page.read_text()
    if "[[[cog" not in text:
        return text
    cog = Cog()
    cog.options.prologue = PROLOGUE
    out = io.StringIO()
    cog.process_file(io.StringIO(text), out, fname=str(page))
    return out.getvalue()


def differing(root: Path = ROOT) -> list[Path]:
    """Pages whose text is not what their blocks give today."""
    return [page for page in pages(root) if generated(page) != page.read_text()]
