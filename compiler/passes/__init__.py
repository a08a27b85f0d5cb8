"""Passes over the captured graph: short, named, each followed by a check that the graph still means the same."""

from .attention import fuse_attention
from .caches import fuse_caches
from .heads import fuse_heads
from .linears import fuse_linears
from .mlp import fuse_mlp
from .normalise import normalise
from .norms import fuse_norms
from .residual import fuse_residual
from .rope import fuse_rope
from .schedule import schedule
from .tokens import fuse_tokens

PASSES = (
    normalise,
    fuse_norms,
    fuse_linears,
    fuse_heads,
    fuse_rope,
    fuse_caches,
    fuse_attention,
    fuse_mlp,
    fuse_tokens,
    fuse_residual,
    schedule,
)

__all__ = [
    "PASSES",
    "fuse_attention",
    "fuse_caches",
    "fuse_heads",
    "fuse_linears",
    "fuse_mlp",
    "fuse_norms",
    "fuse_residual",
    "fuse_rope",
    "fuse_tokens",
    "normalise",
    "schedule",
]
