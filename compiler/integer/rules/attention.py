"""Rotary positions, caches and attention (operators 5 to 8 of docs/machine.md)."""

from dataclasses import replace

from hw.spec import numerics as nm
from ref_model.quantise import ATTENTION_OUT_FACTOR

from ...graph.ir import Node
from .. import steps as s
from ..integers import Form
from ..plan import paired, query_factor
from ..steps import Layout
from ..translate import RULES, Translator, refused, rule
from ..views import View, heads_view


@rule("rope")
def rope(t: Translator, node: Node) -> View:
    """Pairs of lanes rotated; the layout of `x` has brought the two of a pair side by side."""
    name = node.arguments["x"].name
    x = t.heads(name)
    before = t.steps[x]
    a = node.arguments
    if before.layout.order != paired(before.layout.size, int(a["width"]), a["style"]):
        raise refused(node, "the channels of its operand lie in another order", "heads that are rotated once")
    nodes = (a["cos"].name, a["sin"].name)
    table_layout = Layout(1, before.layout.size, before.layout.order)
    table = t.add(
        s.Table,
        before.rows,
        table_layout,
        nodes=nodes,
        style=a["style"],
        width=int(a["width"]),
        name=f"{nodes[0]}.{nodes[1]}",
    )
    return View(t.then(s.Rotate, x, table), t.view(name).axes)


@rule("append")
def append(t: Translator, node: Node) -> View:
    """The new rows; attention makes state of them, or other entries do. What is neither is rows behind rows."""
    readers = {user.op for user in t.graph.users(node.name)}
    past, new = (node.arguments[name] for name in ("past", "new"))
    if "attention" not in readers and (readers or past.name not in t.roles):
        if len(node.shape) > 2 and any(size != 1 for size in node.shape[:-2]):
            what = f"no attention reads {past.name}, so it is neither keys nor values"
            raise refused(node, what, "an attention that reads it, in any entry, or rows without heads")
        return RULES["cat"](
            t, replace(node, op="cat", arguments={"parts": [past, new], "axis": node.arguments["axis"]})
        )
    if readers - {"attention"}:
        raise refused(node, "something else than attention reads it", "keys and values that attention reads")
    if not readers:
        _hold(t, node, t.roles[past.name])
    return t.view(new.name)


@rule("attention")
def attention(t: Translator, node: Node) -> View:
    a = node.arguments
    keys, k_mult, _ = _held(t, node, "k", key=True)
    values, v_mult, v_size = _held(t, node, "v", key=False)
    query = t.heads(a["q"].name)
    query = t.at_mult(query, query_factor(node) / k_mult)
    cap = nm.encode_scale(2 * float(a["softcap"]) * nm.LOG2_E) if a.get("softcap") else 0
    q8, entry = t.int8(query, whole=False)
    before = t.steps[query]
    if before.layout.order != t.steps[keys].layout.order:
        raise refused(node, "queries and keys have their channels in different orders", "both rotated, or both plain")
    n_keys = t.graph.nodes[a["k"].name].shape[-2]
    mask = _mask(t, node, before.rows, n_keys)
    layout = Layout(before.layout.groups, v_size)
    out = t.add(
        s.Attend,
        before.rows,
        layout,
        q8,
        entry,
        keys,
        values,
        mask,
        bool(a.get("causal", False)),
        n_keys,
        cap,
        mult=v_mult / ATTENTION_OUT_FACTOR,
    )
    return heads_view(out, layout.groups, before.rows, v_size)


def _held(t: Translator, node: Node, operand: str, key: bool) -> tuple[str, float, int]:
    """(state, multiplier, channels of a head) of keys or values."""
    source = t.graph.nodes[node.arguments[operand].name]
    if any(user.op == "append" for user in t.graph.users(source.name)) and source.op == "input":
        raise refused(node, f"it attends to {source.name} without the new rows", "attention behind the append")
    return _read(t, source, key) if source.name in t.forms else _hold(t, source, key)


def _hold(t: Translator, source: Node, key: bool) -> tuple[str, float, int]:
    """As `_held`, of rows that this entry computes."""
    new = source.arguments["new"].name if source.op == "append" else source.name
    x = t.heads(new)
    layout, past = t.steps[x].layout, ""
    if source.op == "append":
        x = t.at_mult(x, 1.0) if key else x
        past = _past(t, source.arguments["past"].name, Form(key, layout, t.steps[x].mult), source.name)
    x8, entry = t.int8(x, whole=False)
    held = t.add(s.Hold, source.shape[-2], layout, x8, entry, key, past, mult=t.steps[x].mult)
    if source.op == "append":
        t.holds[source.name] = held
    return held, t.steps[x].mult, layout.size


def _past(t: Translator, name: str, form: Form, reader: str = "") -> str:
    """What an input held before this run, in this form; reader: the node that appends to it, if there is one."""
    rows = t.graph.nodes[name].shape[-2]
    called = f"{reader or name}.past"
    return t.add(s.Past, rows, form.layout, node=name, key=form.key, reader=reader, mult=form.mult, name=called)


def _read(t: Translator, node: Node, key: bool) -> tuple[str, float, int]:
    """As `_held`, of state that another entry appends to."""
    form = t.forms[node.name]
    heads, _, size = node.shape[-3:]
    if form.key != key or (form.layout.groups, form.layout.size) != (heads, size):
        what, there = ("keys" if each else "values" for each in (key, form.key))
        raise refused(
            node,
            f"it is read as {what} of {heads} x {size} channels, another entry holds {there} of {form.layout.groups} x "
            f"{form.layout.size}",
            "what the other entry holds",
        )
    return _past(t, node.name, form), form.mult, form.layout.size


def _mask(t: Translator, node: Node, rows, n_keys) -> str:
    name = node.operand("mask")
    if name is None or node.arguments.get("causal"):
        return ""
    *heads, _, _ = t.graph.nodes[name].shape
    layout = Layout(int(heads[0]) if heads else 1, 1)
    return t.add(s.Mask, rows, layout, node=name, keys_length=n_keys, name=f"{name}.added")
