"""The other half of a LLaVA in GGUF: `mmproj-*.gguf`, llama.cpp's file of a CLIP tower and the projector behind it.

Its converter leaves out the layers behind the feature layer, so every block that is stored is to be run. (llama.cpp
itself runs one fewer.) Old converters call the feed-forward's first matrix "down" and its second "up", new ones the
other way round: shapes tell them apart.
"""

from pathlib import Path

import gguf
import numpy as np
from torch import Tensor

from hw.spec.errors import UserError
from ref_model.config import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD, LlavaConfig, Rgb, VisionConfig

from .base import Checkpoint
from .gguf_file import FLOATS, GgufCheckpoint
from .gguf_reader import as_torch, dequantised, metadata, number, open_reader, refuse_unknown
from .names import NEWLINE

IMAGE_TOKEN = "<image>"
READ = (
    "has_vision_encoder",
    "has_llava_projector",
    "projector_type",
    "use_gelu",
    "vision.image_size",
    "vision.patch_size",
    "vision.embedding_length",
    "vision.feed_forward_length",
    "vision.block_count",
    "vision.attention.head_count",
    "vision.attention.layer_norm_epsilon",
    "vision.image_mean",
    "vision.image_std",
    "vision.feature_layer",
    "vision.projection_dim",
    "vision.projector_type",
)
FIXED = {
    "has_text_encoder": (False,),
    "has_audio_encoder": (False,),
    "use_silu": (False,),
    "vision.mm_patch_merge_type": ("flat",),
}
_TOP = {
    "v.class_embd": "embeddings.class_embedding",
    "v.patch_embd.weight": "embeddings.patch_embedding.weight",
    "v.position_embd.weight": "embeddings.position_embedding.weight",
    "v.pre_ln.weight": "pre_layrnorm.weight",
    "v.pre_ln.bias": "pre_layrnorm.bias",
}
_LEAVES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_out": "self_attn.out_proj",
    "ln1": "layer_norm1",
    "ln2": "layer_norm2",
}
_PROJECTOR = {"mm.0": "linear_1", "mm.2": "linear_2"}


def _canonical_name(stored: str, feed_forward: dict[str, str]) -> str | None:
    """Canonical name of a stored tensor, None if it has no place; feed_forward: `ffn_*` -> `mlp.*`."""
    if stored in _TOP:
        return f"vision_tower.{_TOP[stored]}"
    path, _, part = stored.rpartition(".")
    if path in _PROJECTOR:
        return f"multi_modal_projector.{_PROJECTOR[path]}.{part}"
    words, leaves = path.split("."), _LEAVES | feed_forward
    if len(words) == 4 and words[:2] == ["v", "blk"] and words[3] in leaves:
        return f"vision_tower.encoder.layers.{words[2]}.{leaves[words[3]]}.{part}"
    return None


