"""JSON files as people's editors and other programs leave them."""

import json
from pathlib import Path
from typing import Any

from hw.spec.errors import UserError


def read_json(path: Path, give: str = "give a Hugging Face model folder") -> dict[str, Any]:
    """The object in a JSON file, in UTF-8, UTF-16 or UTF-32, with or without a byte-order mark.

    UserError if there is no such file, if it is not JSON, or if it holds something else than an object. `give`: what
    the user should give instead of a missing file.
    """
    try:
        found = json.loads(path.read_bytes())  # bytes: json looks for byte-order marks itself
    except FileNotFoundError:
        raise UserError(f"no {path.name} in {path.parent}: {give}") from None
    except (ValueError, RecursionError, OSError) as error:
        raise UserError(f"{path} is not readable as JSON ({_one_line(error)}): download it again") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} holds no JSON object: {give}")
    return found


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


__all__ = ["read_json"]
