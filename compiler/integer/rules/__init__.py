"""The rules, a file a family of operators. Importing this package fills `compiler.integer.translate.RULES`."""

from . import attention, choice, elementwise, linear, norm, softmax, tokens, views

__all__ = ["attention", "choice", "elementwise", "linear", "norm", "softmax", "tokens", "views"]
