"""Weights of a DINOv2 vision transformer out of an ONNX export, as the tensors of this project's vision tower.

The export keeps transformers' module names (`Dinov2Model`) on biases, norms and nodes; the weights of its linear layers
are anonymous constants, transposed, and found by the MatMul node that uses them. Three things are folded, exactly:
LayerScale into the layer before it, the patch bias into the position table, and the table is resized once.
"""

import math
from pathlib import Path

import numpy as np
import onnx
import torch
from google.protobuf.message import DecodeError
from onnx import numpy_helper
from torch import Tensor
from torch.nn import functional

from hw.spec.errors import UserError
from ref_model.config import VisionConfig

Tensors = dict[str, Tensor]
_LINEARS = {
    "self_attn.q_proj": "attention.attention.query",
    "self_attn.k_proj": "attention.attention.key",
    "self_attn.v_proj": "attention.attention.value",
    "self_attn.out_proj": "attention.output.dense",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_SCALED = {"self_attn.out_proj": "layer_scale1.lambda1", "mlp.fc2": "layer_scale2.lambda1"}
_NORMS = {"layer_norm1": "norm1", "layer_norm2": "norm2"}


_PLACES = {"Concat": "position.class", "Reshape": "position.patches"}
"""Operators of the embeddings that take the position table's two constants."""


def stored_tensors(path: Path, root: str = "backbone") -> Tensors:
    """float32 tensors by the names of `Dinov2Model`, linear weights float32[in, out]; UserError if it is no ONNX.

    The position table comes as "position.class" float32[1, 1, d] and "position.patches" float32[1, grid * grid, d].
    """
    try:
        graph = onnx.load(path).graph
    except (OSError, DecodeError) as error:
        raise UserError(f"{path} is not a complete ONNX file ({error}): install its package again") from error
    # Copies: what numpy_helper returns may be a read-only view.
    values = {
        t.name: torch.from_numpy(np.array(numpy_helper.to_array(t)))
        for t in graph.initializer
        if t.data_type == onnx.TensorProto.FLOAT
    }
    named = {name.removeprefix(f"{root}."): value for name, value in values.items() if name.startswith(f"{root}.")}
    for node in graph.node:
        module = node.name.strip("/").removeprefix(f"{root}/").removesuffix("/MatMul").replace("/", ".")
        for name in node.input:
            if node.op_type == "MatMul" and name in values:
                named[f"{module}.weight"] = values[name]
            elif node.op_type in _PLACES and name in values and module.startswith("embeddings."):
                named[_PLACES[node.op_type]] = values[name]
    return named


def resized_positions(class_row: Tensor, table: Tensor, grid: int) -> Tensor:
    """float32[1 + grid * grid, d] of a class row and a table float32[1, n * n, d]: bicubic, as DINOv2 resizes it."""
    edge = math.isqrt(table.shape[1])
    square = table.reshape(1, edge, edge, -1).permute(0, 3, 1, 2)
    resized = functional.interpolate(square, size=(grid, grid), mode="bicubic", align_corners=False)
    return torch.cat((class_row.reshape(1, -1), resized[0].flatten(1).T))


def _layer(stored: Tensors, index: int) -> Tensors:
    source, target = f"encoder.layer.{index}.", f"vision_tower.encoder.layers.{index}."
    layer: Tensors = {}
    for name, theirs in _LINEARS.items():
        weight, bias = stored[f"{source}{theirs}.weight"].T, stored[f"{source}{theirs}.bias"]
        if name in _SCALED:
            scale = stored[source + _SCALED[name]]
            weight, bias = weight * scale[:, None], bias * scale
        layer |= {f"{target}{name}.weight": weight.contiguous(), f"{target}{name}.bias": bias}
    for name, theirs in _NORMS.items():
        layer |= {f"{target}{name}.{part}": stored[f"{source}{theirs}.{part}"] for part in ("weight", "bias")}
    return layer


def vision_tensors(path: Path, config: VisionConfig) -> Tensors:
    """Canonical tensors of the tower up to its feature layer; UserError where the file lacks some."""
    stored, prefix = stored_tensors(path), "vision_tower.embeddings."
    try:
        positions = resized_positions(stored["position.class"], stored["position.patches"], config.grid)
        positions[1:] += stored["embeddings.patch_embeddings.projection.bias"]
        tensors = {
            f"{prefix}class_embedding": stored["embeddings.cls_token"].flatten(),
            f"{prefix}patch_embedding.weight": stored["embeddings.patch_embeddings.projection.weight"],
            f"{prefix}position_embedding.weight": positions,
        }
        for index in range(config.num_executed_vision_layers):
            tensors |= _layer(stored, index)
    except KeyError as error:
        raise UserError(f"{path} has no tensor {error}: install its package again") from error
    return tensors
