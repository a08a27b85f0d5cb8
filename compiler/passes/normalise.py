"""Canonical form: flattened weights are weights, views are reshapes, dead values go."""

from math import prod

from .. import ir


def normalise(graph: ir.Graph) -> None:
    for node in list(graph.nodes.values()):
        source = graph.nodes[node.inputs[0]] if node.inputs else None
        if node.op == "flatten" and source is not None and source.weight:
            node.op, node.weight, node.inputs = "input", source.weight, ()
            node.attributes["matrix"] = (source.shape[0], prod(source.shape[1:]))
        elif node.op == "view":
            node.op = "reshape"
    graph.drop_dead()
