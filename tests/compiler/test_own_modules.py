"""Modules of one mechanism each, compiled and run: golden model, functional simulator, cycle simulator and RTL agree.

The modules are those of `benchmarks.zoo`. Here are some of every family; the slow tests run them all.
"""

from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import alula
from benchmarks.zoo import CASES
from hw.spec import config
from hw.spec.errors import UserError

LARGEST_ERROR = 0.03
"""Of what a module adds, in the root mean square; choices of routers aside."""
SOME = (
    "query-key-norm",
    "sliding-window",
    "interleaved-rotary",
    "attention-soft-cap",
    "relu-gated-mlp",
    "sandwich-norm",
    "grouped-norm",
    "top-2-experts",
    "two-layers",
    "siglip-head-72",
    "register-stem",
    "depthwise-convolution",
    "pixel-unshuffle",
    "bilinear-resize",
    "region-attention",
    "visual-vocabulary",
    "gated-fusion",
    "two-towers",
    "normed-towers",
    "token-gate",
    "merged-pairs",
    "exit-network",
)
IN_RTL = ("attention-soft-cap", "top-1-expert", "learned-selection", "linear-biases")
"""What nothing else in the tests runs in RTL: the sigmoid, choices by value, rows that the sequencer moves, a mask a
head."""
LONG = ("llama", "sliding-window", "head-dim-80", "cross-attention", "gated-fusion")
"""Modules that are run at the borders of their tiles."""


@cache
def program_of(name: str, config: str = "tiny") -> "alula.Program":
    case = CASES[name]
    return alula.compile(case.make(), case.inputs(), case.dynamic, case.lengths, config)


def agrees(name: str, last: str, **lengths) -> dict:
    result = program_of(name).verify(last, **lengths)
    differing = [(case["name"], case["first_difference"]) for case in result["cases"] if not case["bit_exact"]]
    assert result["bit_exact"], f"{name}: {differing}"
    assert result["cycle_exact"] in (True, None)
    if not CASES[name].router:
        assert result["float_error"] is None or result["float_error"] <= LARGEST_ERROR
    return result


@pytest.mark.parametrize("name", SOME)
def test_golden_equals_functional(name):
    agrees(name, "functional")


@pytest.mark.parametrize("name", IN_RTL)
def test_golden_equals_rtl(name):
    assert agrees(name, "rtl")["cycle_exact"]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.refused])
def test_every_module_in_rtl(name):
    assert agrees(name, "rtl")["cycle_exact"]


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.refused])
def test_refused_modules_say_why(name):
    """One line: the module, the operator, the shape, the line of the user's code, and what would be accepted."""
    with pytest.raises(UserError) as refusal:
        program_of(name)
    text = str(refusal.value)
    assert "\n" not in text and text.startswith("module ") and ".py:" in text and "operator" in text


@pytest.mark.parametrize("name", LONG)
def test_lengths_at_the_borders_of_tiles(name):
    """One program at 1, 2, and around the rows of its smallest tile."""
    program = program_of(name)
    tile = min(program.lowered.entries["forward"].tiles)
    most = program.entry().graph.lengths["seq"].most
    lengths = sorted({n for n in (1, 2, tile - 1, tile, tile + 1, 2 * tile + 3) if 1 <= n <= most})
    result = program.verify("cycle", seq=lengths)
    assert result["bit_exact"], [case["first_difference"] for case in result["cases"]]
    assert len({case["program_sha256"] for case in result["cases"]}) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", LONG)
def test_lengths_at_the_borders_of_tiles_in_rtl(name):
    program = program_of(name)
    tile, most = min(program.lowered.entries["forward"].tiles), program.entry().graph.lengths["seq"].most
    lengths = sorted({n for n in (1, 2, tile - 1, tile, tile + 1, 2 * tile + 3) if 1 <= n <= most})
    result = program.verify("rtl", seq=lengths)
    assert result["bit_exact"] and result["cycle_exact"]


@pytest.mark.parametrize(
    "name",
    [
        "head-dim-72",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("head-dim-80", "head-dim-96", "siglip-head-72")),
    ],
)
def test_heads_narrower_than_a_word(name):
    """On 64 lanes no head of these is whole words."""
    result = program_of(name, "u280").verify("cycle")
    assert result["bit_exact"]


