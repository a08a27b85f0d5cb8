"""A part of LLaVA as the list of operators that the hand-written kernels compute, read from its graph.

A kernel computes more than one node: attention with its projections and caches, for example, is one `ir.Attention`.
Kernels hand rows from one to the next, so the operators have to be a chain, in which residuals add to the rows as they
were after the residual before:

    x -> norm -> attention -> residual -> norm -> mlp -> residual -> result
     \\________________________/       \\________________/

What is no such chain is refused. Any module at all goes through `alula.compile`, which needs no kernel for it.
"""

import math
from dataclasses import dataclass

from torch import nn

from hw.spec.errors import UserError

from . import ir
from .graph.ir import ON_DEVICE, Graph, Node
from .graph.legal import described


@dataclass(frozen=True)
class Found:
    """An operator that a kernel computes. node: gives its result; x: what it reads; stream: what a residual adds to."""

    op: ir.Fused
    node: Node
    x: str
    stream: str = ""


@dataclass(frozen=True)
class Heads:
    """An operand of attention: heads of a linear layer of the rows `x`, rotated where there are tables, behind `past`
    if there is."""

    x: str
    linear: ir.Linear
    heads: int
    head_dim: int
    tables: tuple[str, ...]
    past: str


def recognise(part: str, graph: Graph, roles: dict[str, str]) -> list[ir.Fused]:
    """The part's operators in order. roles: the graph's inputs by what they are for, the rows first.

    UserError, one line, for what no kernel computes: it names the part, the module, the operator, shape and line.
    """
    return _Recogniser(part, graph, roles).run()


