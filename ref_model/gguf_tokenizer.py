"""The tokenizer inside a GGUF file: byte-pair merges ("gpt2") or SentencePiece pieces with scores ("llama")."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from hw.spec.errors import UserError

from .checkpoints.gguf_reader import metadata, open_reader
from .sentencepiece import CONTROL, NORMAL, USER_DEFINED, Pieces, SentencePieceTokenizer
from .token_kinds import IMAGE_PLACEHOLDER, LibraryTokenizer


@dataclass(frozen=True)
class Words:
    """How a text is cut into words before merging. splits: isolated one after another; gpt2: GPT-2's own expression
    comes last; whole_words: a word that is a token is taken as it is; begins: texts begin with BOS by default."""

    splits: tuple[str, ...] = ()
    gpt2: bool = True
    whole_words: bool = False
    begins: bool = False
    nfc: bool = False


_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_LLAMA_BPE = Words((_LLAMA3,), gpt2=False, whole_words=True, begins=True)
_DEFAULT = Words((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"), gpt2=False)
WORDS = {
    "gpt-2": Words(),
    "smollm": Words((r"\p{N}",)),
    "llama-bpe": _LLAMA_BPE,
    "llama3": _LLAMA_BPE,
    "llama-v3": _LLAMA_BPE,
    "qwen2": Words((_QWEN2,), gpt2=False, nfc=True),
    "deepseek-r1-qwen": Words((_QWEN2,), gpt2=False),
    "default": _DEFAULT,
    None: _DEFAULT,
}
"""llama.cpp's names of these ways; it takes a file without a name as "default". Qwen2's own tokenizer composes
characters (NFC) first."""
END_WORDS = ("<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>")
"""Control tokens that end a turn in every model that has them."""
_IDS = (
    "bos",
    "eos",
    "eot",
    "eom",
    "unknown",
    "seperator",
    "padding",
    "mask",
    "cls",
    "fim_pre",
    "fim_suf",
    "fim_mid",
    "fim_pad",
    "fim_rep",
    "fim_sep",
    "prefix",
    "suffix",
    "middle",
)
KNOWN = frozenset(
    {
        "model",
        "pre",
        "tokens",
        "token_type",
        "token_type_count",
        "scores",
        "merges",
        "add_bos_token",
        "add_eos_token",
        "add_sep_token",
        "add_space_prefix",
        "remove_extra_whitespaces",
        *(f"{name}_token_id" for name in _IDS),
    }
)


class _Stored:
    """Metadata of the tokenizer, checked for its types."""

    def __init__(self, path: Path) -> None:
        self.path, self.reader = path, open_reader(path)
        for key in self.reader.fields:
            name = key.removeprefix("tokenizer.ggml.")
            if name != key and name not in KNOWN:
                raise UserError(
                    f"{path}: metadata {key} is not known here and may change what the tokenizer does: "
                    "use the model's folder with tokenizer.json"
                )

    def get(self, key: str, kind: type, default: Any = None) -> Any:
        value = metadata(self.reader, f"tokenizer.ggml.{key}", default)
        if value is not default and (not isinstance(value, kind) or (kind is int and isinstance(value, bool))):
            raise UserError(
                f"{self.path}: metadata tokenizer.ggml.{key} is no {kind.__name__}: convert the model again"
            )
        return value

    def list_of(self, key: str, kind: type | tuple[type, ...], default: list | None = None) -> list:
        values = self.get(key, list, default)
        if values is None or not all(isinstance(value, kind) for value in values):
            raise UserError(
                f"{self.path} has no usable tokenizer.ggml.{key}: use the model's folder with tokenizer.json"
            )
        return values

    def token_id(self, name: str, count: int) -> int | None:
        value = self.get(f"{name}_token_id", int)
        if value is not None and not 0 <= value < count:
            raise UserError(f"{self.path}: {name}_token_id is {value}, outside 0..{count - 1}: convert the model again")
        return value


def gguf_tokenizer(path: Path, image: bool = False) -> LibraryTokenizer | SentencePieceTokenizer:
    """The tokenizer stored in a GGUF file; UserError if it is of another kind.

    image: the file is half of a LLaVA, so that `<image>` is a token, behind the vocabulary if it is not in there.
    """
    stored = _Stored(path)
    kind = stored.get("model", str)
    if kind not in ("gpt2", "llama"):
        raise UserError(
            f"{path}: tokenizer is {kind!r}, supported are 'gpt2' and 'llama': use the model's folder with "
            "tokenizer.json"
        )
    if stored.get("add_eos_token", bool, False):
        raise UserError(
            f"{path}: its tokenizer ends every text (add_eos_token), as no model that continues texts "
            "does: choose another model"
        )
    tokens = stored.list_of("tokens", str)
    types = stored.list_of("token_type", int, [NORMAL] * len(tokens))
    if len(types) != len(tokens):
        raise UserError(f"{path} has {len(tokens)} tokens and {len(types)} token types: download it again")
    return (_merging if kind == "gpt2" else _scored)(stored, tokens, types, image)


def _ends(stored: _Stored, tokens: list[str], types: list[int]) -> frozenset[int]:
    named = {token for name in ("eos", "eot", "eom") if (token := stored.token_id(name, len(tokens))) is not None}
    return frozenset(named | {i for i, token in enumerate(tokens) if types[i] == CONTROL and token in END_WORDS})


def _scored(stored: _Stored, tokens: list[str], types: list[int], image: bool) -> SentencePieceTokenizer:
    if stored.get("remove_extra_whitespaces", bool, False):
        raise UserError(
            f"{stored.path}: its tokenizer removes spaces (remove_extra_whitespaces), which is not "
            "supported: use the model's folder with tokenizer.json"
        )
    bos = stored.token_id("bos", len(tokens))
    bos = bos if stored.get("add_bos_token", bool, True) else None
    extra = {IMAGE_PLACEHOLDER: len(tokens)} if image and IMAGE_PLACEHOLDER not in tokens else {}
    return SentencePieceTokenizer(
        Pieces(
            tokens,
            stored.list_of("scores", (int, float)),
            types,
            "every" if stored.get("add_space_prefix", bool, True) else "never",
            bos,
            stored.token_id("eos", len(tokens)),
            _ends(stored, tokens, types),
            extra,
        ),
        str(stored.path),
    )


def _merging(stored: _Stored, tokens: list[str], types: list[int], image: bool) -> LibraryTokenizer:
    name = stored.get("pre", str)
    if name not in WORDS:
        raise UserError(
            f"{stored.path}: tokenizer is 'gpt2' with words {name!r}, supported are "
            f"{', '.join(filter(None, WORDS))}: use the model's folder with tokenizer.json"
        )
    words = WORDS[name]
    merges = [tuple(merge.split(" ", 1)) for merge in stored.list_of("merges", str)]
    backend = _backend(stored.path, tokens, merges, words)
    for kind, special in ((CONTROL, True), (USER_DEFINED, False)):
        added = [
            AddedToken(token, normalized=False, special=special)
            for token, type_ in zip(tokens, types, strict=True)
            if type_ == kind
        ]
        (backend.add_special_tokens if special else backend.add_tokens)(added)
    if image and IMAGE_PLACEHOLDER not in tokens:
        backend.add_special_tokens([AddedToken(IMAGE_PLACEHOLDER, normalized=False, special=True)])
    bos, begins = stored.token_id("bos", len(tokens)), stored.get("add_bos_token", bool, words.begins)
    return LibraryTokenizer(
        backend, stored.token_id("eos", len(tokens)), bos if begins else None, end_ids=_ends(stored, tokens, types)
    )


def _backend(path: Path, tokens: list[str], merges: list[tuple[str, ...]], words: Words) -> tokenizers.Tokenizer:
    try:
        model = models.BPE(
            vocab={token: i for i, token in enumerate(tokens)},
            merges=merges,  # type: ignore[arg-type]
            ignore_merges=words.whole_words,
        )
    except Exception as error:  # The library raises plain Exception for merges of tokens that are not there.
        raise UserError(f"{path}: merges and tokens do not fit together ({error}): download it again") from error
    backend = tokenizers.Tokenizer(model)
    if words.nfc:
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(split), "isolated") for split in words.splits),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=words.gpt2),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    return backend
