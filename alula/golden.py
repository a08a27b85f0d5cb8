"""The golden model of LLaVA: the integer steps of its parts' graphs, interpreted with a quantised model's weights.

It is the definition that every module has (`compiler.integer`); the weights may be compressed or smoothed. What goes on
around the layers, such as caches, dropped tokens and chosen patches, is that of `ref_model.golden`, whose layers were
written by hand: tests hold the two against each other in every value.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from compiler import ir
from compiler.graph.ir import Graph
from compiler.graph.meaning import run
from compiler.integer import rules  # noqa: F401  # fills the table of rules
from compiler.integer import steps as s
from compiler.integer.feed import feed
from compiler.integer.integers import Integers
from compiler.integer.interpret import interpret
from compiler.integer.plan import make_plan
from compiler.integer.steps import Array, Held
from compiler.integer.translate import Translator
from compiler.pack import FIELDS
from hw.spec import numerics as nm
from ref_model.golden import GoldenText, GoldenVision
from ref_model.golden.model import LayerCache
from ref_model.golden.selection import class_attention
from ref_model.mask import BlockMask
from ref_model.quantise import QuantTextLayer, QuantVisionLayer

KEPT = 64
"""Layers whose steps are kept."""


@dataclass
class Interpreter:
    """The steps of parts, each made once for every set of weights."""

    graphs: Mapping[str, Graph]
    _known: dict[tuple[str, int], tuple[Any, Integers]] = field(default_factory=dict)

    def integers(self, part: str, owner: Any, tables: Mapping[str, Array] | None = None) -> Integers:
        """owner: has the weights under the names of `FIELDS`; tables: other parameters, by their name."""
        key = (part, id(owner))
        if key not in self._known:
            while len(self._known) >= KEPT:
                del self._known[next(iter(self._known))]
            self._known[key] = owner, self._translated(self.graphs[part], owner, tables or {})
        return self._known[key][1]

    def _translated(self, graph: Graph, owner: Any, tables: Mapping[str, Array]) -> Integers:
        weights = (node.weight for node in graph.nodes.values() if node.weight)
        paths = {weight.removesuffix(".weight"): ir.parameter_path(weight) for weight in weights}
        given = {path: getattr(owner, FIELDS[name]) for path, name in paths.items() if name in FIELDS}
        known = self.constants(graph, tables)
        return Translator(graph, make_plan(graph, known), known, given).run()

    def constants(self, graph: Graph, tables: Mapping[str, Array]) -> dict[str, Array]:
        """Constants that depend on nothing but these parameters."""
        nodes = [node for node in graph.nodes.values() if node.kind == "constant"]
        values: dict[str, Any] = {
            node.name: torch.from_numpy(tables[ir.parameter_name(node.weight)])
            for node in nodes
            if ir.parameter_name(node.weight) in tables
        }
        for node in nodes:
            if node.name not in values and node.inputs and all(name in values for name in node.inputs):
                run(graph, [node], values, {}, torch.float64)
        return {name: value.numpy() for name, value in values.items()}

    def rows(self, part: str, owner: Any, x: Array, tables: Mapping[str, Array] | None = None) -> Array:
        """The rows that a part of one input makes of wide rows int64[n, width]."""
        found = self.integers(part, owner, tables)
        graph = found.graph
        known = self.constants(graph, tables or {})
        brought = feed(found, lambda node: known[node] if node in known else x / (1 << nm.FRAC), {"seq": len(x)})
        return result(found, interpret(found, brought, {"seq": len(x)}))


def result(integers: Integers, values: Mapping[str, Any]) -> Array:
    """The first result, int64[rows, width]."""
    view = integers.results[integers.graph.outputs[0]]
    return integers.steps[view.base].layout.restore(values[view.base])


@dataclass
class InterpretedText(GoldenText):
    """The decoder, its layers interpreted."""

    interpreter: Interpreter = field(kw_only=True)

    def logits(self, rows: Array) -> Array:
        return self.interpreter.rows("head", self.model.text, rows)

    def _layer(
        self, w: QuantTextLayer, x: Array, table: Array, cache: LayerCache, mask: BlockMask | None, scored: bool
    ) -> Array:
        found, start = self.interpreter.integers("layer", w), cache.k8.shape[1]
        brought: dict[str, Any] = {}
        for name, step in found.steps.items():
            match step:
                case s.Input():
                    brought[name] = step.layout.arrange(x)
                case s.Table():
                    brought[name] = table[:, None]
                case s.Past():
                    rows, words = (cache.k8, cache.k_words) if step.key else (cache.v8, cache.v_raw)
                    brought[name] = Held(rows.swapaxes(0, 1), words.T)
        present = None if mask is None else mask.rows(start, len(x), start + len(x))
        brought |= {} if present is None else {s.PRESENT: present}
        values = interpret(found, brought, {"seq": len(x), "cache": start})
        (attend,) = found.of_kind(s.Attend)
        keys, held = values[attend.keys], values[attend.values]
        cache.k8, cache.k_words = keys.rows.swapaxes(0, 1), keys.words.T
        cache.v8, cache.v_raw = held.rows.swapaxes(0, 1), held.words.T
        if scored:
            query = values[attend.query], values[attend.entry][0][..., None]
            limit = start + 1 + np.arange(len(x))[:, None]
            self.scores = self._importance(query, cache, limit, present)[start:]
        return result(found, values)


@dataclass
class InterpretedVision(GoldenVision):
    """The vision tower and projector, interpreted."""

    interpreter: Interpreter = field(kw_only=True)

    def stem(self, patches: Array) -> Array:
        v, one = self.vision, 1 << nm.FRAC
        tables = {"class_embedding": v.class_embedding / one, "position_embedding.weight": v.position / one}
        rows = np.floor(np.asarray(patches, np.float64) * one + 0.5)
        return self.interpreter.rows("stem", v, rows, tables)

    def project(self, x: Array) -> Array:
        return self.interpreter.rows("projector", self.vision, x)

    def _layer(self, w: QuantVisionLayer, x: Array) -> Array:
        found = self.interpreter.integers("vision_layer", w)
        (source,) = found.of_kind(s.Input)
        values = interpret(found, {source.name: source.layout.arrange(x)}, {"seq": len(x)})
        (attend,) = found.of_kind(s.Attend)
        hold = found.steps[attend.keys]
        assert isinstance(hold, s.Hold)
        raws = (values[entry][0][..., None] for entry in (attend.entry, hold.entry))
        q_raw, k_raw = raws
        self.saliency = class_attention(values[attend.query], q_raw, values[attend.keys].rows, k_raw)
        return result(found, values)
