"""The graph of a user's module: what torch.export gives, brought to few operators, checked against torch."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

from hw.spec.errors import InternalError, UserError, first_line

from .check import Checker
from .edit import Editor, classify
from .export import Dynamic, export, forward_is
from .ir import ON_DEVICE, Graph
from .legal import refuse_others, refuse_short_slices
from .meaning import constants, evaluate, values_of
from .rewrites import REWRITES


def capture(
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    dynamic: Dynamic | None = None,
    lengths: Mapping[str, tuple[int, int]] | None = None,
) -> Graph:
    """The graph of a module; see `alula.compile` for the arguments.

    Every rewrite is followed by a run of the graph, which must give the module's results. UserError for what torch
    cannot export, and for an operator that no rewrite brings to one of `ir.DEVICE`.
    """
    with evaluating(module):
        graph = export(module, inputs, dynamic or {}, lengths or {})
        refuse_short_slices(graph)
        rewrite_all(graph, Checker(graph, inputs, dynamic or {}))
    return graph


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """While this lasts, the module is in evaluation mode."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


def rewrite_all(graph: Graph, checker: Checker | None) -> None:
    """Every rewrite, each followed by a check; None: the graph is known to pass them."""
    check, editor = checker.check if checker is not None else lambda _: None, Editor(graph)
    classify(graph)
    check("export")
    for rewrite in REWRITES:
        try:
            rewrite(editor)
        except (UserError, InternalError):
            raise
        except Exception as error:  # an argument that the rewrite did not expect
            name, fault = type(graph.module).__name__, f"{type(error).__name__}: {first_line(error)}"
            raise InternalError(f"rewrite {rewrite.__name__} fails on module {name} ({fault})") from error
        classify(graph)
        check(rewrite.__name__)
    refuse_others(graph)


__all__ = [
    "ON_DEVICE",
    "Checker",
    "capture",
    "constants",
    "evaluate",
    "evaluating",
    "export",
    "forward_is",
    "rewrite_all",
    "values_of",
]
