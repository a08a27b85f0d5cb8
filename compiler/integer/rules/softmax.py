"""Softmax over rows (operator 7 of docs/machine.md without values)."""

from hw.spec import numerics as nm
from hw.spec.isa import Fin, Func, Reduce, Row

from ...graph.ir import Node
from .. import steps as s
from ..translate import Translator, rule
from ..views import View


@rule("softmax")
def softmax(t: Translator, node: Node) -> View:
    """2**(x log2 e - max) over its sum."""
    name = node.arguments["x"].name
    x = t.rows(name)
    scores = t.then(s.ScaleAll, x, nm.encode_scale(nm.LOG2_E / t.steps[x].mult), mult=1.0)
    top = t.entry(scores, Reduce.MAX)
    power = t.then(s.Function, t.then(s.SubtractRows, scores, top), Func.EXP2)
    total = t.entry(power, Reduce.SUM, Fin.RECIP)
    return View(t.then(s.ScaleRows, power, total, Row.FIN, -nm.FRAC), t.view(name).axes)
