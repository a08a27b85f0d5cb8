"""Tables that are looked up by numbers of a run: embeddings of tokens."""

from ..edit import Editor
from ..ir import Ref


def find_lookups(e: Editor) -> None:
    """embedding(table, ids), and table[ids], where ids come from an input.

    The host brings the rows. What is computed of them is the machine's, as if the rows were an input.
    """
    inputs = set(e.graph.inputs)
    for node in list(e.graph.nodes.values()):
        a = node.arguments
        if node.target is None or node.op not in ("embedding", "index", "index_select"):
            continue
        table, places = a.get("weight") or a.get("self") or a.get("input"), a.get("indices") or a.get("index")
        if isinstance(places, list | tuple):
            places = places[0] if len(places) == 1 else None
        if not isinstance(table, Ref) or not isinstance(places, Ref) or not e.is_constant(table):
            continue
        whole = node.op != "index_select" or int(a.get("dim", 0)) == 0
        if whole and len(e.graph.nodes[table.name].shape) == 2 and inputs & e.graph.ancestors(places.name):
            e.turn(node, "lookup", table=table, index=places)
