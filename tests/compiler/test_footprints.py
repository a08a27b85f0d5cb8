"""Instructions lie in the regions that they name, at the upper bounds of what registers hold."""

import pytest

from compiler.kernels.builder import At, Builder, Rows
from compiler.kernels.regions import Region
from hw.spec import config
from hw.spec.errors import UserError
from hw.spec.isa import MxMode, Op, Src, StMode

TINY = config.get("tiny")
WORD = TINY.granules_per_word


@pytest.fixture
def builder():
    found = Builder(TINY)
    found.operator = "linear_1"
    return found


def region(buffer: str, size: int) -> Region:
    return Region(buffer, "FEATURE", 0, size, 1 if buffer in ("OB", "RS") else WORD)


def tile(b: Builder, most: int):
    """A register with a number of rows up to `most`."""
    return b.alu(Op.MIN, b.reg(), b.argument(1), most)


def test_rows_of_a_tile_that_do_not_fit_are_refused_with_all_numbers(builder):
    """17 rows of 4 words each; the region holds 4 rows."""
    rows = At(region("VB", 4 * 4 * WORD), 4)
    with pytest.raises(
        UserError,
        match=rf"operator linear_1: an instruction reaches {17 * 4 * WORD} granules of "
        rf"region FEATURE in VB, which has room for {16 * WORD}",
    ):
        builder.vu_pass((tile(builder, 17), 1, 4), 64, v=rows, d=rows, src=Src.V)


def test_as_many_as_fit_are_taken(builder):
    rows = At(region("VB", 17 * 4 * WORD), 4)
    builder.vu_pass((tile(builder, 17), 1, 4), 64, v=rows, d=rows, src=Src.V)


@pytest.mark.parametrize("room, fits", [(4 * 8 * TINY.units, True), (4 * 8 * TINY.units - 1, False)])
def test_outputs_of_a_matrix_instruction(builder, room, fits):
    def issue():
        builder.matmul(
            region("OB", 4 * 8),
            region("AB", room),
            rows=tile(builder, 4),
            kb=8,
            ob=8,
            act_stride=8,
            out_stride=8 * TINY.units,
        )

    check(issue, fits)


@pytest.mark.parametrize("room, fits", [(4 * 8 * TINY.units, True), (4 * 8 * TINY.units - 1, False)])
def test_inputs_of_a_matrix_instruction_that_splits_them(builder, room, fits):
    def issue():
        builder.matmul(
            region("OB", room),
            region("AB", 4),
            rows=4,
            kb=8,
            ob=1,
            act_stride=8 * TINY.units,
            out_stride=1,
            mode=MxMode.SPLIT_K,
        )

    check(issue, fits)


@pytest.mark.parametrize("room, fits", [(30, True), (29, False)])
def test_loads_and_stores(builder, room, fits):
    check(lambda: builder.load(0, region("PB", room), 10, rows=3, row_stride=10), fits)
    check(
        lambda: builder.store(
            StMode.LIN, region("SB", room), Region("MEMORY", "m", 0, 1), n_tok=3, src_tok=10, n_gran=10
        ),
        fits,
    )


@pytest.mark.parametrize("room, fits", [(12, True), (11, False)])
def test_entries_of_rows(builder, room, fits):
    word = At(region("VB", 12 * WORD), 3, 1)
    check(lambda: builder.vu_pass((4, 3, 1), 1, v=word, w=Rows(region("RS", room), 3, 1), src=Src.V), fits)


def test_an_offset_counts(builder):
    entries = region("RS", 10)
    builder.vu_pass((1, 1, 1), 1, r0=Rows(entries, offset=9), src=Src.R0)
    with pytest.raises(UserError, match="reaches 11 entries"):
        builder.vu_pass((1, 1, 1), 1, r0=Rows(entries, offset=10), src=Src.R0)


def test_what_was_declared_holds(builder):
    """A register that memory gives has no bound of its own."""
    from_memory = builder.load_word(builder.reg(), builder.set(builder.reg(), 0))
    assert builder.most(from_memory) is None
    builder.declare(from_memory, 5)
    assert builder.most(builder.alu(Op.ADD, builder.reg(), from_memory, from_memory)) == 10
    assert builder.most(builder.shift(builder.reg(), from_memory, -1)) == 2


def test_a_register_that_walks_is_taken_at_its_last_value(builder):
    entries, at = region("RS", 10), builder.set(builder.reg(), 0)
    with builder.loop(builder.set(builder.reg(), 11)):
        builder.vu_pass((1, 1, 1), 1, r0=Rows(entries, offset=at), src=Src.R0)
        builder.walks(at, 10)
        with pytest.raises(UserError, match="reaches 11 entries"):
            builder.vu_pass((1, 1, 1), 1, r0=Rows(entries, offset=at), src=Src.R0)


def test_behind_a_body_that_may_be_skipped_the_larger_bound_holds(builder):
    n, left = builder.set(builder.reg(), 3), builder.set(builder.reg(), 2)
    with builder.unless(Op.BEQ, left, 0):
        builder.set(n, 7)
    assert builder.most(n) == 7
    with builder.loop(left):
        builder.set(n, n + 1)
    assert builder.most(n) is None


def check(issue, fits: bool) -> None:
    if fits:
        issue()
    else:
        with pytest.raises(UserError, match="which has room for"):
            issue()
