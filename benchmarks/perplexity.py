"""Perplexity of SmolLM2-135M's real weights on a fixed public text: float reference against the W8A8 golden model."""

import math
import time
from pathlib import Path

import numpy as np
import torch

from alula.session import calibration
from ref_model.checkpoints import load, open_checkpoint
from ref_model.golden import GoldenText
from ref_model.modules import LlavaModel
from ref_model.quantise import quantise
from ref_model.tokenizer import load_tokenizer

TEXT = Path(__file__).parent / "data" / "public_domain.txt"
DEPENDS = (
    "benchmarks/data/public_domain.txt",
    "hw/spec/attention.py",
    "hw/spec/numerics.py",
    "hw/spec/rows.py",
    "ref_model/golden/*.py",
    "ref_model/modules.py",
    "ref_model/quantise.py",
)
FRAC = 16
"""Fraction bits of the golden model's logits."""


def mean_nll(logits: np.ndarray, targets: np.ndarray) -> float:
    """Mean negative log-likelihood (nats) of targets int[n] under logits float[n, vocab]."""
    values = logits - logits.max(axis=-1, keepdims=True)
    log_sums = np.log(np.exp(values).sum(axis=-1))
    return float((log_sums - values[np.arange(len(targets)), targets]).mean())


def measure(model: str = "smollm2-135m", text: Path = TEXT) -> dict:
    """Both perplexities of one window that holds the whole text, and their ratio."""
    ids = load_tokenizer(model).encode(text.read_text())
    targets = np.asarray(ids[1:])
    config, state = load(model)
    with torch.inference_mode():
        reference = LlavaModel.from_state(config, state).prefill(ids)[0][:-1].double().numpy()
    del state
    began = time.monotonic()
    checkpoint = open_checkpoint(model)
    golden = GoldenText(quantise(checkpoint, with_vision=False, maxima=calibration(model, checkpoint)))
    logits = golden.logits(golden.forward(golden.embed(ids))[:-1]).astype(np.float64) / (1 << FRAC)
    float_nll, golden_nll = mean_nll(reference, targets), mean_nll(logits, targets)
    return {
        "model": model,
        "text": text.name,
        "tokens": len(ids),
        "perplexity_float": math.exp(float_nll),
        "perplexity_golden": math.exp(golden_nll),
        "ratio": math.exp(golden_nll - float_nll),
        "top1_agreement": float((reference.argmax(-1) == logits.argmax(-1)).mean()),
        "wall_seconds_golden": time.monotonic() - began,
    }
