"""The buffers of u280 are small, and a prefill of LLaVA-1.5-7B still works on 128 tokens at a time."""

from dataclasses import replace

import pytest

from alula.session import open_flow
from compiler.kernels.allocate import largest_tile, text_regions, vision_regions
from compiler.pipeline import compile_model
from hw.spec.config import get
from hw.spec.errors import UserError
from ref_model.compress import Compression
from ref_model.config import MODELS

COMPRESSION = Compression.parse("3.5", "dense", "best")
"""13B does not fit the channels at INT8."""


@pytest.mark.parametrize("name, text_tile, vision_tile", [("llava-1.5-7b", 128, 128), ("llava-1.5-13b", 100, 100)])
def test_tiles(name, text_tile, vision_tile):
    layout = open_flow(name, "u280", timing_only=True, layers=1, compression=COMPRESSION).layout
    assert largest_tile(layout, layout.model.text.layer, text_regions, layout.context)[0] >= text_tile
    assert largest_tile(layout, layout.tower.layer, vision_regions, layout.tower.n_patches + 1)[0] >= vision_tile


def test_short_queues_are_refused():
    """With four entries a schedule of llava-tiny would wait for itself."""
    with pytest.raises(UserError, match="queue_depth = 4, compiled programs need queues of 8"):
        compile_model(MODELS["llava-tiny"], replace(get("tiny"), queue_depth=4))
