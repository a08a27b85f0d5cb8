"""How every kind of step is lowered. What is not here is a slot of a vector pass: the pass former takes it."""

from collections.abc import Callable

from ..integer import steps as s
from .attend import lower_attention
from .body import Body
from .lower import PhaseLowering

LOWERED: dict[type[s.Step], Callable] = {
    s.Product: PhaseLowering.product,
    s.ToInt8: PhaseLowering.int8,
    s.Reduction: lambda lowering, step: lowering.former.reduce(step),
    s.SumGroups: PhaseLowering.sum_groups,
    s.Regrouped: PhaseLowering.regroup,
    s.Hold: PhaseLowering.hold,
    s.Attend: lower_attention,
}


def lower_phase(lowering: PhaseLowering) -> Body:
    """All instructions of a tile of the phase."""
    for name in lowering.phase.loads:
        lowering.load(lowering.steps[name])
    for name in lowering.phase.steps:
        step = lowering.steps[name]
        if type(step) in LOWERED:
            LOWERED[type(step)](lowering, step)
        else:
            lowering.former.lane(step)
    for name in lowering.phase.stores:
        lowering.store(name)
    return lowering.body
