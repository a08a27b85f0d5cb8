"""`alula generate` on files of others: a LLaVA in two GGUF files, chat templates, ids without a token."""

import json
from pathlib import Path

import pytest
from tokenizers import pre_tokenizers

from alula.cli import main
from alula.generation import Stream, prompt_ids, tokenizer_of
from hw.spec.errors import UserError
from ref_model.checkpoints import synthetic_state
from ref_model.config import MODELS
from ref_model.token_kinds import ByteTokenizer
from tests.ref_model.gguf_files import write_mmproj, write_text
from tests.ref_model.transformers_models import photo

TINY = MODELS["llava-tiny"]
SEED = 19
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {% for c in m.content %}{% if c.type == 'image' %}<image>"
    "{% else %}{{ c.text }}{% endif %}{% endfor %}{% endfor %} assistant:"
)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A LLaVA whose image token lies behind its vocabulary of 259, as in llama.cpp's pairs."""
    assert TINY.vision is not None
    print(f"seed {SEED}")
    folder, state = tmp_path_factory.mktemp("pair"), synthetic_state(TINY, seed=SEED)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.tokens": [*letters, "ab", "<s>", "</s>"],
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.token_type": [1] * 257 + [3, 3],
        "tokenizer.ggml.bos_token_id": 257,
        "tokenizer.ggml.eos_token_id": 258,
        "tokenizer.chat_template": TEMPLATE,
    }
    text = {name: t for name, t in state.items() if name.startswith(("language_model.", "lm_head"))}
    write_text(folder / "m.gguf", TINY.text, text, tokenizer)
    write_mmproj(folder / "mmproj.gguf", TINY.vision, {name: t for name, t in state.items() if name not in text})
    photo(90, 61).save(folder / "photo.png")
    return folder / "m.gguf", folder / "mmproj.gguf"


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as exit_:
        main([str(argument) for argument in arguments])
    return exit_.value.code or 0


def one_line(capsys: pytest.CaptureFixture, *words: str) -> None:
    shown = capsys.readouterr().err
    assert len(shown.splitlines()) == 1 and all(word in shown for word in words), shown


@pytest.mark.parametrize("chat", [[], ["--chat"]])
def test_a_pair_makes_text_bit_for_bit(pair: tuple[Path, Path], chat: list[str], tmp_path: Path) -> None:
    result, image = tmp_path / "out.json", pair[0].parent / "photo.png"
    assert (
        run(
            "generate",
            "--model",
            pair[0],
            "--mmproj",
            pair[1],
            "--image",
            image,
            "--prompt",
            "<image> What?",
            "--config",
            "tiny",
            "--tokens",
            4,
            "--check",
            "--json",
            result,
            *chat,
        )
        == 0
    )
    made = json.loads(result.read_text())
    assert made["bit_exact"] and made["tokens_equal_golden"] and made["steps"][0]["name"] == "vision"


def test_chat_is_the_templates_text(pair: tuple[Path, Path]) -> None:
    tokenizer = tokenizer_of(str(pair[0]), pair[1])
    ids = prompt_ids(str(pair[0]), tokenizer, "<image>\nWhat?", chat=True, image=True)
    assert ids == tokenizer.encode("user: <image>What? assistant:") and ids.count(259) == 1 and ids[0] == 257
    without = prompt_ids(str(pair[0]), tokenizer, "What?", chat=True, image=False)
    assert without == tokenizer.encode("user: What? assistant:", begin=False)


def test_what_has_no_template_or_no_half_is_one_line(pair: tuple[Path, Path], capsys: pytest.CaptureFixture) -> None:
    assert run("generate", "--model", "llava-tiny", "--config", "tiny", "--prompt", "x", "--chat") == 1
    one_line(capsys, "llava-tiny has no chat template", "--chat")
    assert run("simulate", "--model", "llava-tiny", "--mmproj", pair[1]) == 1
    one_line(capsys, "has an effect only with a language model in a .gguf file")
    assert run("simulate", "--model", pair[1]) == 1
    one_line(capsys, "give it as --mmproj")
    assert run("simulate", "--model", "llava-1.5-7B") == 1
    one_line(capsys, "llava-1.5-13b", "did you mean llava-1.5-7b?")


@pytest.mark.parametrize("command", [["compile", "--timing-only"], ["simulate", "--phase", "vision"]])
def test_other_commands_take_a_pair(pair: tuple[Path, Path], command: list[str]) -> None:
    assert run(*command, "--model", pair[0], "--mmproj", pair[1], "--config", "tiny") == 0


def test_a_message_behind_text_has_a_line_of_its_own() -> None:
    """An id in the padding of the vocabulary, which no token has."""
    written: list[str] = []
    stream = Stream(ByteTokenizer(), written.append)
    stream.push(ord("a"))
    with pytest.raises(UserError, match=r"token id 306 is outside 0\.\.258"):
        stream.push(306)
    assert "".join(written) == "a\n"
