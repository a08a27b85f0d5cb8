"""Modules that are called in several ways: one program, one set of weights, and state that stays between runs."""

import inspect
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import alula
from alula.module_entry import RESERVED
from alula.module_source import read_source
from hw.spec.errors import UserError

MODEL = Path(__file__).parents[2] / "examples" / "own_model.py"
NAMES = ("k0", "v0", "k1", "v1")
LARGEST_ERROR = 0.03
WIDTH = 32


@cache
def model() -> tuple[nn.Module, "alula.Program"]:
    """(the example's module, its program)."""
    source = read_source(f"{MODEL}:Model")
    return source.module, alula.compile(source.module, entries=source.entries)


def distance(got: np.ndarray, want: Tensor) -> float:
    return float(np.sqrt(np.mean((got - want.numpy()) ** 2) / np.mean(want.numpy() ** 2)))


# --- sessions --------------------------------------------------------------------------------------------


def test_a_session_is_what_torch_computes_with_its_own_caches():
    """Two pictures, each with a conversation; the caches of the second one begin anew."""
    module, program = model()
    torch.manual_seed(1)
    for turns in ((5, 3), (11,)):
        session, state = program.session("cycle"), [torch.zeros(4, 0, 16)] * 4
        patches = torch.randn(16, 48)
        with torch.no_grad():
            visual = module.encode(patches)
        (found,) = session.run("encode", {"patches": patches}).results
        assert distance(found, visual) < LARGEST_ERROR
        for length in turns:
            text = torch.randn(length, 64)
            with torch.no_grad():
                want, *state = module.prefill(visual, text, **dict(zip(NAMES, state, strict=True)))
            (found,) = session.run("prefill", {"text": text}).results
            assert distance(found, want) < LARGEST_ERROR
            for _ in range(3):
                x = torch.randn(1, 64)
                with torch.no_grad():
                    want, *state = module.decode(x, **dict(zip(NAMES, state, strict=True)))
                run = session.run("decode", {"x": x})
                assert distance(run.results[0], want) < LARGEST_ERROR and run.cycles


def test_state_is_what_the_runs_before_left():
    """Other visual tokens in the machine, other logits: nothing comes from the examples by mistake."""
    _, program = model()
    found = []
    for seed in (1, 2):
        session, text = program.session(), torch.ones(3, 64)
        torch.manual_seed(seed)
        session.run("encode", {"patches": torch.randn(16, 48)})
        session.run("prefill", {"text": text})
        found.append(session.run("decode", {"x": torch.ones(1, 64)}).results[0])
    assert not np.array_equal(*found)


def test_a_cache_elsewhere_is_seen(monkeypatch):
    """The check of a session is one: a decode step that reads another cache does not pass, though it does by itself."""
    source = read_source(f"{MODEL}:Model")
    program = alula.compile(source.module, entries=source.entries)
    from compiler.stages import state

    monkeypatch.setattr(
        state.State, "cache", lambda self, integers, hold: self.memory.cache(hold.layout, 160, hold.key)
    )
    apart = alula.compile(source.module, entries=source.entries)
    for made, exact in ((program, True), (apart, False)):
        session = made.session()
        outcomes = [session.step(entry)[1] for entry in ("encode", "prefill", "decode")]
        assert [outcome.bit_exact for outcome in outcomes] == [True, True, exact]
        assert made.verify("functional", entry="decode")["bit_exact"]


def test_entries_share_weights_and_caches():
    _, program = model()
    alone = {name: alula.compile(*_alone(name)).lowered.memory.channel_at for name in ("encode", "prefill", "decode")}
    assert program.lowered.memory.channel_at == alone["encode"] + alone["decode"]
    prefill, decode = (program.lowered.entries[name] for name in ("prefill", "decode"))
    assert {c.base for c in prefill.caches.values()} == {c.base for c in decode.caches.values()}


def _alone(name: str):
    """`compile`'s arguments for an entry as a module of its own."""
    source = read_source(f"{MODEL}:Model")
    entry = source.entries[name]
    source.module.forward = getattr(source.module, name)
    return source.module, entry.inputs, entry.dynamic, entry.lengths


