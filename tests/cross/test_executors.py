"""One encoded program on every executor: equal in every byte, and the cycle simulator equals the RTL in every cycle."""

import pytest

from alula.session import open_flow
from alula.verification import verify


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


@pytest.mark.slow
def test_one_real_layer() -> None:
    """SmolLM2-135M's first layer with its trained weights: 16-token prefill and four decode steps."""
    result = verify(open_flow("smollm2-135m", "small", layers=1), "rtl", lengths=(16,), steps=4)
    assert len(result["cases"]) == 5
    require_exact(result)
