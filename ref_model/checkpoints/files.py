"""Reading text and JSON of any editor's hand: byte-order marks are understood, everything else is one line."""

import codecs
import json
from pathlib import Path
from typing import Any

from hw.spec.errors import UserError

_WIDE_MARKS = {codecs.BOM_UTF32_LE: "UTF-32", codecs.BOM_UTF32_BE: "UTF-32", codecs.BOM_UTF16_LE: "UTF-16",
               codecs.BOM_UTF16_BE: "UTF-16"}
"""UTF-32 first: its little-endian mark begins with UTF-16's."""


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, with or without a byte-order mark; UserError if it cannot be read."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"no {path.name} in {path.parent}: give a Hugging Face model folder") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check the file and its permissions") from error
    for mark, name in _WIDE_MARKS.items():
        if data.startswith(mark):
            raise UserError(f"{path} is {name} text, UTF-8 is needed: save it as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}): download it again") from error


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; UserError if it is missing, malformed, or anything but an object."""
    try:
        top = json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{path} is not readable as JSON ({error}): download it again") from error
    if not isinstance(top, dict):
        raise UserError(f"{path} holds no JSON object: give a Hugging Face model folder")
    return top
