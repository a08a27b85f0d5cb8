"""Passes over the captured graph: short, named, each followed by `verify`."""

from .attention import fuse_attention
from .heads import fuse_heads
from .mlp import fuse_mlp
from .normalise import normalise
from .norms import fuse_norms
from .residual import fuse_residual
from .rope import fuse_rope
from .schedule import schedule

PASSES = (normalise, fuse_norms, fuse_heads, fuse_rope, fuse_attention, fuse_mlp, fuse_residual, schedule)

__all__ = ["PASSES", "fuse_attention", "fuse_heads", "fuse_mlp", "fuse_norms", "fuse_residual", "fuse_rope",
           "normalise", "schedule"]
