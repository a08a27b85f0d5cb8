"""SentencePiece's byte-pair tokenizers (Llama 2, Mistral, Vicuna, LLaVA-1.5): pieces with scores, without merges.

A text's spaces become U+2581; of all neighbours that form a piece, the pair with the best score is joined, the leftmost
of equals, until none is left. What is no piece then becomes its UTF-8 bytes. Source: Kudo and Richardson 2018.
"""

import heapq
import math
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from hw.spec.errors import UserError

from .token_kinds import IMAGE_PLACEHOLDER, check_ids, encodable

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
SPACE = "\u2581"
Prefix = Literal["every", "first", "never"]


@dataclass(frozen=True)
class Pieces:
    """A vocabulary: texts, scores and kinds by id, and how text is prepared.

    prefix: where a space goes in front: of "every" stretch of text between special tokens, of the "first" if the text
    begins with it, or "never".
    """

    tokens: Sequence[str]
    scores: Sequence[float]
    kinds: Sequence[int]
    prefix: Prefix = "every"
    bos_id: int | None = None
    eos_id: int | None = None
    end_ids: frozenset[int] = frozenset()
    extra: Mapping[str, int] = field(default_factory=dict)
    """Tokens that are added to the vocabulary: text -> id."""
    shown: frozenset[int] = frozenset()
    """Added tokens that are text, so that decoding shows them."""


class SentencePieceTokenizer:
    """A tokenizer over `Pieces`; UserError if they are not as long as each other or have no byte tokens."""

    def __init__(self, pieces: Pieces, origin: str) -> None:
        if not len(pieces.tokens) == len(pieces.scores) == len(pieces.kinds):
            raise UserError(
                f"{origin} has {len(pieces.tokens)} tokens, {len(pieces.scores)} scores and "
                f"{len(pieces.kinds)} kinds: download it again"
            )
        if not all(map(math.isfinite, pieces.scores)):
            raise UserError(f"{origin} has scores that are no numbers: download it again")
        self.eos_id, self.bos_id = pieces.eos_id, pieces.bos_id
        self.end_ids = pieces.end_ids | ({self.eos_id} if self.eos_id is not None else frozenset())
        self.image_word = IMAGE_PLACEHOLDER
        self._texts = dict(enumerate(pieces.tokens)) | {number: text for text, number in pieces.extra.items()}
        self._prefix: Prefix = pieces.prefix
        self._bytes = _byte_tokens(pieces, origin)
        self._value = {token: value for value, token in enumerate(self._bytes)}
        self._mergeable = {
            text: (-score, i)
            for i, (text, score, kind) in enumerate(zip(*(pieces.tokens, pieces.scores, pieces.kinds), strict=True))
            if kind == NORMAL
        }
        special = {
            text: i
            for i, (text, kind) in enumerate(zip(pieces.tokens, pieces.kinds, strict=True))
            if kind in (CONTROL, USER_DEFINED, UNKNOWN) and text
        }
        self._special = special | dict(pieces.extra)
        self._silent = {i for i, kind in enumerate(pieces.kinds) if kind in (CONTROL, UNKNOWN)}
        self._silent = (self._silent | set(pieces.extra.values())) - pieces.shown
        longest = sorted(self._special, key=len, reverse=True)
        self._cut = re.compile("|".join(map(re.escape, longest)) or r"(?!)")

    @property
    def vocab(self) -> int:
        return max(self._texts) + 1

    def encode(self, text: str, begin: bool = True) -> list[int]:
        text = encodable(text.replace(IMAGE_PLACEHOLDER, self.image_word))
        ids = [self.bos_id] if begin and self.bos_id is not None else []
        at = 0
        for found in self._cut.finditer(text):
            ids += self._stretch(text[at : found.start()], at == 0)
            ids.append(self._special[found[0]])
            at = found.end()
        return ids + self._stretch(text[at:], at == 0)

    def _stretch(self, text: str, first: bool) -> list[int]:
        """Ids of text without special tokens; first: it is where the whole text begins."""
        if not text:
            return []
        if self._prefix == "every" or (self._prefix == "first" and first):
            text = f" {text}"
        ids = []
        for piece in self._joined(text.replace(" ", SPACE)):
            ids += [self._mergeable[piece][1]] if piece in self._mergeable else [self._bytes[b] for b in piece.encode()]
        return ids

    def _joined(self, text: str) -> list[str]:
        """Characters of `text`, joined by the scores of what they form; linked lists keep it n log n."""
        pieces, before, after = list(text), list(range(-1, len(text) - 1)), [*range(1, len(text)), -1]
        queue: list[tuple[float, int, int, str]] = []

        def propose(left: int) -> None:
            right = after[left] if left >= 0 else -1
            if right >= 0 and (both := pieces[left] + pieces[right]) in self._mergeable:
                heapq.heappush(queue, (self._mergeable[both][0], left, right, both))

        for left in range(len(pieces)):
            propose(left)
        while queue:
            _, left, right, both = heapq.heappop(queue)
            if after[left] != right or not pieces[left] or pieces[left] + pieces[right] != both:
                continue  # one of the two has been joined with something else
            pieces[left], pieces[right], after[left] = both, "", after[right]
            if after[right] >= 0:
                before[after[right]] = left
            propose(before[left])
            propose(left)
        return [piece for piece in pieces if piece]

    def decode(self, ids: Sequence[int]) -> str:
        check_ids(ids, self.vocab)
        made = b"".join(self._raw(token) for token in ids if token not in self._silent)
        text = made.decode("utf-8", errors="replace")
        return text.removeprefix(" ") if self._prefix != "never" else text

    def _raw(self, token: int) -> bytes:
        if token in self._value:
            return bytes([self._value[token]])
        return self._texts.get(token, "").replace(SPACE, " ").encode()


