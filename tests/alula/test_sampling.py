"""Drawing tokens from logits: reproducible, by probability, and the same for golden model and machine."""

import numpy as np
import pytest

from alula.generation import generate
from alula.sampling import Sampler
from alula.session import open_flow
from hw.spec.errors import UserError

ONE = 1 << 16


def test_frequencies_follow_the_probabilities():
    logits = (np.log([0.5, 0.3, 0.2, 1e-30]) * ONE).round().astype(np.int64)
    drawn = [Sampler(1.0, 3).draw(logits, step) for step in range(4000)]
    counts = np.bincount(drawn, minlength=4) / 4000
    np.testing.assert_allclose(counts, [0.5, 0.3, 0.2, 0], atol=0.03)


def test_a_low_temperature_is_greedy_and_equal_seeds_agree():
    logits = np.random.default_rng(0).integers(-10 * ONE, 10 * ONE, 100)
    assert {Sampler(1e-3, seed).draw(logits, 0) for seed in range(20)} == {int(logits.argmax())}
    assert len({Sampler(5.0, seed).draw(logits, 0) for seed in range(20)}) > 3
    assert [Sampler(5.0, 7).draw(logits, s) for s in range(9)] == [Sampler(5.0, 7).draw(logits, s) for s in range(9)]


def test_the_image_token_is_never_drawn():
    logits = np.array([0, 20, 0]) * ONE
    assert all(Sampler(1.0, seed).draw(logits, 0, never=1) != 1 for seed in range(50))


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("inf"), float("nan")])
def test_impossible_temperatures_are_refused(temperature):
    with pytest.raises(UserError, match="must be above 0"):
        Sampler(temperature)


def test_machine_and_golden_draw_the_same():
    flow = open_flow("llava-tiny", "tiny", vision=False)
    made = generate(flow, [1, 2, 3], 4, ("functional",), check=True, sampler=Sampler(2.0, 5))
    assert made.tokens == made.golden_tokens
    assert all(outcome.bit_exact for outcome in made.outcomes)
    again = generate(flow, [1, 2, 3], 4, ("functional",), sampler=Sampler(2.0, 5))
    assert again.tokens == made.tokens
