"""The same encoded program on golden, functional, cycle and RTL."""

import pytest

from alula.cross import CrossBackend
from alula.generation import generate
from alula.runtime.work import text_macs
from alula.session import Flow, open_flow
from alula.simulation import simulate
from alula.verification import check_text, verify
from ref_model.compress import Compression

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
    "array_utilisation",
    "tokens_per_second",
    "ttft_seconds",
    "hbm_bytes_read",
    "hbm_bytes_written",
    "channel_bytes_read",
    "channel_bytes_written",
    "aux_bytes_read",
    "aux_bytes_written",
    "bytes_read",
    "bytes_written",
    "layers_of_model",
    "whole_model",
    "hbm_utilisation",
    "hbm_busy",
    "instructions_executed",
    "program_bytes",
    "weight_bytes",
    "wall_seconds",
    "peak_memory_bytes",
    "bit_exact",
    "cycle_exact",
    "compared_bytes",
    "bits",
    "sparsity",
    "average_bits",
    "nonzeros",
    "macs_sparse",
]


COMPRESSED = [("mixed", "mixed"), ("2", "8:16"), ("3", "dense"), ("4", "2:16"), ("8", "1:16"), ("3.5", "dense")]


@pytest.fixture(scope="module")
def flow() -> Flow:
    return open_flow("llava-tiny", "tiny")


def test_simulators_equal_golden(flow: Flow) -> None:
    result = verify(flow, "cycle", lengths=(1, 3, 18), steps=2)
    assert result["bit_exact"] and result["cycle_exact"] is None
    names = [case["name"] for case in result["cases"]]
    assert names == ["vision", "prefill 1", "prefill 3", "prefill 18", "decode kv 19", "decode kv 20"]
    assert all(case["cycles_simulated"] > 0 and case["compared_bytes"] > 0 for case in result["cases"])


@pytest.mark.parametrize(("bits", "sparsity"), COMPRESSED)
def test_compressed_simulators_equal_golden(flow: Flow, bits: str, sparsity: str) -> None:
    dense, flow = flow, open_flow("llava-tiny", "tiny", compression=Compression.parse(bits, sparsity))
    result = verify(flow, "cycle", lengths=(5,), steps=1)
    assert result["bit_exact"]
    assert (result["bits"], result["sparsity"]) == (bits, sparsity)
    share = {"dense": 1, "mixed": 1}.get(sparsity) or int(sparsity.split(":")[0]) / 16
    if bits != "mixed":
        assert result["average_bits"] == pytest.approx(float(bits) * share, abs=0.05)
        assert result["weight_bytes"] < dense.layout.weight_bytes


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
        token = 64
        assert result["channel_bytes_written"] == result["hbm_bytes_written"] == entries
        assert result["aux_bytes_written"] == scales + logits + token


def test_activations_stay_on_chip(flow: Flow) -> None:
    """A step's memory traffic by purpose: what it needs and nothing else; an image's patches and features count."""
    text, layout, c = flow.model.config.text, flow.layout, flow.config
    step = simulate(flow, "decode", kv=40)
    traffic = step["traffic"]
    assert step["activation_bytes"] == traffic["activations_read"] == traffic["activations_written"] == 0
    entry = flow.layers * text.kv_heads * text.head_dim * 2
    slots = layout.geo.slots(40)
    head = layout.head.count * layout.head.granules * 64
    assert traffic["weights"] == c.units * 64 * (layout.streams["text"].beats + sum(layout.head.streams))
    assert traffic["kv"] == slots * c.units * 16 * entry and traffic["kv_written"] == entry
    assert traffic["kv_scales"] == slots * c.units * 64 * flow.layers * text.kv_heads * 2
    assert traffic["kv_scales_written"] == flow.layers * text.kv_heads * 2 * 4
    assert traffic["embedding"] == text.hidden * 4
    # A RoPE row, and what the search for the largest logit needs: a place a logit, and one beat of slices.
    assert traffic["tables"] == text.head_dim * 4 + head + 64
    assert traffic["results"] == head + 64 and traffic["lists_written"] == 0
    assert traffic["fetch"] == -(-step["program_bytes"] // 64) * 64
    written = {"activations_written", "results", "kv_written", "kv_scales_written", "lists_written"}
    assert sum(traffic[name] for name in written) == step["bytes_written"]
    reads = sum(value for name, value in traffic.items() if name not in written)
    assert reads == step["bytes_read"] == step["channel_bytes_read"] + step["aux_bytes_read"]

    image = simulate(flow, "vision")["traffic"]
    tower = layout.tower
    assert image["activations_read"] == tower.n_patches * layout.geo.granules(tower.stem[0].n_in) * 64
    assert image["activations_written"] == tower.n_patches * text.hidden * 4
    machine = flow.machine(CrossBackend(("functional",)))
    machine.prefill([machine.embed_row(5), machine.feature_row(0), machine.feature_row(1), machine.embed_row(255)])
    counters = machine.results[-1][1].counters
    assert counters["read_beats_activations"] == counters["read_beats_embedding"] == 2 * text.hidden * 4 // 64


def test_pruned_weights_are_no_products_of_the_array() -> None:
    """Dense-equivalent utilisation may pass 1, the array's own may not."""
    compression = Compression.parse("8", "2:16", "plain")
    flow = open_flow("llava-tiny", "tiny", compression=compression, timing_only=True)
    result = simulate(flow, "prefill", tokens=64)
    possible = result["cycles"] * flow.config.macs_per_cycle
    assert result["mac_utilisation"] == result["macs"] / possible
    assert result["array_utilisation"] == result["macs_sparse"] / possible <= 1
    assert result["array_utilisation"] < result["mac_utilisation"]


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_a_run_of_some_layers_has_no_rate(phase: str) -> None:
    result = simulate(open_flow("llava-tiny", "tiny", layers=1, timing_only=True), phase)
    assert (result["layers"], result["layers_of_model"]) == (1, 2)
    assert result["tokens_per_second"] is None and result["ttft_seconds"] is None


def test_tokens_equal_golden(flow: Flow) -> None:
    made = generate(flow, [256, 72, 105], 4, ("functional",), check=True)
    assert made.tokens == made.golden_tokens
    assert len(made.tokens) == 4