def test_lengths_of_several_entries():
    _, program = model()
    names = [case["name"] for case in program.verify("functional", seq=[2, 40], cache=[0, 24])["cases"]]
    assert names[:6] == [
        "encode: fixed lengths",
        *(f"prefill: seq {seq}, cache {cache}" for seq in (2, 40) for cache in (0, 24)),
        "decode: cache 0",
    ]
    assert program.simulate(entry="decode", cache=100).cycles < program.simulate(entry="prefill", seq=40).cycles


def test_a_cache_that_is_not_returned_stays_as_long_as_it_was():
    """Rows are tried behind the cache, as in speculation, and forgotten."""

    class Tries(Stateful):
        def attempt(self, x, past_k, past_v):
            return self.write(x, past_k, past_v)[0]

    program = alula.compile(Tries(), entries={"write": WRITE, "attempt": alula.Entry(x() | past(), **CACHE)})
    session, rows = program.session(), x()
    session.run("write")
    first, second = (session.run("attempt", rows).results[0] for _ in range(2))
    assert np.array_equal(first, second) and np.array_equal(session.run("write", rows).results[0], first)
    assert not np.array_equal(session.run("write", rows).results[0], first)


# --- state that one entry writes and another one reads ---------------------------------------------------


class CrossAttention(nn.Module):
    """Keys and values of a picture are made once, rotated or not; every row of text attends to them."""

    def __init__(self, rotated: bool) -> None:
        super().__init__()
        self.norm, self.rotated = nn.LayerNorm(WIDTH), rotated
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def _heads(self, x: Tensor, turn: bool = False) -> Tensor:
        x = x.view(-1, 2, 16).transpose(0, 1)
        if not turn:
            return x
        angles = torch.arange(x.shape[1])[:, None] * 0.5 ** torch.arange(8)
        angles = torch.cat((angles, angles), -1)
        return x * angles.cos() + torch.cat((-x[..., 8:], x[..., :8]), -1) * angles.sin()

    def encode(self, y, k, v):
        y = self.norm(y)
        k = torch.cat((k, self._heads(self.k(y), self.rotated)), 1)
        return k, torch.cat((v, self._heads(self.v(y))), 1)

    def read(self, x, k, v):
        q = self._heads(self.q(x), self.rotated)
        attended = functional.scaled_dot_product_attention(q, k, v)
        return x + self.o(attended.transpose(0, 1).reshape(-1, WIDTH))

    def extend(self, x, k, v):
        k, v = (
            torch.cat((k, self._heads(self.k(self.norm(x)))), 1),
            torch.cat((v, self._heads(self.v(self.norm(x)))), 1),
        )
        return self.read(x, k, v), k, v

    def read_swapped(self, x, k, v):
        return self.read(x, v, k)


def cross_entries(reader: str, **more) -> dict[str, "alula.Entry"]:
    torch.manual_seed(2)
    held = {"k": torch.randn(2, 5, 16), "v": torch.randn(2, 5, 16)}
    cached = {"k": {1: "cache"}, "v": {1: "cache"}}
    read = {"dynamic": cached | {"x": {0: "seq"}}, "lengths": {"cache": (1, 40), "seq": (1, 9)}} | more
    return {
        reader: alula.Entry({"x": torch.randn(3, WIDTH)} | held, **read),
        "encode": alula.Entry(
            {"y": torch.randn(7, WIDTH)} | held, cached | {"y": {0: "n"}}, {"cache": (0, 20), "n": (1, 20)}
        ),
    }


@pytest.mark.parametrize("rotated", [False, True])
def test_keys_that_another_entry_has_written(rotated):
    """In RTL: the writer has no attention, the reader appends nothing."""
    torch.manual_seed(3)
    module = CrossAttention(rotated)
    program = alula.compile(module, entries=cross_entries("read"))
    result = program.verify("rtl")
    assert result["bit_exact"] and result["cycle_exact"] and result["float_error"] < LARGEST_ERROR
    session, x, parts = program.session(), torch.randn(4, WIDTH), (torch.randn(13, WIDTH), torch.randn(6, WIDTH))
    with torch.no_grad():
        k = v = torch.zeros(2, 0, 16)
        for y in parts:
            assert session.run("encode", {"y": y}).results == []
            k, v = module.encode(y, k, v)
        assert distance(session.run("read", {"x": x}).results[0], module.read(x, k, v)) < LARGEST_ERROR


