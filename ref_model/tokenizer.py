"""Text to token ids and back: bytes for llava-tiny, the vocabulary inside a GGUF file, `tokenizer.json` or
`tokenizer.model` of a folder.

All offer the same members (`Tokenizer`). `expand_image_tokens` then repeats the image token once per visual token.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tokenizers

from hw.spec.errors import UserError

from .checkpoints import PACKAGED, packaged_path
from .checkpoints.json_file import read_json
from .config import MODELS, LlavaConfig, named_config, suggestion
from .gguf_tokenizer import gguf_tokenizer
from .sentencepiece import Prefix, SentencePieceTokenizer, read_model
from .token_kinds import IMAGE_PLACEHOLDER, ByteTokenizer, LibraryTokenizer, Tokenizer

__all__ = [
    "IMAGE_PLACEHOLDER",
    "ByteTokenizer",
    "LibraryTokenizer",
    "SentencePieceTokenizer",
    "Tokenizer",
    "expand_image_tokens",
    "folder_tokenizer",
    "gguf_tokenizer",
    "llava_prompt",
    "load_tokenizer",
]
LLAVA_SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, "
    "detailed, and polite answers to the human's questions."
)


def _settings(folder: Path, file: str) -> dict[str, Any]:
    """The object in a folder's JSON file; empty if there is none."""
    return read_json(folder / file) if (folder / file).exists() else {}


def _end_ids(folder: Path) -> frozenset[int]:
    """Ids that end a text: generation_config.json's, else config.json's (or its text part's), one or a list."""
    config = _settings(folder, "config.json")
    text = config.get("text_config")
    for file, values in (
        ("generation_config.json", _settings(folder, "generation_config.json")),
        ("config.json", config),
        ("config.json", text if isinstance(text, dict) else {}),
    ):
        found = values.get("eos_token_id")
        if found is None:
            continue
        ids = found if isinstance(found, list) else [found]
        if not all(isinstance(token, int) and not isinstance(token, bool) and token >= 0 for token in ids):
            raise UserError(
                f"{folder / file}: eos_token_id is {str(found)[:60]}, token ids are needed: correct the file"
            )
        return frozenset(ids)
    return frozenset()


def _end_token(folder: Path) -> str | None:
    """`eos_token` of a folder's tokenizer_config.json; None if it has none."""
    end = _settings(folder, "tokenizer_config.json").get("eos_token")
    end = end.get("content") if isinstance(end, dict) else end
    return end if isinstance(end, str) else None


def json_tokenizer(folder: Path) -> LibraryTokenizer:
    """`tokenizer.json` of a Hugging Face folder; the end token is tokenizer_config.json's, or a usual one."""
    path = folder / "tokenizer.json"
    try:
        # Bytes, because the library does not know of byte-order marks.
        backend = tokenizers.Tokenizer.from_str(path.read_bytes().decode("utf-8-sig"))
    except Exception as error:  # The library raises plain Exception for malformed files.
        raise UserError(f"{path} is not a tokenizer ({' '.join(str(error).split())}): download it again") from error
    usual = ("</s>", "<|im_end|>", "<|eot_id|>", "<|endoftext|>")
    ends = (backend.token_to_id(token) for token in (_end_token(folder), *usual) if isinstance(token, str))
    eos, known = next((token for token in ends if token is not None), None), backend.get_vocab_size()
    return LibraryTokenizer(backend, eos, end_ids=frozenset(token for token in _end_ids(folder) if token < known))


def model_tokenizer(folder: Path) -> SentencePieceTokenizer:
    """`tokenizer.model` of a Hugging Face folder, with the tokens that its JSON files add."""
    settings = _settings(folder, "tokenizer_config.json")
    extra = {text: number for text, number in _settings(folder, "added_tokens.json").items() if isinstance(number, int)}
    shown: set[int] = set()
    added = settings.get("added_tokens_decoder")
    for number, token in (added if isinstance(added, dict) else {}).items():
        text = token.get("content") if isinstance(token, dict) else None
        if not isinstance(text, str) or not number.isdigit() or token.get("lstrip") or token.get("rstrip"):
            raise UserError(
                f"{folder / 'tokenizer_config.json'}: added token {number} is {str(token)[:60]}, a text "
                "that takes no spaces away is needed: save the model's tokenizer.json"
            )
        extra[text] = int(number)
        shown |= {int(number)} if token.get("special") is False else set()
    prefix: Prefix = "every" if settings.get("legacy") is not False else "first"
    if settings.get("add_prefix_space") is False:
        prefix = "never"
    tokenizer = read_model(folder / "tokenizer.model", prefix, extra, _end_ids(folder), frozenset(shown))
    if settings.get("add_bos_token") is False:
        tokenizer.bos_id = None
    return tokenizer


def folder_tokenizer(folder: Path) -> LibraryTokenizer | SentencePieceTokenizer:
    """The tokenizer of a Hugging Face folder: `tokenizer.json`, else `tokenizer.model`."""
    if (folder / "tokenizer.json").exists():
        return json_tokenizer(folder)
    if (folder / "tokenizer.model").exists():
        return model_tokenizer(folder)
    raise UserError(f"no tokenizer.json and no tokenizer.model in {folder}: save the model's tokenizer there")


def load_tokenizer(source: str | Path, image: bool = False) -> Tokenizer:
    """The tokenizer of a named model ('llava-tiny' or a packaged one), a GGUF file or a Hugging Face folder.

    image: a GGUF file has its vision half elsewhere, see `gguf_tokenizer`.
    """
    if str(source) == "llava-tiny":
        return ByteTokenizer()
    if str(source) in PACKAGED:
        tokenizer = gguf_tokenizer(packaged_path(str(source)))
        index = named_config(str(source)).image_token_index
        if index is not None and isinstance(tokenizer, LibraryTokenizer):
            tokenizer.image_word = tokenizer.backend.id_to_token(index) or IMAGE_PLACEHOLDER
        return tokenizer
    path = Path(source)
    if path.is_dir():
        return folder_tokenizer(path)
    if path.suffix == ".gguf":
        return gguf_tokenizer(path, image)
    raise UserError(
        f"no tokenizer for {source}: give a Hugging Face folder, a .gguf file, llava-tiny or "
        f"{', '.join(PACKAGED)}{'' if str(source) in MODELS else suggestion(str(source))}"
    )


def llava_prompt(question: str) -> str:
    """The v1 conversation template of LLaVA-1.5 with one image before `question`."""
    return f"{LLAVA_SYSTEM} USER: {IMAGE_PLACEHOLDER}\n{question} ASSISTANT:"


def expand_image_tokens(ids: Sequence[int], config: LlavaConfig, counts: Sequence[int] | None = None) -> list[int]:
    """Repeat each image token once per visual token of its image, as `LlavaModel.embed` wants them.

    `counts`: visual tokens of each image in order, lengths of `ref_model.anyres.layout` for models with pinpoints;
    None: one tile for every image token.
    """
    found = 0 if config.image_token_index is None else list(ids).count(config.image_token_index)
    if counts is None:
        if found and config.pinpoints:
            raise UserError(
                f"{config.name} cuts images into tiles, the prompt needs each image's number of visual "
                "tokens: see ref_model.anyres.layout"
            )
        counts = [config.n_visual_tokens] * found
    if len(counts) != found:
        raise UserError(
            f"the prompt has {found} image tokens, there are {len(counts)} images: "
            f"write {IMAGE_PLACEHOLDER} once for each, with this model's own tokenizer"
        )
    left = iter(counts)
    return [same for token in ids for same in [token] * (next(left) if token == config.image_token_index else 1)]
