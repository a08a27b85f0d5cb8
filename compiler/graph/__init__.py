"""The graph of a user's module: what torch.export gives, brought to few operators, checked against torch."""

from collections.abc import Mapping

from torch import Tensor, nn

from hw.spec.errors import InternalError, UserError

from ..capture import first_line
from .check import Checker
from .edit import Editor, classify
from .export import Dynamic, export
from .ir import ON_DEVICE, Graph
from .legal import refuse_others
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
    graph = export(module, inputs, dynamic or {}, lengths or {})
    classify(graph)
    checker, editor = Checker(graph, inputs, dynamic or {}), Editor(graph)
    checker.check("export")
    for rewrite in REWRITES:
        try:
            rewrite(editor)
        except (UserError, InternalError):
            raise
        except Exception as error:  # an argument that the rewrite did not expect
            name, fault = type(module).__name__, f"{type(error).__name__}: {first_line(error)}"
            raise InternalError(f"rewrite {rewrite.__name__} fails on module {name} ({fault})") from error
        classify(graph)
        checker.check(rewrite.__name__)
    refuse_others(graph)
    return graph


__all__ = ["ON_DEVICE", "capture", "constants", "evaluate", "values_of"]