def test_an_entry_without_attention_holds_values_as_one_with_it():
    """Their factor is the same, so both may append to one cache."""
    torch.manual_seed(3)
    module, entries = CrossAttention(False), cross_entries("extend")
    program = alula.compile(module, entries=entries)
    session, x, y = program.session(), torch.randn(4, WIDTH), torch.randn(6, WIDTH)
    session.run("encode", {"y": y})
    with torch.no_grad():
        want, *_ = module.extend(x, *module.encode(y, *[torch.zeros(2, 0, 16)] * 2))
    assert distance(session.run("extend", {"x": x}).results[0], want) < LARGEST_ERROR


def test_a_cache_has_room_for_the_most_rows_of_any_entry():
    """The first entry needs the fewest; keys of the last one do not reach the values behind them."""
    few = {"dynamic": CACHE["dynamic"], "lengths": {"cache": (0, 8)}}
    many = {"dynamic": CACHE["dynamic"], "lengths": {"cache": (0, 300)}}
    entries = {
        "few": alula.Entry(x() | past(), **few, method="write"),
        "many": alula.Entry(x() | past(), **many, method="write"),
    }
    program = alula.compile(Stateful(), entries=entries)
    first, second = (
        alula.compile(Stateful(), entries={name: entries[name]}).lowered.memory.channel_at for name in entries
    )
    assert first < second == program.lowered.memory.channel_at
    assert program.verify("functional", entry="many", cache=300)["bit_exact"]


def test_keys_are_no_values_elsewhere():
    with pytest.raises(UserError, match=r"holds values .* holds keys|it is read as"):
        alula.compile(CrossAttention(False), entries=cross_entries("read_swapped") | cross_entries("read"))
    with pytest.raises(UserError, match="attention over cache keys: there may be 0"):
        alula.compile(CrossAttention(False), entries=cross_entries("read", lengths={"cache": (0, 9), "seq": (1, 9)}))


