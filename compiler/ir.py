"""The operators that hand-written kernels compute, each made of several nodes of a graph (`compiler.recognise`).

Their meaning is in `compiler.meaning`. Kernels are selected by the operators' types, and read nothing but their
attributes.
"""

from dataclasses import dataclass

from hw.spec.weights import LEAST_GROUP, ceil_div


def parameter_name(weight: str) -> str:
    """A parameter's state name as fused operators and checkpoints have it."""
    return weight.removeprefix("embeddings.")


def parameter_path(weight: str) -> str:
    """A parameter's path without its leaf: what fused operators are called."""
    return parameter_name(weight).rpartition(".")[0]


@dataclass(frozen=True)
class Norm:
    """kind 'rms' or 'layer' over `width`; `name` is the weight's path without `.weight`."""

    name: str
    kind: str
    width: int
    epsilon: float = 1e-5


@dataclass(frozen=True)
class Linear:
    """float[rows, n_in] -> [rows, n_out]; `name` is the weight's path without `.weight`."""

    name: str
    n_in: int
    n_out: int
    bias: bool = False


@dataclass(frozen=True)
class Attention:
    """q, k, v projections of the normalised rows, optional RoPE, causal or not; leaves heads side by side."""

    q: Linear
    k: Linear
    v: Linear
    heads: int
    kv_heads: int
    head_dim: int
    rope: bool
    causal: bool


@dataclass(frozen=True)
class Residual:
    """rows += linear(quantised rows)."""

    linear: Linear


@dataclass(frozen=True)
class GatedMlp:
    """silu(gate(x)) * up(x)."""

    gate: Linear
    up: Linear


@dataclass(frozen=True)
class PlainMlp:
    """func(fc(x)), func 'gelu' or 'quick_gelu'."""

    fc: Linear
    func: str


@dataclass(frozen=True)
class Tokens:
    """A class token ahead of the patches' rows, and a position's row added to each; both are parameters' names."""

    first: str
    positions: str


Fused = Norm | Linear | Attention | Residual | GatedMlp | PlainMlp | Tokens


def linears(ops: list) -> list[Linear]:
    """Linear layers of fused operators, in the order of their weight streams."""
    found: list[Linear] = []
    for op in ops:
        match op:
            case Attention():
                found += [op.k, op.v, op.q]
            case Residual():
                found.append(op.linear)
            case GatedMlp():
                found += [op.gate, op.up]
            case PlainMlp():
                found.append(op.fc)
            case Linear():
                found.append(op)
    return found


def streams(ops: list, lanes: int) -> list[tuple[Linear, ...]]:
    """Linear layers by the weight stream that holds their rows, in order.

    gate and up share one, so that up's rows fill gate's last step; gate's must end with a vector word.
    """
    joint = {op.gate: op.up for op in ops if isinstance(op, GatedMlp) and op.gate.n_out % lanes == 0}
    return [(op, joint[op]) if op in joint else (op,) for op in linears(ops) if op not in joint.values()]


UP_SLICES = 3
"""Passes that up's outputs take behind gate's last step: more would make the last slice shorter than the vector unit's
latency is worth for a single token."""


def up_slices(steps: int, grouped: bool) -> list[int]:
    """Output-block steps of the slices of a gated layer's up, of so many steps. Of sparse weights the last slice is a
    group that just keeps the chains busy, and one slice the rest."""
    if grouped:
        last = LEAST_GROUP if steps >= 2 * LEAST_GROUP else steps
        return [size for size in (steps - last, last) if size]
    found = list[int]()
    for number in reversed(range(UP_SLICES)):
        found.append(ceil_div(steps - sum(found), number + 1))
    return [size for size in found if size]


def norms(ops: list) -> list[Norm]:
    return [op for op in ops if isinstance(op, Norm)]
