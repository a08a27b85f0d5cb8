"""Captions of vits-smollm2: the words around a name, and the held-out pairs that ship with the projector."""

import json
from dataclasses import dataclass

from PIL import Image

from ref_model.checkpoints.vits_smollm2 import DATA
from ref_model.preprocess import open_image

PROMPT = "\nA picture of"
"""Follows the visual tokens."""
CAPTION = " {}."
SHEET, NAMES = DATA / "held_out.png", DATA / "held_out.json"
EDGE, COLUMNS = 64, 12
"""Pixels of a picture's edge, pictures in a row of the sheet."""


@dataclass(frozen=True)
class Captioned:
    """A picture (RGB, on white) and the text that the model should continue `PROMPT` with."""

    picture: Image.Image
    caption: str


def _corner(number: int) -> tuple[int, int]:
    return number % COLUMNS * EDGE, number // COLUMNS * EDGE


def held_out() -> list[Captioned]:
    """The pairs that the projector was not trained on."""
    sheet = open_image(SHEET).convert("RGB")
    names = json.loads(NAMES.read_text(encoding="utf-8"))
    return [
        Captioned(sheet.crop((x, y, x + EDGE, y + EDGE)), CAPTION.format(name))
        for (x, y), name in zip(map(_corner, range(len(names))), names, strict=True)
    ]


def write_held_out(pictures: list[Image.Image], names: list[str]) -> None:
    """Make the sheet of pictures of EDGE x EDGE pixels, and the list of their names."""
    sheet = Image.new("RGB", (COLUMNS * EDGE, -(-len(pictures) // COLUMNS) * EDGE), "white")
    for number, picture in enumerate(pictures):
        sheet.paste(picture, _corner(number))
    sheet.save(SHEET, optimize=True)
    NAMES.write_text(json.dumps(names, indent=0, ensure_ascii=False) + "\n", encoding="utf-8")
