"""LLaVA in plain PyTorch: float and integer reference."""
