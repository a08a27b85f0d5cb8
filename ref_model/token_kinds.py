"""What every tokenizer offers, and the two simplest kinds: bytes, and those of the `tokenizers` library."""

from collections.abc import Sequence
from typing import Protocol

import tokenizers

from hw.spec.errors import UserError

IMAGE_PLACEHOLDER = "<image>"


class Tokenizer(Protocol):
    """What every tokenizer offers. `eos_id` is the id that ends a text, None if there is none; `end_ids`: every id that
    does, as chat models have several."""

    eos_id: int | None
    end_ids: frozenset[int]

    @property
    def vocab(self) -> int:
        """Number of token ids."""
        ...

    def encode(self, text: str, begin: bool = True) -> list[int]:
        """Token ids of `text`; with `begin`, behind the beginning-of-text token if the model was trained with one."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, special tokens left out; UserError for an id outside the vocabulary."""
        ...


def check_ids(ids: Sequence[int], vocab: int) -> None:
    """UserError for an id that no token has."""
    for token in ids:
        if not 0 <= token < vocab:
            raise UserError(f"token id {token} is outside 0..{vocab - 1}: use the tokenizer that came with the model")


def encodable(text: str) -> str:
    """Lone surrogates (undecodable command-line bytes) become "?", as they have no UTF-8 form."""
    return text.encode("utf-8", errors="replace").decode()


class ByteTokenizer:
    """UTF-8 bytes as ids 0..255, then BOS 256, EOS 257 and the image token 258 (written `<image>`)."""

    bos_id = 256
    eos_id: int | None = 257
    end_ids = frozenset({257})
    image_id = 258
    vocab = 259

    def encode(self, text: str, begin: bool = True) -> list[int]:
        ids = [self.bos_id] * begin
        for index, part in enumerate(text.split(IMAGE_PLACEHOLDER)):
            ids += [self.image_id] * (index > 0)
            ids += encodable(part).encode()
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        check_ids(ids, self.vocab)
        return bytes(token for token in ids if token < 256).decode("utf-8", errors="replace")


class LibraryTokenizer:
    """A tokenizer of the `tokenizers` library; `bos_id` (or None) is put in front if the backend does not do it.

    `image_word`: the vocabulary's token that stands for `<image>`, where it is not written like that.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        eos_id: int | None,
        bos_id: int | None = None,
        image_word: str = IMAGE_PLACEHOLDER,
        end_ids: frozenset[int] = frozenset(),
    ) -> None:
        self.backend = backend
        self.eos_id = eos_id
        self.end_ids = end_ids | ({eos_id} if eos_id is not None else frozenset())
        self.bos_id = bos_id
        self.image_word = image_word

    @property
    def vocab(self) -> int:
        return self.backend.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str, begin: bool = True) -> list[int]:
        text = encodable(text.replace(IMAGE_PLACEHOLDER, self.image_word))
        ids = self.backend.encode(text, add_special_tokens=begin).ids
        return ids if self.bos_id is None or not begin else [self.bos_id, *ids]

    def decode(self, ids: Sequence[int]) -> str:
        check_ids(ids, self.vocab)
        return self.backend.decode(list(ids), skip_special_tokens=True)