@pytest.mark.parametrize("config", [pytest.param("small", marks=pytest.mark.slow), "u280"])
@pytest.mark.parametrize("name", ["region-attention", "depthwise-convolution", "learned-selection"])
def test_other_machines(name, config):
    """Words of 64 lanes pad groups of 48 and 16 channels."""
    assert program_of(name, config).verify("cycle")["bit_exact"]


# --- operators that the zoo does not have -----------------------------------------------------------------


class Argmax(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(48, 300)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x).argmax(-1)


class Choice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(48, 48)
        self.register_buffer("every_third", torch.arange(16)[:, None] % 3 == 0)

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(self.every_third, self.inner(x), x)


class Contraction(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(48, 3, 16) / 7)

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("nc,chd->nhd", x, self.weight)


class Squashed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(48, 64)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.inner(x)) - functional.sigmoid(x.mean(0)) @ self.inner.weight.t()


class HardSwish(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(48, 64), nn.Linear(64, 48)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(functional.hardswish(4 * self.inner(x)))


class JoinedRows(nn.Module):
    """Rows of a symbolic number behind a constant one and ahead of themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(1, 48))
        self.inner = nn.Linear(48, 48)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(torch.cat((self.first, self.inner(x), x)))


class Centred(nn.Module):
    """A sum, and a mean, over the channels of each row, both of either sign."""

    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean(-1, keepdim=True)) * x.sum(-1, keepdim=True)


class Broadcast(nn.Module):
    """One number a row against a constant row: a sum and a product, float[rows, 48] -> float[rows, 24]."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.row = nn.Linear(48, 1), nn.Parameter(torch.randn(24))

    def forward(self, x: Tensor) -> Tensor:
        one = self.inner(x)
        return self.row * one + (self.row - 0.5 * one)


FIXED = (Choice, Contraction, Squashed, HardSwish)
SYMBOLIC = (Argmax, JoinedRows, Centred, Broadcast)


@pytest.mark.parametrize("make", FIXED + SYMBOLIC)
def test_further_operators(make):
    torch.manual_seed(3)
    symbolic = make in SYMBOLIC
    dynamic, lengths = ({"x": {0: "seq"}}, {"seq": (1, 64)}) if symbolic else ({}, {})
    result = alula.compile(make(), {"x": torch.randn(16, 48)}, dynamic, lengths).verify("cycle")
    assert result["bit_exact"] and result["float_error"] <= LARGEST_ERROR


def test_argmax_takes_the_lowest_of_equal_values():
    """Also on the machine: its integers say which index."""
    module = Argmax()
    with torch.no_grad():
        module.head.weight.zero_()
        module.head.bias.zero_()
        module.head.bias[[7, 9]] = 1.0
    program = alula.compile(module, {"x": torch.randn(16, 48)})
    case = program.entry().case({})
    assert (program.entry().outputs(case, case.values)["argmax"] == 7).all()
    assert program.verify("functional")["bit_exact"]


def test_rows_with_equal_scores_are_taken_from_the_first_on():
    class Select(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.score = nn.Linear(48, 1)

        def forward(self, x: Tensor) -> Tensor:
            return x[torch.topk(self.score(x)[:, 0], 5).indices.sort().values]

    module = Select()
    with torch.no_grad():
        module.score.weight.zero_()
    program = alula.compile(module, {"x": torch.arange(16.0)[:, None].expand(16, 48).clone()})
    assert program.verify("cycle")["bit_exact"]
    case = program.entry().case({})
    (rows,) = program.entry().outputs(case, case.values).values()
    assert rows[:, 0].round().tolist() == [0, 1, 2, 3, 4]


def test_attention_over_inputs_alone():
    """Queries, keys and values that the host brings."""

    class Bare(nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return functional.scaled_dot_product_attention(q, k, v)

    torch.manual_seed(4)
    inputs = {name: torch.randn(2, n, 16) for name, n in (("q", 9), ("k", 21), ("v", 21))}
    result = alula.compile(Bare(), inputs).verify("cycle")
    assert result["bit_exact"] and result["float_error"] < LARGEST_ERROR


class Listed(nn.Module):
    """Rows by a list that comes with the run: some twice, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(48, 32)

    def forward(self, x: Tensor, places: Tensor) -> Tensor:
        return self.inner(functional.silu(self.inner(x))[places] @ self.inner.weight)


def test_rows_by_a_list_of_the_run():
    torch.manual_seed(3)
    inputs = {"x": torch.randn(16, 48), "places": torch.tensor([3, 1, 15, 0, 3])}
    dynamic, lengths = {"x": {0: "seq"}, "places": {0: "kept"}}, {"seq": (16, 40), "kept": (1, 8)}
    program = alula.compile(Listed(), inputs, dynamic, lengths)
    result = program.verify("rtl", seq=[16, 30], kept=[1, 5, 8])
    assert result["bit_exact"] and result["cycle_exact"] and result["float_error"] <= LARGEST_ERROR
    with pytest.raises(UserError, match=r"it cannot run on these inputs .*out of range"):
        program.entry().case({"kept": 1}, {"x": torch.randn(16, 48), "places": torch.tensor([16])})


REFUSED = {
    "symbolic channels": (
        lambda x: torch.softmax(x.t(), -1).t(),
        "its rows have seq channels: rows of a constant number of channels",
    ),
    "odd parts": (lambda x: torch.cat((x[:, :20], x), -1), "a part has 20 channels: parts of a multiple of 16"),
    "sums of both axes": (lambda x: x.mean(), "it goes over rows and channels: two sums"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_forms_that_the_integers_do_not_have(what):
    function, text = REFUSED[what]

    class Module(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return function(x)

    with pytest.raises(UserError) as refusal:
        alula.compile(Module(), {"x": torch.randn(8, 48)}, {"x": {0: "seq"}}, {"seq": (1, 64)})
    assert text in str(refusal.value) and "\n" not in str(refusal.value)


# --- refusals and bad input -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"inputs": {"y": torch.zeros(4, 48)}}, "inputs names 'y', forward takes x"),
        ({"inputs": {}}, "forward needs 'x'"),
        ({"dynamic": {"z": {0: "seq"}}, "lengths": {"seq": (1, 4)}}, "dynamic names 'z'"),
        ({"dynamic": {"x": {0: "seq"}}}, "the length 'seq' has no range"),
        ({"lengths": {"seq": (1, 4)}}, "no axis in dynamic has it"),
        ({"dynamic": {"x": {0: "seq"}}, "lengths": {"seq": (9, 4)}}, "give 0 <= least <= most"),
        ({"config": "u2800"}, "unknown configuration"),
    ],
)
def test_wrong_arguments_get_one_line(arguments, text):
    given = {"inputs": {"x": torch.zeros(4, 48)}, "config": "tiny"} | arguments
    with pytest.raises((UserError, ValueError)) as refusal:
        alula.compile(_Plain(), **given)
    assert text in str(refusal.value) and "\n" not in str(refusal.value)


class _Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(48, 48)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


def test_lengths_beyond_those_that_were_compiled():
    program = alula.compile(_Plain(), {"x": torch.zeros(4, 48)}, {"x": {0: "seq"}}, {"seq": (1, 8)})
    with pytest.raises(UserError, match=r"seq = 9 is outside 1\.\.8"):
        program.simulate(seq=9)
    with pytest.raises(UserError, match="no symbolic length 'rows': choose of seq"):
        program.simulate(rows=1)


def test_queues_that_reads_would_fill_are_refused():
    shallow = replace(config.get("tiny"), name="shallow", queue_depth=2)
    with pytest.raises(UserError, match="queue_depth = 2, programs of modules need queues of 4 instructions at least"):
        alula.compile(_Plain(), {"x": torch.zeros(4, 48)}, config=shallow)


def test_the_shallowest_queues_do_not_block():
    case = CASES["siglip"]
    shallow = replace(config.get("tiny"), name="shallow", queue_depth=4)
    program = alula.compile(case.make(), case.inputs(), case.dynamic, case.lengths, shallow)
    assert program.verify("cycle")["bit_exact"]


def test_rows_that_there_may_be_none_of_are_refused():
    with pytest.raises(UserError, match="the length seq may be 0, and rows are computed of it: let it be 1 at least"):
        alula.compile(_Plain(), {"x": torch.zeros(4, 48)}, {"x": {0: "seq"}}, {"seq": (0, 8)})


def test_a_module_that_does_not_fit():
    with pytest.raises(UserError, match="a tile needs more with"):
        alula.compile(
            nn.Sequential(nn.Linear(16, 60_000), nn.ReLU(), nn.Linear(60_000, 16)), {"input": torch.zeros(4, 16)}
        )


# --- what strangers wrote --------------------------------------------------------------------------------


class Inner(nn.Module):
    """One linear layer, and something behind it, float[rows, 48] -> float."""

    def __init__(self, function=lambda rows: rows) -> None:
        super().__init__()
        self.inner, self.function = nn.Linear(48, 48), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.inner(x))


ROWS = {"x": {0: "seq"}}


@pytest.mark.parametrize(
    ("function", "least"),
    [
        (lambda rows: rows[-1:], 1),
        (lambda rows: rows[-1], 1),
        (lambda rows: rows[2:], 3),
        (lambda rows: rows[:-1], 2),
        (lambda rows: rows[1:-1], 3),
        (lambda rows: rows[-4:], 4),
        (lambda rows: torch.cat((rows[1:], rows[:1])), 2),
        (lambda rows: rows[-(rows.shape[0] // rows.shape[0]) :], 1),
        (lambda rows: rows[[0, 2]], 3),
        (lambda rows: rows.index_select(0, torch.tensor([1, 1, 0])), 2),
    ],
)
def test_some_of_a_symbolic_number_of_rows(function, least):
    program = alula.compile(Inner(function), {"x": torch.randn(9, 48)}, ROWS, {"seq": (least, 40)})
    assert program.verify("cycle", seq=[least, least + 1, 40])["bit_exact"]
    assert program.verify("functional")["float_error"] < LARGEST_ERROR


@pytest.mark.parametrize(("place", "least"), [(slice(-4, None), 1), (slice(-5, None), 4), (slice(-3, -1), 2)])
def test_slices_from_the_end_need_as_many_rows(place, least):
    """torch takes what there is, and its shape would be another one."""
    with pytest.raises(UserError, match=f"which may be {least}: let it be {-place.start} at least"):
        alula.compile(Inner(lambda rows: rows[place]), {"x": torch.randn(9, 48)}, ROWS, {"seq": (least, 20)})


@pytest.mark.parametrize(
    "function",
    [
        lambda rows: rows[:, : rows.shape[0]],
        lambda rows: rows[:, rows.shape[0] :],
        lambda rows: rows.view(-1, 3, 16)[:, :, : rows.shape[0]],
    ],
)
def test_a_symbolic_number_of_channels_gets_one_line(function):
    with pytest.raises(UserError, match="it takes a symbolic number of channels: a constant number of channels"):
        alula.compile(Inner(function), {"x": torch.randn(9, 48)}, ROWS, {"seq": (1, 9)})


@pytest.mark.parametrize("last", [False, True])
def test_a_symbolic_part_of_a_constant_number_of_rows(last):
    class As(Inner):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            rows = self.inner(x)
            return (rows[x.shape[0] - y.shape[0] :] if last else rows[: y.shape[0]]) + self.inner(y)

    inputs = {"x": torch.randn(12, 48), "y": torch.randn(5, 48)}
    program = alula.compile(As(), inputs, {"y": {0: "n"}}, {"n": (1, 12)})
    assert program.verify("cycle", n=[1, 5, 12])["bit_exact"]


def test_a_slice_as_long_as_another_input():
    class Last(Inner):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return torch.cat((self.inner(x), self.inner(y)))[-y.shape[0] :]

    inputs, dynamic = {"x": torch.randn(6, 48), "y": torch.randn(2, 48)}, {"x": {0: "n"}, "y": {0: "m"}}
    program = alula.compile(Last(), inputs, dynamic, {"n": (1, 20), "m": (1, 20)})
    assert program.verify("functional", n=[1, 6], m=[1, 2, 9])["bit_exact"]


class Tokens(nn.Module):
    """A language model from whole numbers, with learned positions and a cache."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(100, 48), nn.Embedding(64, 48)
        self.q, self.k, self.v, self.o = (nn.Linear(48, 48) for _ in range(4))

    def forward(self, ids: Tensor, past_k: Tensor, past_v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        n, start = ids.shape[0], past_k.shape[1]
        x = self.token(ids) + self.position(torch.arange(start, start + n))
        q, k, v = (layer(x).view(n, 3, 16).transpose(0, 1) for layer in (self.q, self.k, self.v))
        k, v = torch.cat((past_k, k), 1), torch.cat((past_v, v), 1)
        return x + self.o(functional.scaled_dot_product_attention(q, k, v).transpose(0, 1).reshape(n, 48)), k, v


def test_what_follows_an_embedding_is_the_machines_work():
    """The host looks rows up, and computes nothing of them."""
    past = {"past_k": torch.randn(3, 2, 16), "past_v": torch.randn(3, 2, 16)}
    inputs = {"ids": torch.tensor([1, 2, 99])} | past
    dynamic = {"ids": {0: "n"}, "past_k": {1: "cache"}, "past_v": {1: "cache"}}
    program = alula.compile(Tokens(), inputs, dynamic, {"n": (1, 20), "cache": (0, 20)})
    result = program.verify("cycle", n=[1, 20], cache=[0, 20])
    assert result["bit_exact"]
    assert [row["operator"] for row in result["operators"]].count("linear") >= 3
    again = alula.compile(Inner(lambda rows: rows.relu()), {"x": torch.randn(4, 48)})
    assert len(again.entry().integers.steps) > 3


@pytest.mark.parametrize("rows", [1, 4, 5])
@pytest.mark.parametrize("neighbours", [False, True])
def test_rotary_positions_ahead_of_the_transpose(rows, neighbours):
    """[rows, heads, channels] with tables [rows, 1, channels], also where there are as many rows as heads."""

    def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        if neighbours:
            even, odd = x[..., ::2], x[..., 1::2]
            return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)
        low, high = x.chunk(2, -1)
        return x * cos + torch.cat((-high, low), -1) * sin

    class Rotated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v = (nn.Linear(48, 64) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            n = x.shape[0]
            angles = torch.arange(n)[:, None] * torch.linspace(1, 0.1, 8)
            angles = (angles if neighbours else torch.cat((angles, angles), -1))[:, None]
            q, k, v = (layer(x).view(n, 4, 16) for layer in (self.q, self.k, self.v))
            q, k = (turned(part, angles.cos(), angles.sin()) for part in (q, k))
            q, k, v = (part.transpose(0, 1) for part in (q, k, v))
            return functional.scaled_dot_product_attention(q, k, v).transpose(0, 1).reshape(n, 64)

    result = alula.compile(Rotated(), {"x": torch.randn(rows, 48)}).verify("functional")
    assert result["bit_exact"] and result["float_error"] < LARGEST_ERROR


def test_compiling_leaves_the_module_as_it_was():
    """Also one with a submodule under two names, in training, with a `forward` of its own."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(48, 48)
            self.b = nn.Sequential(self.a, nn.Dropout())

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).relu())

    module, inputs = Twice().train(), {"x": torch.randn(4, 48)}
    module.forward = own = lambda x: module.a(x)
    module.other = lambda x: module.b(x)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    alula.compile(module, entries={"other": alula.Entry(inputs), "forward": alula.Entry(inputs)})
    assert module.forward is own and module.training and module.b[1].training
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    assert isinstance(module.a.weight, nn.Parameter)


def test_caches_that_attention_reads_too_early_or_never():
    class Early(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.k = nn.Linear(48, 48)

        def forward(self, x: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
            k = self.k(x).view(-1, 3, 16).transpose(0, 1)
            return functional.scaled_dot_product_attention(k, past, past), torch.cat((past, k), 1)

    class Never(Early):
        def forward(self, x: Tensor, past: Tensor) -> Tensor:
            return torch.cat((past, self.k(x).view(-1, 3, 16).transpose(0, 1)), 1)

    inputs = {"x": torch.randn(4, 48), "past": torch.randn(3, 5, 16)}
    for module, text in ((Early(), "attends to past without the new rows"), (Never(), "no attention reads past")):
        with pytest.raises(UserError, match=text):
            alula.compile(module, inputs, {"past": {1: "cache"}}, {"cache": (1, 9)})
