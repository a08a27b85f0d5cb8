"""`alula generate --image` on a folder that transformers wrote: golden against float, functional against golden."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from alula.cli import main
from alula.session import open_flow
from ref_model import anyres
from ref_model.checkpoints import load
from ref_model.golden import GoldenVision
from ref_model.modules import LlavaModel
from ref_model.preprocess import open_image, preprocess
from ref_model.tokenizer import expand_image_tokens, load_tokenizer
from tests.ref_model.transformers_models import Written, photo, write_llava, write_llava_next

PROMPT = "USER: <image>\nWhat is this? ASSISTANT:"
N_NEW = 8
ONE = 1 << 16
"""1.0 in Q16."""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    folder = tmp_path_factory.mktemp("llava")
    photo(90, 61).save(folder / "photo.png")
    return write_llava(folder)


def generate(folder: Path, image: Path, *more: str, prompt: str = PROMPT) -> int:
    arguments = ["generate", "--model", str(folder), "--image", str(image), "--prompt", prompt, "--config", "tiny"]
    with pytest.raises(SystemExit) as exit_:
        main([*arguments, *more])
    return exit_.value.code or 0


def test_functional_equals_golden(written: Written, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    result, folder = tmp_path / "out.json", written.folder
    assert generate(folder, folder / "photo.png", "--check", "--tokens", str(N_NEW), "--json", str(result)) == 0
    made = json.loads(result.read_text())
    assert made["bit_exact"] and made["tokens_equal_golden"] and made["compared_bytes"] > 100_000
    assert [step["name"] for step in made["steps"][:3]] == ["vision", "prefill", "decode 1"]
    assert made["text"].strip("\ufffd") in capsys.readouterr().out
    assert len(made["token_ids"]) == N_NEW or made["token_ids"][-1] == 257


REDUCTIONS = [
    ["--keep-schedule", "1:4"],
    ["--exit-layer", "1"],
    ["--fastv", "1:4"],
    ["--keep-visual", "9", "--fastv", "1:4"],
]


@pytest.mark.parametrize("options", REDUCTIONS)
def test_fewer_visual_tokens(written: Written, options: list[str], tmp_path: Path) -> None:
    result, folder = tmp_path / "out.json", written.folder
    assert generate(folder, folder / "photo.png", "--check", "--tokens", "3", "--json", str(result), *options) == 0
    made = json.loads(result.read_text())
    assert made["bit_exact"] and made["tokens_equal_golden"]


def test_golden_against_float(written: Written) -> None:
    """Errors of 8-bit arithmetic, relative to the deviation of what they are errors of; measured and printed."""
    flow, (config, state) = open_flow(str(written.folder), "tiny"), load(written.folder)
    model, image = LlavaModel.from_state(config, state), open_image(written.folder / "photo.png")
    pixels = preprocess(image, 56)
    features = GoldenVision(flow.model).forward(flow.patches(image) / ONE)
    ids = expand_image_tokens(load_tokenizer(written.folder).encode(PROMPT), config)
    golden = flow.golden()
    logits = golden.logits(golden.forward(golden.embed(ids, features))) / ONE
    expected = model.prefill(ids, pixels)[0].numpy()
    found = {
        "visual tokens": _error(features / ONE, model.encode_images(pixels).numpy()),
        "logits": _error(logits, expected),
    }
    equal = float((logits.argmax(1) == expected.argmax(1)).mean())
    print(f"golden against float: {found}, same greedy token at {equal:.0%} of {len(ids)} places")
    assert max(found.values()) < 0.1 and equal > 0.8


def _error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.sqrt(((found - expected) ** 2).mean()) / expected.std())


def _one_line(capsys: pytest.CaptureFixture, *words: str) -> None:
    shown = capsys.readouterr().err
    assert len(shown.splitlines()) == 1 and shown.startswith("error: "), shown
    assert all(word in shown for word in words), shown


def test_bad_inputs_are_one_line(written: Written, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder, good = written.folder, written.folder / "photo.png"
    (tmp_path / "cut.png").write_bytes(good.read_bytes()[:500])
    assert generate(folder, tmp_path / "cut.png") == 1
    _one_line(capsys, "cannot read", "cut.png")
    assert generate(folder, folder / "config.json") == 1
    _one_line(capsys, "cannot read", "config.json")
    assert generate(folder, good, prompt="word " * 100) == 1
    _one_line(capsys, "beyond the context of 256")
    for options, words in (
        (["--keep-visual", "0"], "--keep-visual 0 is outside 1.."),
        (["--keep-visual", "99"], "99 visual tokens to keep is outside"),
        (["--keep-schedule", "1:99"], "99 visual tokens are to go on, there are"),
        (["--keep-visual", "4", "--fastv", "1:5"], "5 visual tokens are to go on, there are 4"),
    ):
        assert generate(folder, good, *options) == 1
        _one_line(capsys, words)
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("multi_modal_projector.linear_1.weight")
    save_file(tensors, tmp_path / "model.safetensors")
    assert generate(tmp_path, good) == 1
    _one_line(capsys, "no tensor multi_modal_projector.linear_1.weight")
    save_file(tensors | {"multi_modal_projector.linear_1.weight": torch.zeros(64, 47)}, tmp_path / "model.safetensors")
    assert generate(tmp_path, good) == 1
    _one_line(capsys, "linear_1.weight has shape [64, 47]")


# --- LLaVA-NeXT ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiled(tmp_path_factory: pytest.TempPathFactory) -> Written:
    return write_llava_next(tmp_path_factory.mktemp("next"), seed=1)


@pytest.mark.parametrize("size", [(90, 61), (30, 100)])
def test_tiles_on_the_machine(
    tiled: Written, size: tuple[int, int], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Tower once a tile, rows gathered by address, newline tokens between them; 8-bit errors as with one tile."""
    photo(*size).save(tmp_path / "photo.png")
    result, image = tmp_path / "out.json", open_image(tmp_path / "photo.png")
    assert generate(tiled.folder, tmp_path / "photo.png", "--check", "--tokens", "3", "--json", str(result)) == 0
    made, (config, state) = json.loads(result.read_text()), load(tiled.folder)
    tiles, order = anyres.tiles(image, config), anyres.layout((image.height, image.width), config)
    assert made["bit_exact"] and made["tokens_equal_golden"]
    assert [step["name"] for step in made["steps"]][: len(tiles)] == [f"vision tile {i}" for i in range(len(tiles))]
    flow, model = open_flow(str(tiled.folder), "tiny"), LlavaModel.from_state(config, state)
    vision = GoldenVision(flow.model)
    features = vision.gather(np.concatenate([vision.forward(tile / ONE) for tile in flow.patches(image)]), order)
    ids = expand_image_tokens(load_tokenizer(tiled.folder).encode(PROMPT), config, [len(order)])
    golden = flow.golden()
    logits = golden.logits(golden.forward(golden.embed(ids, features))) / ONE
    found = {
        "visual tokens": _error(features / ONE, model.encode_images(tiles, order).numpy()),
        "logits": _error(logits, model.prefill(ids, tiles, order)[0].numpy()),
    }
    print(f"golden against float, LLaVA-NeXT {size}: {found}")
    assert max(found.values()) < 0.1


def test_one_placeholder_an_image(written: Written, capsys: pytest.CaptureFixture) -> None:
    assert generate(written.folder, written.folder / "photo.png", prompt="<image> and <image>") == 1
    _one_line(capsys, "2 image tokens, there are 1 images")
