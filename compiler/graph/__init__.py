"""The graph of a user's module: what torch.export gives, brought to few operators, checked against torch."""

from collections.abc import Mapping

from torch import Tensor, nn

from hw.spec.errors import UserError

from .check import Checker
from .edit import Editor, classify
from .export import Dynamic, export
from .ir import DEVICE, ON_DEVICE, Graph
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
    for rewrite in REWRITES:
        rewrite(editor)
        classify(graph)
        checker.check(rewrite.__name__)
    _refuse_others(graph)
    return graph


def _refuse_others(graph: Graph) -> None:
    """UserError for the first node that is not of the device's operators."""
    for node in graph.device():
        if node.target is not None or node.op not in DEVICE:
            shape = " x ".join(str(d) for d in node.shape) or "several results"
            where = f", {node.source}" if node.source else ""
            raise UserError(
                f"module {node.module}: operator {node.op} with result [{shape}]{where} has no rule: write it with the "
                "operators of docs/howto/own-module.md"
            )


__all__ = ["ON_DEVICE", "capture", "constants", "evaluate", "values_of"]
