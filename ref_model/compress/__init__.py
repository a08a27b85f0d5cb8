"""Post-training compression of linear layers: pruning, low-bit quantisation, and what to give to which layer."""

from .format import BlockFormat
from .plan import AllocatedPlan, MixedPlan, Plan, UniformPlan
from .recipe import Compression, Compressor

__all__ = ["AllocatedPlan", "BlockFormat", "Compression", "Compressor", "MixedPlan", "Plan", "UniformPlan"]
