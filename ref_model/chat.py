"""Chat templates: a question as the model was trained to see one, by the Jinja template that comes with it.

The template is somebody else's program: it runs in Jinja's sandbox, with the same settings and functions that
transformers gives it.
"""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from hw.spec.errors import UserError

from .checkpoints import PACKAGED, packaged_path
from .checkpoints.gguf_reader import metadata, open_reader
from .checkpoints.json_file import read_json
from .token_kinds import IMAGE_PLACEHOLDER

_FILES = ("chat_template.json", "processor_config.json", "tokenizer_config.json")
LONGEST = 1 << 20
"""Characters that a rendered question may have."""


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _environment() -> ImmutableSandboxedEnvironment:
    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    made.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    made.globals |= {"raise_exception": _raise, "strftime_now": lambda pattern: datetime.now().strftime(pattern)}
    return made


def _chosen(found: Any) -> str | None:
    """The template, or the one called "default" of several."""
    if isinstance(found, list):
        found = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}
    if isinstance(found, dict):
        found = found.get("default")
    return found if isinstance(found, str) else None


def _token(values: dict[str, Any], key: str) -> str | None:
    value = values.get(key)
    value = value.get("content") if isinstance(value, dict) else value
    return value if isinstance(value, str) else None


def _of_folder(folder: Path) -> tuple[str | None, dict[str, str]]:
    settings = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").exists() else {}
    tokens = {
        key: text
        for key in ("bos_token", "eos_token", "unk_token", "pad_token")
        if (text := _token(settings, key)) is not None
    }
    if (folder / "chat_template.jinja").exists():
        try:
            return (folder / "chat_template.jinja").read_bytes().decode("utf-8-sig"), tokens
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"{folder / 'chat_template.jinja'} is not UTF-8 text ({error}): download it again"
            ) from error
    found = (_chosen(read_json(folder / file).get("chat_template")) for file in _FILES if (folder / file).exists())
    return next((template for template in found if template is not None), None), tokens


def _of_gguf(path: Path) -> tuple[str | None, dict[str, str]]:
    reader = open_reader(path)
    words, tokens = metadata(reader, "tokenizer.ggml.tokens", []), {}
    for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        number = metadata(reader, f"tokenizer.ggml.{key}_token_id")
        if isinstance(number, int) and 0 <= number < len(words):
            tokens[f"{name}_token"] = words[number]
    return _chosen(metadata(reader, "tokenizer.chat_template")), tokens


class Chat:
    """The chat template of a model; UserError if it has none."""

    def __init__(self, source: str | Path) -> None:
        self.source, path = source, packaged_path(str(source)) if str(source) in PACKAGED else Path(source)
        read = _of_folder if path.is_dir() else _of_gguf if path.suffix == ".gguf" else None
        template, self.tokens = (None, {}) if read is None else read(path)
        if template is None:
            raise UserError(
                f"{source} has no chat template: leave out --chat, and write the prompt as the model was "
                "trained to see it"
            )
        try:
            self._template = _environment().from_string(template)
        except jinja2.TemplateError as error:
            raise UserError(
                f"the chat template of {source} is no Jinja template ({self._line(error)}): leave out --chat"
            ) from error

    def render(self, messages: list[dict[str, Any]]) -> str:
        """The text of a conversation, up to where the model is to go on."""
        try:
            made = self._template.render(
                messages=messages, add_generation_prompt=True, tools=None, documents=None, **self.tokens
            )
        except Exception as error:  # A template may fail like any program.
            raise UserError(
                f"the chat template of {self.source} does not take this prompt ({self._line(error)}): leave out --chat"
            ) from error
        if len(made) > LONGEST:
            raise UserError(
                f"the chat template of {self.source} makes {len(made):,} characters of the prompt, "
                f"{LONGEST:,} are the limit: leave out --chat"
            )
        return made

    def question(self, prompt: str, image: bool = False) -> str:
        """The text of one question of the user's, with the placeholder of an image.

        Templates take a message as text or as a list of parts: what comes out must hold the whole question, and one
        placeholder if there is an image.
        """
        if prompt.count(IMAGE_PLACEHOLDER) > 1:
            raise UserError(
                f"the prompt has {prompt.count(IMAGE_PLACEHOLDER)} times {IMAGE_PLACEHOLDER}, --chat takes "
                "one image: write it once, or leave out --chat"
            )
        asked = prompt.replace(IMAGE_PLACEHOLDER, "").strip()
        parts = [{"type": "image"}] * image + [{"type": "text", "text": asked}]
        for content in (parts, f"{IMAGE_PLACEHOLDER}\n{asked}" if image else asked)[:: 1 if image else -1]:
            try:
                made = self.render([{"role": "user", "content": content}])
            except UserError:
                continue
            if asked in made and "'type':" not in made and made.count(IMAGE_PLACEHOLDER) == image:
                return made
        self.render([{"role": "user", "content": asked}])
        raise UserError(f"the chat template of {self.source} leaves out the question or its image: leave out --chat")

    def begins(self, text: str) -> bool:
        """Whether a rendered text has the beginning-of-text token itself, so that no second one may be put in front."""
        bos = self.tokens.get("bos_token")
        return bool(bos) and text.startswith(str(bos))

    @staticmethod
    def _line(error: Exception) -> str:
        return " ".join(str(error).split()) or type(error).__name__