def test_rows_behind_rows_are_no_state_without_attention():
    """cat(past, new) that is a result, and one that a layer reads: rows that the host brings, and new ones."""

    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.k, self.o = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

        def forward(self, x: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
            rows = torch.cat((past, self.k(x)[None]), 1)
            return rows, self.o(torch.cat((past, x[None]), 1)[0])

    program = alula.compile(Joined(), {"x": torch.randn(4, WIDTH), "past": torch.randn(1, 3, WIDTH)})
    result = program.verify("cycle")
    assert result["bit_exact"] and result["float_error"] < LARGEST_ERROR


def test_inputs_beyond_the_parameters_have_names_of_their_own():
    """forward(x, **others), inputs in another order than the parameters; torch sees which is which."""

    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleDict({name: nn.Linear(WIDTH, WIDTH) for name in "abc"})

        def forward(self, x: Tensor, **others: Tensor) -> Tensor:
            return x[:1] + sum(self.layers[name](rows).mean(0, keepdim=True) for name, rows in others.items())

    inputs = {name: torch.randn(n, WIDTH) for name, n in (("b", 5), ("x", 4), ("a", 3), ("c", 3))}
    program = alula.compile(Sum(), inputs, {"a": {0: "n"}, "x": {0: "m"}}, {"n": (1, 20), "m": (1, 9)})
    assert program.verify("cycle", n=[1, 3, 17], m=[1, 9])["bit_exact"]
    assert program.verify("functional")["float_error"] < LARGEST_ERROR


# --- loops -----------------------------------------------------------------------------------------------


class Counted(nn.Module):
    """The same in two entries, of layers that repeat: a loop must not go on from one entry to the next."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(6))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + functional.relu(layer(x)).mean(0, keepdim=True)
        return x


def test_loops_end_with_their_entry():
    entry = alula.Entry({"x": torch.randn(8, WIDTH)})
    one = alula.compile(Counted(), entries={"a": entry})
    two = alula.compile(Counted(), entries={"a": entry, "b": entry})
    assert len(two.words) == 2 * len(one.words) and two.lowered.entries["b"].start == len(one.words)
    assert two.verify("cycle")["bit_exact"]


# --- refusals --------------------------------------------------------------------------------------------


class Stateful(nn.Module):
    """Entries that do not fit together, by their names."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.other = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))

    def _attend(self, x: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(self.q(x)[None], k, v)[0]

    def write(self, x, past_k, past_v):
        k, v = torch.cat((past_k, self.k(x)[None]), 1), torch.cat((past_v, self.v(x)[None]), 1)
        return self._attend(x, k, v), k, v

    def swapped(self, x, past_k, past_v):
        v, k = torch.cat((past_k, self.k(x)[None]), 1), torch.cat((past_v, self.v(x)[None]), 1)
        return self._attend(x, k, v), v, k

    def ignores(self, x, past_k):
        return self.other(x + past_k[0, :1])

    def rows(self, x):
        return self.other(x), self.q(x)

    def reads(self, x, rows):
        return self.other(x + rows)

    def masks(self, x, rows):
        k, v = self.k(x)[None], self.v(x)[None]
        return functional.scaled_dot_product_attention(self.q(x)[None], k, v, attn_mask=rows[:, :8] > 0)[0]

    def unused(self, x, rows):
        return self.other(x)


def x(n: int = 8) -> dict[str, Tensor]:
    return {"x": torch.randn(n, WIDTH)}


def past() -> dict[str, Tensor]:
    return {"past_k": torch.randn(1, 8, WIDTH), "past_v": torch.randn(1, 8, WIDTH)}


CACHE = {"dynamic": {"past_k": {1: "cache"}, "past_v": {1: "cache"}}, "lengths": {"cache": (0, 24)}}
WRITE = alula.Entry(x() | past(), **CACHE)
ROWS = alula.Entry(x())
TAKES = x() | {"rows": torch.randn(8, WIDTH)}


@pytest.mark.parametrize(
    ("entries", "text"),
    [
        ({"nothing": ROWS}, "has no method 'nothing'"),
        (
            {"write": WRITE, "swapped": alula.Entry(x() | past(), **CACHE)},
            "state past_k: entry swapped holds values of",
        ),
        (
            {"write": WRITE, "ignores": alula.Entry(x() | {"past_k": torch.randn(1, 8, WIDTH)})},
            "state past_k: it stays in the machine, and in entry ignores something else",
        ),
        ({"reads": alula.Entry(TAKES, takes={"rows": "rows"})}, "takes 'rows' from 'rows': give another entry (none)"),
        ({"rows": ROWS, "reads": alula.Entry(TAKES, takes={"rows": "rows.2"})}, "takes result 2 of entry rows"),
        ({"rows": ROWS, "reads": alula.Entry(TAKES, takes={"row": "rows"})}, "takes 'row', its inputs are x, rows"),
        ({"rows": ROWS, "reads": alula.Entry(TAKES, takes={"rows": "rows.a"})}, "the number of its result"),
        ({"rows": ROWS, "masks": alula.Entry(TAKES, takes={"rows": "rows"})}, "the host needs it for a mask"),
        ({"rows": ROWS, "unused": alula.Entry(TAKES, takes={"rows": "rows"})}, "no result depends on it"),
        (
            {"write": WRITE, "reads": alula.Entry(TAKES, takes={"rows": "write.1"})},
            "another entry takes it, it is state",
        ),
        ({}, "give one entry at least"),
    ],
)
def test_entries_that_do_not_fit_together_get_one_line(entries, text):
    with pytest.raises(UserError) as refusal:
        alula.compile(Stateful(), entries=entries)
    line = str(refusal.value)
    assert any(part in line for part in text.split("|")) and "\n" not in line


class Simple(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)

    def give(self, x):
        return self.inner(x), self.inner(x) * 1

    def take(self, a, b):
        return a * 2 + b

    def flat(self, a):
        return self.inner(a.reshape(-1, WIDTH))

    def mean(self, a):
        return self.inner(a).mean(0, keepdim=True)

    def others(self, x, **caches):
        return self.inner(x)

    def none(self, x):
        return ()


GIVE = alula.Entry(x(6), {"x": {0: "n"}}, {"n": (1, 9)})


def test_one_result_may_be_taken_twice():
    """Also where two results are one: the examples of both inputs are the same rows then."""
    for second in ("give.0", "give.1"):
        take = alula.Entry({"a": torch.randn(8, WIDTH), "b": torch.randn(8, WIDTH)}, takes={"a": "give", "b": second})
        program = alula.compile(Simple(), entries={"give": ROWS, "take": take})
        result = program.verify("functional")
        assert result["bit_exact"] and result["left_out"] == []


def test_a_mean_over_rows_that_another_entry_left():
    mean = alula.Entry({"a": torch.randn(6, WIDTH)}, {"a": {0: "m"}}, {"m": (1, 9)}, takes={"a": "give"})
    program = alula.compile(Simple(), entries={"give": GIVE, "mean": mean})
    session = program.session()
    for n in (1, 4, 9):
        given = session.run("give", n=n).results[0]
        got = session.run("mean").results[0]
        want = Simple.mean(_owner(program), torch.from_numpy(given).float()).detach()
        assert distance(got, want) < LARGEST_ERROR


def _owner(program: "alula.Program") -> nn.Module:
    module = program.entry("mean").graph.module
    assert module is not None
    return module


@pytest.mark.parametrize("shape", [(6, 2 * WIDTH), (7, WIDTH), (1, 6, WIDTH)])
def test_rows_are_taken_in_the_shape_in_which_they_were_left(shape):
    flat = alula.Entry({"a": torch.randn(*shape)}, takes={"a": "give"})
    with pytest.raises(UserError, match=r"entry give leaves \[6 x 32\], entry flat takes 'a' as"):
        alula.compile(Simple(), entries={"give": alula.Entry(x(6)), "flat": flat})


def test_state_has_to_be_there():
    flat = alula.Entry({"a": torch.randn(8, WIDTH)}, takes={"a": "give"})
    session = alula.compile(Simple(), entries={"flat": flat, "give": ROWS}).session()
    with pytest.raises(
        UserError, match="entry flat: a is not in the machine: run the entry that leaves or returns give"
    ):
        session.run("flat")
    session.run("flat", {"a": np.ones((8, WIDTH))})
    session.run("give", {"x": session.run("give").results[0]})
    session.run("flat")


def test_a_run_that_does_not_fit_is_left_out_with_its_reason():
    """prefill behind its own rows: its cache ends."""
    long = {"dynamic": CACHE["dynamic"], "lengths": {"cache": (0, 8)}}
    program = alula.compile(Stateful(), entries={"a": WRITE_AS["a"], "write": alula.Entry(x() | past(), **long)})
    result = program.verify("functional")
    assert result["bit_exact"] and len(result["left_out"]) == 1
    assert "cache = 16 is outside 0..8" in result["left_out"][0]


WRITE_AS = {"a": alula.Entry(x() | past(), **CACHE, method="write")}


@pytest.mark.parametrize(
    ("entries", "text"),
    [
        ([1], "entries is no dict of names"),
        ({1: ROWS}, "entries is no dict of names"),
        ({"give": {}}, "entry give is a dict: give an alula.Entry"),
        ({"give": alula.Entry(None)}, "entry give: inputs are tensors by name"),
        ({"give": alula.Entry(x(), method=print)}, "a method is a name"),
        ({"give": alula.Entry(x(), {"x": "n"})}, "dynamic must give names to axes"),
        ({"give": alula.Entry(x(), {"x": {"0": "n"}})}, "dynamic must give names to axes"),
        ({"give": alula.Entry(x(), {"x": {0: "n"}}, {"n": 8})}, "lengths must give the least and the largest"),
        ({"give": alula.Entry(x(), {"x": {0: "n n"}}, {"n n": (1, 8)})}, "a length is called 'n n'"),
        ({"give": alula.Entry(x(), {"x": {0: "last"}}, {"last": (1, 8)})}, "a length is called 'last'"),
        ({"give": alula.Entry(x(), takes=["x"])}, "takes must be a dict"),
        ({"inner": alula.Entry(x())}, "'inner' is a submodule of Simple"),
        ({"gvie": alula.Entry(x())}, "module Simple has no method 'gvie'"),
        ({"none": alula.Entry(x())}, "has no result"),
        ({"others": alula.Entry(x() | {"k0": torch.randn(3, 3)})}, "nothing reads 'k0'"),
    ],
)
def test_malformed_entries_get_one_line(entries, text):
    with pytest.raises(UserError) as refusal:
        alula.compile(Simple(), entries=entries)
    assert text in str(refusal.value) and "\n" not in str(refusal.value)


def test_malformed_lengths_get_one_line():
    program = alula.compile(Simple(), entries={"give": GIVE})
    for given, text in (({"n": []}, "n has no value"), ({"n": "3"}, "n is '3'"), ({"n": 2.5}, "n is 2.5")):
        with pytest.raises(UserError, match=text):
            program.verify("functional", **given)
    assert program.verify("functional", n=np.int64(3))["bit_exact"]
    with pytest.raises(UserError, match="'functionl' is no executor: choose one of functional, cycle, rtl"):
        program.verify("functionl")
    with pytest.raises(UserError, match="input x is a list: give a tensor"):
        program.session().run("give", {"x": [1]})


def test_lengths_may_be_called_as_no_argument_is():
    """They are keywords of these functions, beside the functions' own arguments."""
    from alula.api import Program, Session

    functions = (Program.verify, Program.simulate, Session.run, Session.step)
    own = {
        name for each in functions for name, p in inspect.signature(each).parameters.items() if p.kind != p.VAR_KEYWORD
    }
    assert own == set(RESERVED)


def test_compile_takes_inputs_or_entries():
    for given in ({}, {"inputs": x(), "entries": {"rows": ROWS}}):
        with pytest.raises(UserError, match="give either inputs or entries"):
            alula.compile(Stateful(), **given)


def test_the_second_of_several_results():
    program = alula.compile(Stateful(), entries={"rows": ROWS, "reads": alula.Entry(TAKES, takes={"rows": "rows.1"})})
    assert program.verify("cycle")["bit_exact"]


def test_sessions_refuse_what_does_not_fit():
    program = alula.compile(Stateful(), entries={"write": WRITE})
    session = program.session()
    for _ in range(3):
        session.run("write")
    session.run("write")  # behind 24 rows, as many as were compiled
    with pytest.raises(UserError, match=r"entry write, run 5 of the session: cache = 32 is outside 0\.\.24"):
        session.run("write")
    with pytest.raises(UserError, match="past_k is in the machine already: leave it out"):
        session.run("write", past())
    with pytest.raises(UserError, match=r"the machine has 32 rows of past_k, the entry takes 3"):
        session.run("write", cache=3)
    with pytest.raises(UserError, match=r"input x has the shape \(8, 3\): \(8, 32\) is needed"):
        program.session().run("write", {"x": torch.randn(8, 3)})
    with pytest.raises(UserError, match="no input is called 'y': choose of x, past_k, past_v"):
        program.session().run("write", {"y": torch.randn(8, 3)})
    with pytest.raises(UserError, match="has no entry 'read': choose of write"):
        session.run("read")
    small = alula.Entry(x() | {"rows": torch.randn(4, WIDTH)}, takes={"rows": "rows"}, method="gather")
    Stateful.gather = lambda self, x, rows: self.other(x[:4] + rows)
    any_rows = alula.Entry(x(), {"x": {0: "n"}}, {"n": (1, 9)})
    program = alula.compile(Stateful(), entries={"rows": any_rows, "gather": small})
    session = program.session()
    session.run("rows")
    with pytest.raises(UserError, match=r"the machine has 8 rows of rows\.0, the entry takes 4"):
        session.run("gather")
