"""One encoded program on every executor: equal in every byte, and the cycle simulator equals the RTL in every cycle."""

import numpy as np
import pytest

from alula.session import open_flow
from alula.verification import verify
from ref_model.compress import Compression
from ref_model.mask import BlockMask


def require_exact(result: dict) -> None:
    """Every case agrees, and something was compared."""
    for case in result["cases"]:
        assert case["bit_exact"], f"{case['name']}: {case['first_difference']}"
        assert case["cycle_exact"], f"{case['name']}: {case['cycles_simulated']} simulated, {case['cycles_rtl']} RTL"
        assert not case["counters_differing"], f"{case['name']}: {case['counters_differing']}"
        assert case["compared_bytes"] > 0 and case["cycles_rtl"] > 0


def test_llava_tiny() -> None:
    result = verify(open_flow("llava-tiny", "tiny"), "rtl", lengths=(1, 2, 7, 16, 33), steps=2)
    assert result["cases"][0]["name"] == "vision"
    assert len(result["cases"]) == 8
    require_exact(result)


def test_every_block_of_another_precision_and_sparsity() -> None:
    """2, 3, 4 and 8 bits and 0, 1, 2, 4, 8 and 16 non-zeros of 16, mixed from block to block; vision too."""
    flow = open_flow("llava-tiny", "tiny", compression=Compression.parse("mixed", "mixed", "plain"))
    require_exact(verify(flow, "rtl", lengths=(5, 16), steps=1))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bits", "sparsity"),
    [
        ("8", "8:16"),
        ("4", "8:16"),
        ("3", "4:16"),
        ("2", "2:16"),
        ("8", "1:16"),
        ("4", "dense"),
        ("3", "dense"),
        ("2", "dense"),
    ],
)
def test_one_precision_and_sparsity(bits: str, sparsity: str) -> None:
    flow = open_flow("llava-tiny", "tiny", vision=False, compression=Compression.parse(bits, sparsity, "plain"))
    require_exact(verify(flow, "rtl", lengths=(5, 16), steps=1))


def test_llava_tiny_with_absent_keys() -> None:
    """The last queries see three runs of keys: the first, the third and their own tile."""
    flow = open_flow("llava-tiny", "tiny", vision=False)
    tiles = np.arange(8)
    mask = BlockMask(32, (tiles[:, None] - tiles) % 2 == 0)
    require_exact(verify(flow, "rtl", lengths=(135,), steps=1, mask=mask))


@pytest.mark.slow
def test_one_layer_on_small() -> None:
    require_exact(verify(open_flow("llava-tiny", "small", layers=1, vision=False), "rtl", lengths=(16,), steps=1))


@pytest.mark.slow
def test_one_real_layer() -> None:
    """SmolLM2-135M's first layer with its trained weights: 16-token prefill and four decode steps."""
    result = verify(open_flow("smollm2-135m", "small", layers=1), "rtl", lengths=(16,), steps=4)
    assert len(result["cases"]) == 5
    require_exact(result)
