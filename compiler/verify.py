"""The verifier: the captured graph equals its module, and every pass leaves every value as it was.

Values are compared in float64 on random inputs and weights at several lengths. After a pass only nodes that it changed
are computed anew, from the operands' values in the captured graph: a fault is found at the node that has it, and a
pass costs what it touched. The list of operators that kernels get is run once more as a whole.
"""

from collections.abc import Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor

from hw.spec.errors import InternalError, UserError

from . import ir, meaning
from .capture import first_line, states
from .meaning import Lengths

LENGTHS: tuple[Lengths, ...] = tuple({"seq": seq, "cache": cache} for seq, cache in ((1, 0), (3, 0), (5, 7), (16, 33)))
DTYPE = torch.float64
TOLERANCE = 1e-9
"""Of the largest magnitude in a row. Another order of summation changes 1e-14 of it, a fault far more than this."""
ROW_SCALES = (0.01, 1.0, 4.0)
"""Magnitudes of input rows in turn: small ones show a norm's epsilon."""
PERIOD = 1_048_573
"""Weights are stretches of one random sequence of this length, a prime, repeated: no two rows of them are equal."""
STEP = 8191
"""From where one matrix begins to where the next one does."""


class Verifier:
    """Of one graph, from the moment it is captured; see `check`."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.random = torch.Generator().manual_seed(1)
        self.parameters = self._parameters()
        symbolic = any(isinstance(d, ir.Length) for node in graph.arguments() for d in node.shape)
        self.lengths = LENGTHS if symbolic else LENGTHS[:1]
        self.inputs = [self._inputs(lengths) for lengths in self.lengths]
        with torch.no_grad():
            self.results = [self._run_module(*case) for case in zip(self.lengths, self.inputs, strict=True)]
            self._require_repeatable()
            self.values = [self._run_graph(*case) for case in zip(self.lengths, self.inputs, strict=True)]
        self._compare_results()
        self.outputs = graph.outputs
        self.verified = {name: _signature(node) for name, node in graph.nodes.items()}

    def check(self, after: str) -> None:
        """The graph's definitions precede their uses; every node that the pass `after` changed gives what it gave."""
        self.graph.check()
        if self.graph.outputs != self.outputs:
            raise InternalError(
                f"after pass {after}: {self.graph.name} has the results {self.graph.outputs}, its module {self.outputs}"
            )
        for name, node in self.graph.nodes.items():
            signature = _signature(node)
            if self.verified.get(name) == signature:
                continue
            if name not in self.verified or node.op in ("input", "parameter"):
                raise InternalError(f"after pass {after}: {name} of {self.graph.name} stands for no captured value")
            what = f"after pass {after}: {node.op} {name}"
            for lengths, values in zip(self.lengths, self.values, strict=True):
                self._compare(self._value(node, values, lengths, what), values[name], what, lengths)
            self.verified[name] = signature

    def check_list(self) -> None:
        """`graph.fused`, run as kernels understand it, gives the module's first result."""
        for lengths, inputs, results in zip(self.lengths, self.inputs, self.results, strict=True):
            (_, rows), *others = inputs.items()
            with torch.no_grad():
                found = meaning.chain(self.graph.fused, self._named, rows, **dict(others))
            self._compare(found, results[0], "the list of operators", lengths)

    # --- random values ---------------------------------------------------------------------------------

    def _parameters(self) -> dict[str, Tensor]:
        """By state name. Vectors are about 1, as a norm's are; matrices keep the magnitude of rows, and all lie in one
        stretch of memory, each a little further on: a large layer costs no more than its largest matrix."""
        assert self.graph.source is not None
        shapes = {name: tuple(state.shape) for name, state in states(self.graph.source).items()}
        matrices = {name: shape for name, shape in shapes.items() if len(shape) > 1}
        size = max(map(prod, matrices.values()), default=0) + STEP * len(matrices)
        width = min((prod(shape[1:]) for shape in matrices.values()), default=1)
        sequence = torch.randn(min(PERIOD, size), generator=self.random, dtype=DTYPE) / width**0.5
        sequence = sequence.repeat(size // max(1, len(sequence)) + 1)
        found = {
            name: sequence[STEP * at :][: prod(shape)].view(shape) for at, (name, shape) in enumerate(matrices.items())
        }
        return found | {
            name: 1 + torch.randn(shape, generator=self.random, dtype=DTYPE) / 4
            for name, shape in shapes.items()
            if name not in matrices
        }

    def _named(self, name: str) -> Tensor:
        """A parameter by its name in fused operators."""
        for state in (name, f"embeddings.{name}"):
            if state in self.parameters:
                return self.parameters[state]
        raise InternalError(f"{self.graph.name} has no parameter {name}")

    def _inputs(self, lengths: Lengths) -> dict[str, Tensor]:
        found = {}
        for node in self.graph.arguments():
            shape = [d.at(lengths) if isinstance(d, ir.Length) else d for d in node.shape]
            found[node.name] = torch.randn(shape, generator=self.random, dtype=DTYPE)
        rows = next(iter(found.values()))
        rows *= torch.tensor(ROW_SCALES, dtype=DTYPE)[torch.arange(len(rows)) % len(ROW_SCALES)].view(
            -1, *[1] * (rows.ndim - 1)
        )
        return found

    # --- comparisons -----------------------------------------------------------------------------------

    def _run_module(self, lengths: Lengths, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        assert self.graph.source is not None
        try:
            result = torch.func.functional_call(self.graph.source, self.parameters, tuple(inputs.values()))
        except Exception as error:  # whatever the user's module makes of these lengths
            raise UserError(
                f"module {self.graph.name}: it fails at {_shown(lengths)} ({type(error).__name__}: "
                f"{first_line(error)}): it has to run at every length"
            ) from None
        return (result,) if isinstance(result, Tensor) else tuple(result)

    def _run_graph(self, lengths: Lengths, inputs: Mapping[str, Tensor]) -> dict[str, Any]:
        values: dict[str, Any] = dict(inputs)
        for name, node in self.graph.nodes.items():
            if node.op == "parameter":
                values[name] = self.parameters[node.weight or ""]
            elif node.op != "input":
                values[name] = self._value(node, values, lengths, f"the captured {name}")
        return values

    def _value(self, node: ir.Node, values: Mapping[str, Any], lengths: Lengths, what: str) -> Any:
        try:
            with torch.no_grad():
                return meaning.node_value(node, values, self._named, lengths)
        except (RuntimeError, IndexError) as error:  # operands that do not fit together
            raise InternalError(
                f"{what} of {self.graph.name} cannot be computed at {_shown(lengths)}: {first_line(error)}"
            ) from None

    def _compare_results(self) -> None:
        for lengths, results, values in zip(self.lengths, self.results, self.values, strict=True):
            if len(results) != len(self.graph.outputs):
                raise InternalError(
                    f"{self.graph.name} has {len(self.graph.outputs)} results, its module {len(results)}"
                )
            for name, result in zip(self.graph.outputs, results, strict=True):
                self._compare(values[name], result, f"the captured {name}", lengths)

    def _require_repeatable(self) -> None:
        """UserError for a module that draws numbers: there is nothing to compare with."""
        again = self._run_module(self.lengths[-1], self.inputs[-1])
        if not all(torch.equal(*pair) for pair in zip(self.results[-1], again, strict=True)):
            raise UserError(
                f"module {self.graph.name}: it gives other results for the same inputs: leave out what is "
                "random, dropout for example"
            )

    def _compare(self, found: Tensor, wanted: Tensor, what: str, lengths: Lengths) -> None:
        """Rows of small magnitude count as much as others."""
        if found.shape != wanted.shape:
            raise InternalError(
                f"{what} of {self.graph.name} has shape {list(found.shape)}, its module's value "
                f"{list(wanted.shape)} at {_shown(lengths)}"
            )
        if wanted.dtype == torch.bool:
            error = float((found != wanted).any())
        else:
            size = wanted.abs().amax(-1, keepdim=True).clamp_min(1e-30) if wanted.ndim else wanted.abs()
            error = float(((found - wanted).abs() / size).max()) if wanted.numel() else 0.0
        if not error <= TOLERANCE:
            raise InternalError(
                f"{what} of {self.graph.name} is off by {error:.2g} of what its module gives at {_shown(lengths)}"
            )


def _signature(node: ir.Node) -> tuple:
    return node.op, repr(node.arguments), node.fused


def _shown(lengths: Lengths) -> str:
    return ", ".join(f"{name} {value}" for name, value in lengths.items())
