"""Canonical form: views are reshapes, dead values go."""

from .. import ir


def normalise(graph: ir.Graph) -> None:
    for node in graph.nodes.values():
        if node.op == "view":
            node.op, node.arguments = "reshape", {"self": node.arguments["self"], "shape": node.arguments["size"]}
            node.target = ir.torch_operator("reshape")
    graph.drop_dead()