class _Recogniser:
    def __init__(self, part: str, graph: Graph, roles: dict[str, str]) -> None:
        self.part, self.graph, self.roles = part, graph, roles
        self.found: dict[str, Found] = {}
        self.inside: set[str] = set()
        """Nodes that belong to an operator without being its result."""
        self.reasons: dict[str, str] = {}
        """Why a node belongs to none."""

    def run(self) -> list[ir.Fused]:
        self._check_inputs()
        take = {
            "norm": self._norm,
            "linear": self._linear,
            "activation": self._activation,
            "mul": self._gated,
            "attention": self._attention,
            "add": self._sum,
        }
        for node in self.graph.device():
            if node.op in take:
                take[node.op](node)
        self._check_leftovers()
        last = self._check_chain()
        self._check_results(last)
        ops = [found.op for found in self.found.values()]
        self._check_names(ops)
        return ops

    # --- operators ---------------------------------------------------------------------------------------

    def _norm(self, node: Node) -> None:
        a, x = node.arguments, self.graph.nodes[node.inputs[0]]
        weight, bias = self._parameter(node, "weight"), self._parameter(node, "bias")
        if len(x.shape) != 2:
            raise self._refused(node, "kernels normalise whole rows")
        if not weight or a.get("epsilon") is None:
            raise self._refused(node, "kernels take norms whose weight is a parameter, and an epsilon")
        path = ir.parameter_path(weight)
        wanted = f"{path}.bias" if a["kind"] == "layer" else ""
        if ir.parameter_name(bias) != wanted:
            raise self._refused(node, "kernels take layer norms with a bias, and rms norms without one")
        self._add(node, ir.Norm(path, a["kind"], int(x.shape[-1]), float(a["epsilon"])), x.name)

    def _linear(self, node: Node) -> None:
        weight, bias = self._parameter(node, "weight"), self._parameter(node, "bias")
        path = ir.parameter_path(weight)
        own = "bias" not in node.arguments or (path and ir.parameter_name(bias) == f"{path}.bias")
        if not own or ir.parameter_name(weight) != f"{path}.weight" or not path:
            raise self._refused(node, "kernels take weights and biases that are parameters, not computed from them")
        n_out, n_in = self.graph.nodes[node.arguments["weight"].name].shape
        self._add(node, ir.Linear(path, int(n_in), int(n_out), "bias" in node.arguments), node.inputs[0])

    def _activation(self, node: Node) -> None:
        function, source = node.arguments["function"], self._single_linear(node.inputs[0])
        if function in ("gelu", "quick_gelu") and source is not None:
            self._absorb(source)
            self._add(node, ir.PlainMlp(source.op, function), source.x)  # type: ignore[arg-type]

    def _gated(self, node: Node) -> None:
        """silu(gate) * up, in either order."""
        for gate_name, up_name in (node.inputs, node.inputs[::-1]):
            silu, up = self.graph.nodes[gate_name], self._single_linear(up_name)
            if silu.op != "activation" or silu.arguments["function"] != "silu" or up is None:
                continue
            gate = self._single_linear(silu.inputs[0])
            if gate is None or gate.x != up.x or len(self.graph.users(silu.name)) > 1:
                continue
            assert isinstance(gate.op, ir.Linear) and isinstance(up.op, ir.Linear)
            if up.op.bias:
                raise self._refused(node, f"{up.op.name} has a bias, kernels take gates with biases only")
            self._absorb(gate, up)
            self.inside.add(silu.name)
            self._add(node, ir.GatedMlp(gate.op, up.op), gate.x)
            return

    def _sum(self, node: Node) -> None:
        """A residual, in either order, or the tokens of a tower: a class token ahead of rows, plus positions."""
        if node.arguments.get("alpha", 1) != 1:
            raise self._refused(node, "kernels add operands as they are")
        for stream, branch in (node.inputs, node.inputs[::-1]):
            found = self._single_linear(branch)
            if found is not None and self.graph.nodes[stream].kind == ON_DEVICE:
                self._absorb(found)
                self._add(node, ir.Residual(found.op), found.x, stream)  # type: ignore[arg-type]
                return
        self._tokens(node)

    def _tokens(self, node: Node) -> None:
        joined = self.graph.nodes[node.inputs[0]]
        positions = self._parameter(node, "y")
        if joined.op != "cat" or len(self.graph.users(joined.name)) > 1 or not positions:
            return
        parts = [self.graph.nodes[ref.name] for ref in joined.arguments["parts"]]
        if len(parts) != 2 or joined.arguments["axis"] != 0 or parts[1].kind != ON_DEVICE:
            self.reasons[joined.name] = "kernels put one class token ahead of the rows"
            return
        first = self._behind(parts[0], "unsqueeze", "reshape", "view")
        if first.op == "parameter" and first.shape == joined.shape[1:]:
            self.inside.add(joined.name)
            names = (ir.parameter_name(self._first_name(weight)) for weight in (first.weight, positions))
            self._add(node, ir.Tokens(*names), parts[1].name)

    # --- attention ---------------------------------------------------------------------------------------

    def _attention(self, node: Node) -> None:
        query, key, values = (self._heads(node, name) for name in "qkv")
        self._check_attention(node, query, key, values)
        rows = self._only_user(node, "permute", order=[1, 0, 2])
        result = rows and self._only_user(rows, "reshape")
        width = query.heads * query.head_dim
        if rows is None or result is None or tuple(result.shape[1:]) != (width,):
            raise self._refused(node, "its heads have to end up side by side in rows, once")
        self.inside |= {node.name, rows.name}
        op = ir.Attention(
            query.linear,
            key.linear,
            values.linear,
            query.heads,
            key.heads,
            query.head_dim,
            rope=bool(query.tables),
            causal=bool(key.past),
        )
        self._add(result, op, query.x)

    def _heads(self, attention: Node, operand: str) -> Heads:
        """An operand, followed back to its linear layer."""
        node = start = self.graph.nodes[attention.arguments[operand].name]
        past, tables = "", tuple[str, ...]()
        if node.op == "append" and operand != "q":
            self.inside.add(node.name)
            past, node = node.arguments["past"].name, self.graph.nodes[node.arguments["new"].name]
        if node.op == "rope" and node.arguments["style"] == "half" and node.arguments["width"] == node.shape[-1]:
            self.inside.add(node.name)
            tables = (node.arguments["cos"].name, node.arguments["sin"].name)
            node = self.graph.nodes[node.inputs[0]]
        if node.op == "permute" and node.arguments["order"] == [1, 0, 2]:
            heads, rows = node, self.graph.nodes[node.inputs[0]]
            linear = self.found.get(rows.inputs[0]) if rows.op == "reshape" else None
            if linear is not None and isinstance(linear.op, ir.Linear):
                self.inside |= {heads.name, rows.name}
                self._absorb(linear)
                return Heads(linear.x, linear.op, int(heads.shape[0]), int(heads.shape[2]), tables, past)
        name = {"q": "query", "k": "key", "v": "value"}[operand]
        raise self._refused(
            attention,
            f"its {name} is the result of {node.op if node.op != 'permute' else start.op}, it has to be the heads of a "
            "linear layer of the rows, rotated as a whole or not",
        )

    def _check_attention(self, node: Node, query: Heads, key: Heads, values: Heads) -> None:
        """UserError for what kernels cannot do about these operands."""
        a = node.arguments
        scale, shape = float(a["scale"]), (key.heads, key.head_dim)
        given = [*zip(("cos", "sin"), query.tables, strict=False), *zip(("cos", "sin"), key.tables, strict=False)]
        given += [(name, past) for name, past in (("past_k", key.past), ("past_v", values.past)) if past]
        others = [(name, other) for name, other in given if self.roles.get(name) != other]
        rules = (
            (query.x == key.x == values.x, "queries, keys and values are of different rows"),
            (
                math.isclose(scale, query.head_dim**-0.5, rel_tol=1e-12),
                f"scale is {scale:g}, kernels divide by the root of head_dim {query.head_dim}",
            ),
            ("softcap" not in a, "kernels have no soft cap"),
            (
                bool(query.tables) == bool(key.tables) and not values.tables,
                "queries and keys have to be rotated, or neither, and values never",
            ),
            (
                not others,
                others and f"{others[0][0]} is {others[0][1]}, it has to be the input {others[0][0]} as it is",
            ),
            (bool(key.past) == bool(values.past), "keys and values have to lie behind a cache, or neither"),
            ("mask" not in a, "its mask is neither absent nor that of a causal attention"),
            (bool(a.get("causal")) == bool(key.past), "attention over a cache has to be causal, and no other"),
            (
                (values.heads, values.head_dim) == shape and query.head_dim == key.head_dim,
                f"keys are {shape} (heads, width), values {(values.heads, values.head_dim)}",
            ),
            (query.heads % key.heads == 0, f"{query.heads} query heads do not share {key.heads} key heads"),
        )
        if why := next((str(reason) for holds, reason in rules if not holds), ""):
            raise self._refused(node, why)

    # --- checks ------------------------------------------------------------------------------------------

    def _check_inputs(self) -> None:
        for name in self.graph.inputs:
            if not self.graph.users(name) and name not in self.graph.outputs:
                raise UserError(
                    f"module {self.part}: input {name} has no effect: leave it out of `forward` and of the inputs, "
                    "or use it"
                )

    def _check_leftovers(self) -> None:
        left = [n for n in self.graph.device() if n.name not in self.found and n.name not in self.inside]
        if left:
            worst = next((node for node in left if node.name in self.reasons), left[0])
            raise self._refused(worst, self.reasons.get(worst.name) or _why(worst))

    def _check_chain(self) -> str:
        """Each operator feeds the next one, residuals the one behind their branch. Returns the last one's node."""
        last = stream = self.graph.inputs[0]
        for found in self.found.values():
            if isinstance(found.op, ir.Residual) and found.stream != stream:
                what = f"it adds to {found.stream}, kernels to the rows as they were after the residual before"
                raise self._refused(found.node, what)
            if found.x != last:
                what = f"it works on {found.x}, kernels on what came before it, {last}"
                raise self._refused(found.node, what)
            last = found.node.name
            stream = last if isinstance(found.op, ir.Residual) else stream
        return last

    def _check_results(self, last: str) -> None:
        """Rows first; behind them nothing, or the grown caches of the one attention."""
        caches = [
            node.arguments[name].name
            for node in self.graph.device()
            if node.op == "attention" and node.arguments.get("causal")
            for name in "kv"
        ]
        rows, *others = self.graph.outputs
        if not self.found or rows != last:
            raise UserError(
                f"module {self.part}: its first result is not what its last operator gives: return that one"
            )
        if others and others != caches:
            raise UserError(
                f"module {self.part}: its results are {', '.join(self.graph.outputs)}: return the rows alone, or the "
                "rows, all keys and all values of its one attention"
            )

    def _check_names(self, ops: list[ir.Fused]) -> None:
        """Records hold a parameter once."""
        names = [op.name for op in ir.linears(ops)] + [op.name for op in ir.norms(ops)]
        if twice := [name for name in names if names.count(name) > 1]:
            raise UserError(f"module {self.part}: the parameters of {twice[0]} are used twice: give each use its own")

    # --- the graph ---------------------------------------------------------------------------------------

    def _add(self, node: Node, op: ir.Fused, x: str, stream: str = "") -> None:
        self.found[node.name] = Found(op, node, x, stream)

    def _absorb(self, *parts: Found) -> None:
        """Operators that become part of another one."""
        for part in parts:
            self.found.pop(part.node.name, None)
            self.inside.add(part.node.name)

    def _single_linear(self, name: str) -> Found | None:
        """The linear layer that gives this node's value, if nobody else reads it."""
        found = self.found.get(name)
        alone = len(self.graph.users(name)) == 1 and name not in self.graph.outputs
        return found if found is not None and isinstance(found.op, ir.Linear) and alone else None

    def _only_user(self, node: Node, op: str, **arguments) -> Node | None:
        users = self.graph.users(node.name)
        alike = len(users) == 1 and users[0].op == op and node.name not in self.graph.outputs
        return users[0] if alike and all(users[0].arguments[k] == v for k, v in arguments.items()) else None

    def _parameter(self, node: Node, operand: str) -> str:
        """State name of the parameter that an operand is, its axes behind the first joined or not; empty if none."""
        name = node.operand(operand)
        if name is None:
            return ""
        source = self._behind(self.graph.nodes[name], "flatten")
        return self._first_name(source.weight) if source.op == "parameter" else ""

    def _behind(self, node: Node, *views: str) -> Node:
        """The node that a constant is a view of."""
        while node.op in views and len(node.inputs) == 1:
            node = self.graph.nodes[node.inputs[0]]
        return node

    def _first_name(self, state: str) -> str:
        """The first name of a parameter or buffer that may have several."""
        module = self.graph.module
        assert isinstance(module, nn.Module)
        every = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
        wanted = dict(every).get(state)
        return next((name for name, tensor in every if tensor is wanted), state)

    def _refused(self, node: Node, why: str) -> UserError:
        return UserError(
            f"part {self.part}, {described(node)}: {why}: change it, or compile the module by `alula compile FILE.py`"
        )


def _why(node: Node) -> str:
    """Why no kernel computes a node."""
    match node.op:
        case "activation":
            return f"kernels compute gelu, quick_gelu and silu(gate) * up, here is {node.arguments['function']}"
        case "mul":
            return "kernels multiply silu(gate) by up"
        case "scale":
            return f"kernels multiply by no number, here by {node.arguments['factor']:g}"
    return "no kernel computes it"
