"""The shape of `u280` in small: eight matrix units, vector words of four granules, HBM with and without jitter."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from alula.session import Flow, open_flow
from alula.verification import verify
from hw.spec.config import CONFIGS
from hw.spec.memory import MemoryModel
from ref_model.compress import Compression
from ref_model.config import MODELS
from tests.cross.test_executors import require_exact

WIDE = replace(CONFIGS["tiny"], name="wide", units=8, lanes=64)
"""A unit's row is a quarter of a vector word, and a drained row is two words: groups of units are chosen, as on
`u280`, where there are eight."""
TINY_MODEL = MODELS["llava-tiny"]
MODEL = replace(
    TINY_MODEL,
    name="wide",
    vision=None,
    image_token_index=None,
    text=replace(TINY_MODEL.text, hidden=128, heads=2, kv_heads=1, head_dim=WIDE.lanes, layers=1),
)
"""A head is a vector word at least."""


@pytest.fixture(scope="module")
def flow() -> Iterator[Flow]:
    """Every block of the weights has a precision and a sparsity of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(CONFIGS, WIDE.name, WIDE)
        patch.setitem(MODELS, MODEL.name, MODEL)
        yield open_flow(MODEL.name, WIDE.name, compression=Compression.parse("mixed", "mixed", "plain"))


@pytest.mark.slow
@pytest.mark.parametrize(("jitter", "seed"), [(0, 0), (37, 1), (37, 2)])
def test_wide_words_on_hbm(flow: Flow, jitter: int, seed: int) -> None:
    memory = MemoryModel.of(WIDE, "hbm", jitter, seed)
    result = verify(flow, "rtl", lengths=(5,), steps=1, decode=(40,), memory=memory)
    assert len(result["cases"]) == 3
    require_exact(result)
