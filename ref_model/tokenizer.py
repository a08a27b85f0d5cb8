"""Text to token ids and back: bytes for llava-tiny, the vocabulary inside a GGUF file, `tokenizer.json` of a folder.

All offer the same four members (`Tokenizer`). `expand_image_tokens` then repeats the image token once per visual token.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers

from hw.spec.errors import UserError

from .checkpoints import PACKAGED, packaged_path
from .checkpoints.gguf_reader import metadata, open_reader
from .config import LlavaConfig, named_config

IMAGE_PLACEHOLDER = "<image>"
LLAVA_SYSTEM = ("A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, "
                "detailed, and polite answers to the human's questions.")

# llama.cpp's names of the ways to cut text into words before merging; None keeps GPT-2's own expression alone.
_LLAMA3_WORDS = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
                 r"|\s*[\r\n]+|\s+(?!\S)|\s+")
_SPLITS: dict[str, str | None] = {
    "gpt-2": None,
    "smollm": r"\p{N}",
    "llama-bpe": _LLAMA3_WORDS,
    "qwen2": _LLAMA3_WORDS.replace(r"\p{N}{1,3}", r"\p{N}"),
}
_CONTROL, _USER_DEFINED = 3, 4


class Tokenizer(Protocol):
    """What every tokenizer offers. `eos_id` is the id that ends a text, None if there is none."""

    eos_id: int | None

    @property
    def vocab(self) -> int:
        """Number of token ids."""
        ...

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, with the beginning-of-text token if the model was trained with one."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, special tokens left out; UserError for an id outside the vocabulary."""
        ...


def _check_ids(ids: Sequence[int], vocab: int) -> None:
    for token in ids:
        if not 0 <= token < vocab:
            raise UserError(f"token id {token} is outside 0..{vocab - 1}: use the tokenizer that came with the model")


class ByteTokenizer:
    """UTF-8 bytes as ids 0..255, then BOS 256, EOS 257 and the image token 258 (written `<image>`)."""

    bos_id = 256
    eos_id: int | None = 257
    image_id = 258
    vocab = 259

    def encode(self, text: str) -> list[int]:
        ids = [self.bos_id]
        for index, part in enumerate(text.split(IMAGE_PLACEHOLDER)):
            ids += [self.image_id] * (index > 0)
            # Lone surrogates (undecodable command-line bytes) become "?", as they have no UTF-8 form.
            ids += part.encode("utf-8", errors="replace")
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        _check_ids(ids, self.vocab)
        return bytes(token for token in ids if token < 256).decode("utf-8", errors="replace")


class LibraryTokenizer:
    """A tokenizer of the `tokenizers` library; `bos_id` (or None) is put in front if the backend does not do it.

    `image_word`: the vocabulary's token that stands for `<image>`, where it is not written like that.
    """

    def __init__(self, backend: tokenizers.Tokenizer, eos_id: int | None, bos_id: int | None = None,
                 image_word: str = IMAGE_PLACEHOLDER) -> None:
        self.backend = backend
        self.eos_id = eos_id
        self.bos_id = bos_id
        self.image_word = image_word

    @property
    def vocab(self) -> int:
        return self.backend.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str) -> list[int]:
        text = text.replace(IMAGE_PLACEHOLDER, self.image_word)
        ids = self.backend.encode(text.encode("utf-8", errors="replace").decode()).ids
        return ids if self.bos_id is None else [self.bos_id, *ids]

    def decode(self, ids: Sequence[int]) -> str:
        _check_ids(ids, self.vocab)
        return self.backend.decode(list(ids), skip_special_tokens=True)


def _words(split: str | None) -> pre_tokenizers.PreTokenizer:
    if split is None:
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    # smollm isolates digits and then applies GPT-2's expression; the others replace that expression.
    gpt2_words = split == _SPLITS["smollm"]
    return pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(split), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=gpt2_words),
    ])


