"""The same encoded program on golden, functional, cycle and RTL."""

import pytest

from alula.cross import CrossBackend
from alula.generation import generate
from alula.session import Flow, open_flow
from alula.simulation import simulate
from alula.verification import check_text, verify
from compiler.host import text_macs

KEYS = [
    "backend",
    "config",
    "model",
    "phase",
    "tokens",
    "kv",
    "layers",
    "cycles",
    "seconds_at_clock",
    "clock_hz",
    "macs",
    "mac_utilisation",
    "tokens_per_second",
    "ttft_seconds",
    "hbm_bytes_read",
    "hbm_bytes_written",
    "hbm_utilisation",
    "instructions_executed",
    "program_bytes",
    "weight_bytes",
    "wall_seconds",
    "peak_memory_bytes",
    "bit_exact",
    "cycle_exact",
    "compared_bytes",
]


@pytest.fixture(scope="module")
def flow() -> Flow:
    return open_flow("llava-tiny", "tiny")


def test_simulators_equal_golden(flow: Flow) -> None:
    result = verify(flow, "cycle", lengths=(1, 3, 18), steps=2)
    assert result["bit_exact"] and result["cycle_exact"] is None
    names = [case["name"] for case in result["cases"]]
    assert names == ["vision", "prefill 1", "prefill 3", "prefill 18", "decode kv 19", "decode kv 20"]
    assert all(case["cycles_simulated"] > 0 and case["compared_bytes"] > 0 for case in result["cases"])


def test_a_wrong_byte_is_found(flow: Flow) -> None:
    """The comparison must be able to fail."""
    cross = CrossBackend(("functional",))
    machine, golden = flow.machine(cross), flow.golden()
    assert check_text(flow, machine, golden, "first", [5, 6, 7])[0].bit_exact
    golden.cache[0].k8[0, 0, 0] ^= 1
    outcome = check_text(flow, machine, golden, "second", [8])[0]
    assert not outcome.bit_exact
    assert outcome.first_difference is not None


@pytest.mark.parametrize("phase", ["prefill", "decode", "vision"])
def test_simulate_keys(flow: Flow, phase: str) -> None:
    result = simulate(flow, phase, tokens=9, kv=20, check=True)
    assert set(KEYS) <= set(result)
    assert result["bit_exact"] and result["cycles"] > 0
    if phase == "decode":
        assert result["macs"] == text_macs(flow.layout, 1, 19)
        text = flow.model.config.text
        entries = flow.layers * text.kv_heads * text.head_dim * 2
        scales = flow.layers * text.kv_heads * 2 * 4
        logits = flow.layout.head.count * flow.layout.head.granules * 64
        assert result["hbm_bytes_written"] == entries + scales + logits


def test_tokens_equal_golden(flow: Flow) -> None:
    made = generate(flow, [256, 72, 105], 4, ("functional",), check=True)
    assert made.tokens == made.golden_tokens
    assert len(made.tokens) == 4