class MmprojFile:
    """Tower and projector. `vision`: its configuration; `tensors`: stored ones by canonical name."""

    def __init__(self, path: Path) -> None:
        self.path, self.reader = path, open_reader(path)
        self._check_kind()
        stored = {tensor.name: tensor for tensor in self.reader.tensors}
        self.vision = self._vision(stored)
        names = {name: _canonical_name(name, self._feed_forward(stored)) for name in stored}
        if unknown := [name for name, canonical in names.items() if canonical is None]:
            raise UserError(
                f"{path}: tensor {unknown[0]} has no place in a CLIP tower with a two-layer projector: "
                "this model is not supported"
            )
        self.tensors = {str(names[name]): tensor for name, tensor in stored.items()}

    def _check_kind(self) -> None:
        architecture = metadata(self.reader, "general.architecture")
        if architecture != "clip":
            raise UserError(
                f"{self.path}: architecture is {architecture!r}, a vision half is 'clip': give the model's "
                "mmproj file as --mmproj"
            )
        kind = metadata(self.reader, "clip.projector_type", metadata(self.reader, "clip.vision.projector_type", "mlp"))
        if kind != "mlp" or not metadata(self.reader, "clip.has_vision_encoder", True):
            raise UserError(
                f"{self.path}: its projector is {kind!r}, supported is LLaVA's 'mlp' behind a vision "
                "tower: choose another model"
            )
        refuse_unknown(self.reader, self.path, "clip", READ, FIXED)

    def _number(self, key: str, whole: bool = True) -> float:
        return number(self.reader, self.path, f"clip.vision.{key}", whole=whole)

    def _rgb(self, key: str) -> Rgb:
        values = metadata(self.reader, f"clip.vision.{key}")
        if not isinstance(values, list) or len(values) != 3 or not np.isfinite(values).all():
            raise UserError(
                f"{self.path}: metadata clip.vision.{key} is {values!r}, three numbers are needed: "
                "convert the model again"
            )
        # Stored in single precision: the usual numbers are meant as they are published.
        rounded = np.asarray(values, np.float32)
        for usual in (CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD):
            if np.array_equal(rounded, np.asarray(usual, np.float32)):
                return usual
        red, green, blue = (float(str(value)) for value in rounded)
        return red, green, blue

    def _feature_layer(self, stored: dict[str, gguf.ReaderTensor], layers: int) -> int:
        """Blocks to run: what the file says, else all of them."""
        layer = metadata(self.reader, "clip.vision.feature_layer")
        if isinstance(layer, list) and len(layer) != 1:
            raise UserError(
                f"{self.path}: features are taken from layers {layer}, one layer is supported: choose another model"
            )
        if layer is not None:
            return int(layer[0] if isinstance(layer, list) else layer)
        if "v.post_ln.weight" in stored:
            raise UserError(
                f"{self.path} has a whole tower and does not say which layer's features are meant "
                "(clip.vision.feature_layer): use the model's Hugging Face folder"
            )
        return layers

    def _vision(self, stored: dict[str, gguf.ReaderTensor]) -> VisionConfig:
        layers = int(self._number("block_count"))
        return VisionConfig(
            image_size=int(self._number("image_size")),
            patch_size=int(self._number("patch_size")),
            hidden=int(self._number("embedding_length")),
            layers=layers,
            heads=int(self._number("attention.head_count")),
            ffn=int(self._number("feed_forward_length")),
            activation="gelu" if metadata(self.reader, "clip.use_gelu", False) else "quick_gelu",
            ln_eps=float(str(np.float32(self._number("attention.layer_norm_epsilon", whole=False)))),
            feature_layer=self._feature_layer(stored, layers),
            pre_norm="v.pre_ln.weight" in stored,
            pixel_mean=self._rgb("image_mean"),
            pixel_std=self._rgb("image_std"),
        )

    def _feed_forward(self, stored: dict[str, gguf.ReaderTensor]) -> dict[str, str]:
        """`ffn_*` -> `mlp.*`: the first matrix is the one with the feed-forward's width in rows."""
        if self.vision.ffn == self.vision.hidden:
            raise UserError(
                f"{self.path}: feed-forward and hidden width are both {self.vision.ffn}, so that nothing "
                "tells its two matrices apart: use the model's Hugging Face folder"
            )
        up = stored.get("v.blk.0.ffn_up.weight")
        first, second = (
            ("ffn_up", "ffn_down") if up is None or up.shape[-1] == self.vision.ffn else ("ffn_down", "ffn_up")
        )
        return {first: "mlp.fc1", second: "mlp.fc2"}


class GgufPairCheckpoint(Checkpoint):
    """A LLaVA of a language model's GGUF file and its mmproj file."""

    def __init__(self, path: Path, mmproj: Path) -> None:
        text, images = GgufCheckpoint(path), MmprojFile(mmproj)
        config = LlavaConfig(
            text.config.name,
            text.config.text,
            images.vision,
            self._image_token(text),
            "multi_modal_projector.linear_1.bias" in images.tensors,
        )
        super().__init__(config, f"{path} with {mmproj}")
        for name in images.tensors:
            if name not in self.shapes:
                raise UserError(f"{mmproj}: {name} is not needed up to the feature layer: convert the model again")
        self._text, self._images = text, images
        types = {t.tensor_type.name for name, t in images.tensors.items() if len(t.shape) > 1 and name != NEWLINE}
        self.quantised = "+".join(sorted({*text.quantised.split("+"), *types} - FLOATS - {""}))
        last = images.tensors.get("multi_modal_projector.linear_2.weight")
        if last is not None and int(last.shape[-1]) != config.text.hidden:
            raise UserError(
                f"{mmproj} makes rows of {last.shape[-1]} values, {path} takes {config.text.hidden}: give "
                "the two files of one model"
            )

    @staticmethod
    def _image_token(text: GgufCheckpoint) -> int:
        """The vocabulary's own token of an image, or the id behind its last: llama.cpp's pairs need none."""
        tokens = metadata(text.reader, "tokenizer.ggml.tokens", [])
        return tokens.index(IMAGE_TOKEN) if IMAGE_TOKEN in tokens else text.config.text.vocab

    def _fetch(self, name: str) -> Tensor | None:
        stored = self._images.tensors.get(name)
        if stored is None:
            return self._text._fetch(name)
        return as_torch(dequantised(stored, str(self._images.path)))