def gguf_tokenizer(path: Path) -> LibraryTokenizer:
    """The byte-pair tokenizer stored in a GGUF file; UserError if it is of another kind."""
    reader = open_reader(path)
    kind, words = (metadata(reader, f"tokenizer.ggml.{key}") for key in ("model", "pre"))
    if kind != "gpt2" or words not in _SPLITS:
        raise UserError(f"{path}: tokenizer is {kind!r} with words {words!r}, supported is 'gpt2' with "
                        f"{', '.join(_SPLITS)}: use the model's folder with tokenizer.json")
    tokens = metadata(reader, "tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ", 1)) for merge in metadata(reader, "tokenizer.ggml.merges")]
    backend = tokenizers.Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    backend.pre_tokenizer = _words(_SPLITS[words])
    backend.decoder = decoders.ByteLevel()
    types = metadata(reader, "tokenizer.ggml.token_type") or [1] * len(tokens)
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True)
                                for token, type_ in zip(tokens, types, strict=True) if type_ == _CONTROL])
    backend.add_tokens([AddedToken(token, normalized=False)
                        for token, type_ in zip(tokens, types, strict=True) if type_ == _USER_DEFINED])
    begins = metadata(reader, "tokenizer.ggml.add_bos_token", False)
    return LibraryTokenizer(backend, eos_id=metadata(reader, "tokenizer.ggml.eos_token_id"),
                            bos_id=metadata(reader, "tokenizer.ggml.bos_token_id") if begins else None)


def _end_token(folder: Path) -> str | None:
    """`eos_token` of a folder's tokenizer_config.json; None if it has no readable one."""
    try:
        end = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))["eos_token"]
        return end["content"] if isinstance(end, dict) else end
    except (OSError, ValueError, KeyError, TypeError):
        return None


def json_tokenizer(folder: Path) -> LibraryTokenizer:
    """`tokenizer.json` of a Hugging Face folder; the end token is tokenizer_config.json's, or a usual one."""
    path = folder / "tokenizer.json"
    if not path.exists():
        raise UserError(f"no tokenizer.json in {folder}: save the model's fast tokenizer there")
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # The library raises plain Exception for malformed files.
        raise UserError(f"{path} is not a tokenizer ({error}): download it again") from error
    usual = ("</s>", "<|im_end|>", "<|eot_id|>", "<|endoftext|>")
    ends = (backend.token_to_id(token) for token in (_end_token(folder), *usual) if isinstance(token, str))
    return LibraryTokenizer(backend, next((token for token in ends if token is not None), None))


def load_tokenizer(source: str | Path) -> Tokenizer:
    """The tokenizer of a named model ('llava-tiny' or a packaged one), a GGUF file or a Hugging Face folder."""
    if str(source) == "llava-tiny":
        return ByteTokenizer()
    if str(source) in PACKAGED:
        tokenizer = gguf_tokenizer(packaged_path(str(source)))
        image = named_config(str(source)).image_token_index
        if image is not None:
            tokenizer.image_word = tokenizer.backend.id_to_token(image) or IMAGE_PLACEHOLDER
        return tokenizer
    path = Path(source)
    if path.is_dir():
        return json_tokenizer(path)
    if path.suffix == ".gguf":
        return gguf_tokenizer(path)
    raise UserError(f"no tokenizer for {source}: give a Hugging Face folder, a .gguf file, llava-tiny or "
                    f"{', '.join(PACKAGED)}")


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
            raise UserError(f"{config.name} cuts images into tiles, the prompt needs each image's number of visual "
                            "tokens: see ref_model.anyres.layout")
        counts = [config.n_visual_tokens] * found
    if len(counts) != found:
        raise UserError(f"the prompt has {found} image tokens, there are {len(counts)} images: "
                        f"write {IMAGE_PLACEHOLDER} once for each, with this model's own tokenizer")
    left = iter(counts)
    return [same for token in ids for same in [token] * (next(left) if token == config.image_token_index else 1)]