def _byte_tokens(pieces: Pieces, origin: str) -> list[int]:
    """Ids of the 256 byte tokens in order."""
    named = {text: i for i, (text, kind) in enumerate(zip(pieces.tokens, pieces.kinds, strict=True)) if kind == BYTE}
    found = [named.get(f"<0x{value:02X}>") for value in range(256)]
    if None in found:
        raise UserError(
            f"{origin} has no token for byte {found.index(None)}: vocabularies without all 256 bytes are "
            "not supported, choose another model"
        )
    return [token for token in found if token is not None]


# --- tokenizer.model -------------------------------------------------------------------------------------

_MODEL_BPE = 2


def _fields(data: bytes) -> list[tuple[int, int | bytes]]:
    """(number, value) of a protocol buffer's fields; ValueError for anything cut off."""
    found: list[tuple[int, int | bytes]] = []
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            value |= (data[at] & 127) << shift
            at, shift = at + 1, shift + 7
            if data[at - 1] < 128:
                return value

    while at < len(data):
        key = varint()
        number, wire = key >> 3, key & 7
        if wire == 0:
            found.append((number, varint()))
            continue
        if wire not in (1, 2, 5):
            raise ValueError(f"wire type {wire}")
        size = {1: 8, 5: 4}[wire] if wire != 2 else varint()
        if at + size > len(data):
            raise ValueError("it is cut off")
        found.append((number, data[at : at + size]))
        at += size
    return found


def _message(fields: Sequence[tuple[int, int | bytes]], number: int) -> dict[int, int | bytes]:
    """The last message of that number, field by field."""
    chosen = [value for key, value in fields if key == number and isinstance(value, bytes)]
    return dict(_fields(chosen[-1])) if chosen else {}


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, bytes):
        return value
    raise ValueError("a number stands in the place of bytes")


def read_model(
    path: Path, prefix: Prefix, extra: Mapping[str, int], end_ids: frozenset[int], shown: frozenset[int] = frozenset()
) -> SentencePieceTokenizer:
    """A `tokenizer.model` file; UserError if it is not of the byte-pair kind that Llama has, or damaged."""
    try:
        fields = _fields(path.read_bytes())
        trainer, normaliser = _message(fields, 2), _message(fields, 3)
        pieces = [dict(_fields(value)) for number, value in fields if number == 1 and isinstance(value, bytes)]
        tokens = [_bytes(piece.get(1, b"")).decode() for piece in pieces]
        scores = [struct.unpack("<f", _bytes(piece.get(2, bytes(4))))[0] for piece in pieces]
        kinds = [int(piece.get(3, NORMAL)) for piece in pieces]
    except (OSError, ValueError, IndexError, KeyError, TypeError, struct.error) as error:
        raise UserError(f"{path} is not a complete SentencePiece model ({error}): download it again") from error
    if trainer.get(3, 1) != _MODEL_BPE:
        raise UserError(
            f"{path} is a SentencePiece model of type {trainer.get(3, 1)!r}, supported is {_MODEL_BPE} "
            "(BPE): save the model's tokenizer.json beside it"
        )
    if normaliser.get(2) or normaliser.get(4, 1) or normaliser.get(5, 1) != 1:
        raise UserError(
            f"{path} normalises text (rules, or spaces removed), which is not supported: save the model's "
            "tokenizer.json beside it"
        )
    dummy = normaliser.get(3, 1)
    bos, eos = (
        token if isinstance(token, int) and token < len(tokens) else None
        for token in (trainer.get(41, 1), trainer.get(42, 2))
    )
    return SentencePieceTokenizer(
        Pieces(tokens, scores, kinds, prefix if dummy else "never", bos, eos, end_ids, extra, shown), str(path)
    )
