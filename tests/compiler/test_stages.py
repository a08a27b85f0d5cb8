"""The parts of the stage level by themselves: access maps, walks, phases, orders, places."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

import alula
from compiler.integer.views import View, heads_view, is_heads, is_rows, permuted, reshaped, rows_view, sliced, tensor
from compiler.stages.body import Body, Buffer, Issue, Memory
from compiler.stages.moves import Walk, walks
from compiler.stages.phases import phases
from compiler.stages.place import DoesNotFitError, places
from compiler.stages.schedule import READS_AHEAD, scheduled
from hw.spec import config
from hw.spec.isa import Unit

TINY = config.get("tiny")


# --- access maps ------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_views_are_what_numpy_makes_of_them(data):
    """Random reshapes, permutations and slices of rows, as long as they are maps."""
    factors = data.draw(st.lists(st.integers(1, 4), min_size=2, max_size=4))
    width = data.draw(st.sampled_from([4, 6, 8]))
    shape = (*factors, width)
    rows = np.arange(np.prod(shape)).reshape(-1, width)
    view: View | None = rows_view("x", shape)
    want = rows.reshape(shape)
    for _ in range(data.draw(st.integers(1, 4))):
        kind = data.draw(st.sampled_from(["permute", "reshape", "slice"]))
        if kind == "permute":
            order = data.draw(st.permutations(range(want.ndim)))
            view, want = permuted(view, order), want.transpose(order)
        elif kind == "slice":
            axis = data.draw(st.integers(0, want.ndim - 1))
            count = data.draw(st.integers(1, want.shape[axis]))
            start = data.draw(st.integers(0, want.shape[axis] - count))
            view = sliced(view, axis, start, count)
            want = np.take(want, range(start, start + count), axis)
        else:
            at = data.draw(st.integers(0, want.ndim - 1))
            divisors = [d for d in range(1, want.shape[at] + 1) if want.shape[at] % d == 0]
            divisor = data.draw(st.sampled_from(divisors))
            target = (*want.shape[:at], divisor, want.shape[at] // divisor, *want.shape[at + 1 :])
            view, want = reshaped(view, target), want.reshape(target)
        if view is None:
            return
    assert np.array_equal(tensor(view, rows, {}), want)


def test_heads_are_recognised():
    view = permuted(reshaped(rows_view("x", (5, 24)), (5, 3, 8)), (1, 0, 2))
    assert view.axes == heads_view("x", 3, 5, 8).axes and is_heads(view, 5, 3, 8)
    assert not is_heads(permuted(view, (0, 2, 1)), 5, 3, 8) and not is_heads(sliced(view, 1, 1, 4), 5, 3, 8)
    assert is_rows(reshaped(permuted(view, (1, 0, 2)), (5, 24)), 5, 24)
    assert not is_rows(reshaped(view, (15, 8)), 5, 24)


# --- moves ------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), min_size=1, max_size=40))
def test_walks_move_every_pair_once(pairs):
    pairs = np.array(sorted(set(pairs), key=lambda pair: (pair[1], pair[0])))
    found = []
    for walk in walks(pairs):
        for o in range(walk.n_outer):
            for i in range(walk.n_inner):
                from_ = walk.from_ + o * walk.from_outer + i * walk.from_inner
                found.append((from_, walk.to + o * walk.to_outer + i * walk.to_inner))
    assert found == [tuple(pair) for pair in pairs.tolist()]


def test_a_grid_is_few_walks():
    """Pixels of every second row and column: one walk."""
    pairs = np.array([(2 * i * 24 + 2 * j, i * 12 + j) for i in range(12) for j in range(12)])
    assert len(list(walks(pairs))) == 1


# --- phases -----------------------------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.q, self.k, self.v, self.o = nn.LayerNorm(32), *(nn.Linear(32, 32) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (layer(h).view(-1, 2, 16).transpose(0, 1) for layer in (self.q, self.k, self.v))
        return x + self.o(functional.scaled_dot_product_attention(q, k, v).transpose(0, 1).reshape(-1, 32))


def test_attention_waits_for_all_keys():
    torch.manual_seed(0)
    program = alula.compile(Block(), {"x": torch.randn(4, 32)}, {"x": {0: "seq"}}, {"seq": (1, 40)})
    first, second = phases(program.entry().integers)
    kinds = [[type(program.entry().integers.steps[name]).__name__ for name in phase.steps] for phase in (first, second)]
    assert kinds[0].count("Hold") == 2 and "Attend" not in kinds[0]
    assert kinds[1].count("Attend") == 1 and "Hold" not in kinds[1]
    assert "x" in second.loads and len(first.stores) == 1  # the residual comes again, queries went through memory


# --- order and places -------------------------------------------------------------------------------------


def issue(unit: Unit, reads=(), writes=(), cycles: int = 100) -> Issue:
    return Issue(unit, "test", tuple(reads), tuple(writes), lambda e: None, cycles)


def chain(n: int) -> Body:
    """n operators: parameters to PB, a pass, weights, a product."""
    body, value = Body(4), None
    for number in range(n):
        parameters, rows, sums = (Buffer(f"{w}{number}", w, 16) for w in ("PB", "OB", "AB"))
        reads = [parameters] + ([value] if value is not None else [])
        body.issues += [
            issue(Unit.LD, (), [parameters]),
            issue(Unit.VU, reads, [rows]),
            issue(Unit.RD),
            issue(Unit.MX, [rows], [sums]),
        ]
        value = sums
    return body


def test_readers_stay_behind_writers_and_loads_go_ahead():
    body = chain(6)
    order = scheduled(body, 1).body.issues
    assert sorted(map(id, order)) == sorted(map(id, body.issues))
    place = {id(one): at for at, one in enumerate(order)}
    written = {buffer: place[id(one)] for one in body.issues for buffer in one.writes}
    for one in body.issues:
        assert all(written[buffer] < place[id(one)] for buffer in one.reads if buffer in written)
    loads = [at for at, one in enumerate(order) if one.unit == Unit.LD]
    assert loads[1] < next(at for at, one in enumerate(order) if one.unit == Unit.MX)


def test_reads_of_channels_keep_their_order_and_their_distance():
    order = scheduled(chain(12), 1).body.issues
    ahead = 0
    for one in order:
        ahead += (one.unit == Unit.RD) - (one.unit == Unit.MX)
        assert 0 <= ahead <= READS_AHEAD


def test_stores_and_loads_of_one_place_keep_their_order():
    buffers = [Buffer(f"b{i}", "SB" if i % 2 else "PB", 16) for i in range(3)]
    body = Body(1)
    body.issues = [
        issue(Unit.ST, [buffers[1]], [Memory("scratch")]),
        issue(Unit.LD, [Memory("scratch")], [buffers[0]]),
        issue(Unit.ST, [buffers[1]], [Memory("scratch")], 1),
    ]
    assert scheduled(body, 1).body.issues == body.issues


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 400), st.integers(0, 8), st.integers(0, 8)), min_size=1, max_size=30))
def test_places_never_overlap_while_both_are_needed(lives):
    """lives: size, first use, and how long it is needed."""
    body = Body(1)
    body.issues = [issue(Unit.VU) for _ in range(20)]
    spans = {}
    for number, (size, first, length) in enumerate(lives):
        buffer = Buffer(f"b{number}", "VB", size)
        spans[buffer] = (first, first + length)
        for at in spans[buffer]:
            old = body.issues[at]
            body.issues[at] = issue(Unit.VU, old.reads, (*old.writes, buffer))
    try:
        found = places(body, TINY)
    except DoesNotFitError:
        at_once = max(sum(size for size, first, n in lives if first <= at <= first + n) for at in range(20))
        assert at_once > TINY.vb_granules // 2  # next fit leaves gaps, but not that many
        return
    for one, (first, last) in spans.items():
        assert found[one].size >= one.size and found[one].base + found[one].size <= TINY.vb_granules
        for other, (begin, end) in spans.items():
            if one is not other and first <= end and begin <= last:
                assert not found[one].overlaps(found[other])


@pytest.mark.parametrize("where", ["OB", "VB"])
def test_places_are_whole_words(where):
    machine = config.get("u280")
    body = Body(1)
    body.issues = [issue(Unit.VU, (), (Buffer(f"b{i}", where, 5),)) for i in range(4)]
    body.issues.append(issue(Unit.VU, [one.writes[0] for one in body.issues], ()))
    align = machine.units if where == "OB" else machine.granules_per_word
    assert all(region.base % align == 0 for region in places(body, machine).values())


def test_a_buffer_is_read_before_it_is_written_again():
    """The second load may start at once, but what it overwrites is still read."""
    shared, sums = Buffer("shared", "PB", 16), [Buffer(f"sum{i}", "VB", 16) for i in range(2)]
    body = Body(1)
    body.issues = [
        issue(Unit.LD, (), [shared]),
        issue(Unit.VU, [shared], [sums[0]], 1_000),
        issue(Unit.LD, (), [shared], 5_000),
        issue(Unit.VU, [shared], [sums[1]]),
    ]
    assert scheduled(body, 1).body.issues == body.issues


def pairs_of(walk: Walk) -> list[tuple[int, int]]:
    return [
        (walk.from_ + o * walk.from_outer + i * walk.from_inner, walk.to + o * walk.to_outer + i * walk.to_inner)
        for o in range(walk.n_outer)
        for i in range(walk.n_inner)
    ]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 60), st.integers(1, 4), st.integers(-3, 3), st.integers(1, 4), st.integers(0, 3)),
        min_size=1,
        max_size=8,
    )
)
def test_walks_are_their_pairs(pieces):
    """pieces: where a stretch begins, its length and step, how often it comes, and the gap behind it."""
    pairs, to = [], 0
    for start, length, step, times, gap in pieces:
        for time in range(times):
            for place in range(length):
                pairs.append((200 + start + 10 * time + step * place, to))
                to += 1
            to += gap
    found = [pair for walk in walks(np.array(pairs)) for pair in pairs_of(walk)]
    assert sorted(found) == sorted(pairs)
