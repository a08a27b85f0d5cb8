"""The commands of README, tutorial, how-to and reference pages print what stands below them."""

import pytest

from tools.documents import pages, recorded
from tools.documents.results import ROOT

FAST = "README.md"
"""Its fast commands run with every test."""
PAGES = [page for page in pages.pages() if recorded.blocks(page.read_text())]


def _check(page, slow):
    text = page.read_text()
    new, faults = recorded.run(text, slow=slow)
    assert faults == []
    assert recorded.differences(text, new, str(page.relative_to(ROOT))) == []


def test_fast_commands():
    _check(ROOT / FAST, slow=False)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_all_commands(page):
    _check(page, slow=True)
