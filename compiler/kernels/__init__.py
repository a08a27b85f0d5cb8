"""Kernels: each emits the instructions of one fused operator, lengths in registers."""
