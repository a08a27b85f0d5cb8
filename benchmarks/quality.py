"""Perplexity of SmolLM2-135M under compression: golden integer model against the float reference, recipe by recipe."""

import math
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from alula.session import calibration
from benchmarks import perplexity
from benchmarks.perplexity import FRAC, TEXT, mean_nll
from ref_model.calibrate import CALIBRATION_TOKENS, calibration_ids
from ref_model.checkpoints import Checkpoint, load, open_checkpoint
from ref_model.compress import Compression
from ref_model.compress.plan import HEAD_NAME, linear_shapes
from ref_model.compress.recipe import HESSIAN_TOKENS, Compressor
from ref_model.golden import GoldenText
from ref_model.modules import LlavaModel
from ref_model.quantise import QuantModel, quantise
from ref_model.tokenizer import load_tokenizer

DEPENDS = (*perplexity.DEPENDS, "hw/spec/weights.py", "ref_model/compress/*.py", "ref_model/data/calibration*.txt")
CONFIRMED = (("8", "dense", "best"), ("4", "dense", "plain"), ("3.5", "dense", "plain"), ("8", "8:16", "plain"))
"""Settings that take minutes; the others take from a quarter of an hour to an hour each."""
BASELINE = (
    "float32 of the packaged Q4_1 file's dequantised weights, which are 4 bits in groups of 32 already: an "
    "unquantised original is not available here"
)
HEAD = (
    "tied to the embedding: INT8 in every setting, not part of the average, which is over the linear layers of the "
    "decoder"
)
CALIBRATION = (
    f"at most {CALIBRATION_TOKENS} tokens of ref_model/data/calibration*.txt (the first {HESSIAN_TOKENS} "
    "for GPTQ; docs/calibration.md); the measured text is no part of it"
)
Setting = tuple[str, str, str]
SETTINGS: tuple[Setting, ...] = (
    ("4", "dense", "tuned"),
    ("3.5", "dense", "tuned"),
    ("8", "8:16", "tuned"),
    ("4", "dense", "best"),
    ("3.5", "dense", "best"),
    ("8", "8:16", "best"),
    ("8", "dense", "best"),
    ("4", "dense", "plain"),
    ("3.5", "dense", "plain"),
    ("8", "8:16", "plain"),
    ("8", "dense", "plain"),
)
"""Bits, sparsity, recipe; the longest first."""
AIMS = {(bits, "dense", recipe): aim for bits, aim in (("4", 1.10), ("3.5", 1.25)) for recipe in ("tuned", "best")}
"""Largest ratio aimed at."""
PROCESSES = 2


def golden_nll(model: QuantModel, ids: list[int]) -> float:
    """Mean negative log-likelihood (nats a token) of ids under the integer model, one window."""
    golden = GoldenText(model)
    logits = golden.logits(golden.forward(golden.embed(ids))[:-1]).astype(np.float64) / (1 << FRAC)
    return mean_nll(logits, np.asarray(ids[1:]))


def average_bits(checkpoint: Checkpoint, compressor: Compressor | None) -> float:
    """Payload bits a weight over the decoder's linear layers, scales and indices not counted."""
    bits = weights = 0.0
    for name, (n_out, n_in) in linear_shapes(checkpoint).items():
        if name == HEAD_NAME:
            continue
        blocks = None if compressor is None else compressor.plan.blocks(name, n_out, n_in)
        mean = 8.0 if blocks is None else float((blocks[0] * (blocks[1] / 16.0)).mean())
        bits, weights = bits + mean * n_out * n_in, weights + n_out * n_in
    return bits / weights


def float_nll(model: str, ids: list[int]) -> float:
    """Mean negative log-likelihood (nats a token) of ids under the float model, one window."""
    config, state = load(model)
    with torch.inference_mode():
        logits = LlavaModel.from_state(config, state).prefill(ids)[0][:-1].double().numpy()
    return mean_nll(logits, np.asarray(ids[1:]))


def row(setting: Setting, quantised: QuantModel, bits: float, ids: list[int], reference: float, seconds: float) -> dict:
    """One row of the result: the golden model measured on ids against the float model's likelihood.

    bits: average of the decoder's linears; seconds: that compression took.
    """
    began = time.monotonic()
    nll, aim = golden_nll(quantised, ids), AIMS.get(setting)
    ratio = math.exp(nll - reference)
    status = "measured" if aim is None else f"measured; aim of {aim:.2f} {'met' if ratio <= aim else 'not met'}"
    return dict(zip(("bits", "sparsity", "recipe"), setting, strict=True)) | {
        "average_bits": bits,
        "perplexity": math.exp(nll),
        "ratio": ratio,
        "status": status,
        "compress_seconds": seconds,
        "golden_seconds": time.monotonic() - began,
    }


def measure_setting(setting: Setting, model: str, ids: list[int], reference: float) -> dict:
    """Compress as `setting` says and measure. 8 bits dense: the machine's INT8, smoothed unless the recipe is plain."""
    torch.set_num_threads(1)
    checkpoint, began = open_checkpoint(model), time.monotonic()
    compression, compressor = Compression.parse(*setting), None
    calibrated = setting[2] != "plain"
    if compression is None:
        maxima = calibration(model, checkpoint) if calibrated else None
        quantised = quantise(checkpoint, with_vision=False, maxima=maxima)
    else:
        calibration_tokens = calibration_ids(load_tokenizer(model).encode) if calibrated else None
        compressor = compression.compressor(checkpoint, calibration_tokens)
        quantised = quantise(checkpoint, with_vision=False, compression=compressor)
    for index in range(len(quantised.text.layers)):
        quantised.text.layers[index]
    seconds = time.monotonic() - began
    return row(setting, quantised, average_bits(checkpoint, compressor), ids, reference, seconds)


def summary(model: str, text: Path, ids: list[int], reference: float, runs: list[dict], seconds: float) -> dict:
    """What the result's file holds. seconds: of the whole benchmark; the load tells how far the cores were shared."""
    return {
        "model": model,
        "text": text.name,
        "tokens": len(ids),
        "activations": "INT8, golden integer model",
        "baseline": BASELINE,
        "head": HEAD,
        "calibration": CALIBRATION,
        "aims": {" ".join(setting): aim for setting, aim in AIMS.items()},
        "perplexity_float": math.exp(reference),
        "wall_seconds": seconds,
        "processes": PROCESSES,
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[-1],
        "runs": runs,
    }


def measure(model: str = "smollm2-135m", text: Path = TEXT, settings: Sequence[Setting] = SETTINGS) -> dict:
    """Perplexity of one window that holds the whole text: of the float model, and of the golden one per setting."""
    began, ids = time.monotonic(), load_tokenizer(model).encode(text.read_text())
    reference = float_nll(model, ids)
    with ProcessPoolExecutor(PROCESSES, get_context("spawn")) as pool:
        waiting = [pool.submit(measure_setting, setting, model, ids, reference) for setting in settings]
        runs = [run.result() for run in waiting]
    return summary(model, text, ids, reference, runs, time.monotonic() - began)


def confirm(result: dict) -> list[tuple[dict, dict]]:
    """(recorded row, the same measured now) of the settings that take minutes."""
    recorded = {(row["bits"], row["sparsity"], row["recipe"]): row for row in result["runs"]}
    again = measure(settings=CONFIRMED)["runs"]
    return [(recorded[setting], row) for setting, row in zip(CONFIRMED, again, strict=True)]
