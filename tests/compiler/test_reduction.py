"""Visual tokens dropped between layers: one program, bit for bit the golden model's, caches and scales included."""

from dataclasses import replace
from hashlib import sha256

import numpy as np
import pytest

from alula.cross import CrossBackend, Outcome, executors
from alula.expected import cache_pieces
from alula.reduction import asked
from alula.runtime.images import model_image
from alula.runtime.session import Session
from alula.runtime.work import text_macs
from alula.session import Flow, open_flow
from alula.verification import check_text, default_lengths, verify
from compiler.pipeline import compile_model
from hw.spec import config
from hw.spec.errors import UserError
from ref_model.checkpoints.synthetic import SyntheticCheckpoint
from ref_model.config import named_config
from ref_model.golden import GoldenText
from ref_model.mask import BlockMask
from ref_model.quantise import quantise
from ref_model.reduction import Drop, Reduction, parse_drops, visual_places, visual_range
from sim.registry import backend

EVEN = (Drop(1, 5),)
EXIT = (Drop(1, 0),)
SCORE = (Drop(1, 5, by_score=True),)
LISTED = (Drop(1, 3, numbers=(3, 5, 14)),)


DEEP_LAYERS = 5
DEEP = {
    "two even": (Drop(1, 9), Drop(3, 4)),
    "two scores": (Drop(2, 9, by_score=True), Drop(4, 4, by_score=True)),
    "neighbouring scores": (Drop(1, 12, by_score=True), Drop(2, 7, by_score=True), Drop(3, 1, by_score=True)),
    "even, score, exit": (Drop(1, 12), Drop(2, 6, by_score=True), Drop(4, 0)),
    "nothing, score of all": (Drop(1, 16), Drop(3, 16, by_score=True)),
}


@pytest.fixture(scope="module")
def deep():
    """llava-tiny with more layers: (compiled, quantised model)."""
    model = named_config("llava-tiny")
    checkpoint = SyntheticCheckpoint(replace(model, text=replace(model.text, layers=DEEP_LAYERS), vision=None))
    return compile_model(checkpoint.config, config.get("tiny")), quantise(checkpoint)


def session(tiny, name: str = "functional", **options) -> Session:
    compiled, quant = tiny
    return Session(compiled, model_image(compiled, quant), backend(name), **options)


def ids_of(n: int) -> list[int]:
    return np.random.default_rng(n).integers(0, 256, n).tolist()


def golden_logits(golden: GoldenText, ids: list[int], **options) -> np.ndarray:
    return golden.logits(golden.forward(golden.embed(ids), **options)[-1:])[0]


def assert_equal_caches(machine: Session, golden: GoldenText) -> None:
    for index, cache in enumerate(golden.cache):
        for piece in cache_pieces(machine.layout, "text", index, cache, machine.layout.context):
            assert piece.differing(machine.memory) == 0, piece.what
        assert machine.cached[index] == cache.k8.shape[1]


@pytest.mark.parametrize("drops", [EVEN, EXIT, LISTED, SCORE], ids=["even", "exit", "listed", "score"])
@pytest.mark.parametrize("n", [23, 33, 100])
def test_prefill_and_decode_equal_golden(tiny, drops, n):
    machine, golden, reduction = session(tiny), GoldenText(tiny[1]), Reduction(6, 16, drops)
    want = golden_logits(golden, ids_of(n), reduction=reduction)
    np.testing.assert_array_equal(machine.prefill(machine.prompt_rows(ids_of(n)), reduction=reduction), want)
    assert_equal_caches(machine, golden)
    for token in (7, 255):
        np.testing.assert_array_equal(
            machine.decode(token), golden_logits(golden, [token], positions=[machine.kept - 1])
        )
    assert_equal_caches(machine, golden)


@pytest.mark.parametrize("name", DEEP)
@pytest.mark.parametrize("n", [18, 60])
def test_several_drops_equal_golden(deep, name, n):
    machine, golden, reduction = session(deep), GoldenText(deep[1]), Reduction(1, 16, DEEP[name])
    for ids, options in ((ids_of(n), {"reduction": reduction}), ([3], {}), (ids_of(40), {}), ([4], {})):
        want = golden_logits(golden, ids, **options)
        np.testing.assert_array_equal(machine.prefill(machine.prompt_rows(ids), **options), want)
        assert_equal_caches(machine, golden)
    assert machine.cached == [count + 42 for count in reduction.tokens(n, DEEP_LAYERS)]


def test_scores_decide(deep):
    """What stays by score is not what stays evenly spaced, and all of it is visual."""
    reduction = Reduction(10, 40, (Drop(2, 8, by_score=True),))
    golden = GoldenText(deep[1])
    golden.forward(golden.embed(ids_of(60)), reduction=reduction)
    kept = reduction.keep(reduction.drops[0], np.arange(60), golden.scores)
    even = reduction.keep(Drop(2, 8), np.arange(60), None)
    assert len(kept) == len(even) == 28 and set(kept) != set(even)
    assert set(range(10)) | set(range(50, 60)) < set(kept)


def test_ties_go_to_the_lowest_place():
    scores = np.array([5, 9, 5, 5, 9, 1])
    np.testing.assert_array_equal(Drop(1, 4, by_score=True).pick(np.arange(6), scores), [0, 1, 2, 4])
    np.testing.assert_array_equal(Drop(1, 3, by_score=True).pick(np.arange(6), scores), [0, 1, 4])


@pytest.mark.parametrize("drops", [EVEN, EXIT, LISTED])
def test_a_mask_and_a_reduction(tiny, drops):
    """Tiles of the mask count places of each layer's cache."""
    mask, reduction = BlockMask.window(32, 8, 1), Reduction(6, 16, drops)
    machine, golden = session(tiny), GoldenText(tiny[1])
    want = golden_logits(golden, ids_of(100), mask=mask, reduction=reduction)
    rows = machine.prompt_rows(ids_of(100))
    np.testing.assert_array_equal(machine.prefill(rows, mask=mask, reduction=reduction), want)
    assert_equal_caches(machine, golden)


def test_a_dropless_run_is_what_it_was(tiny):
    """Keeping everything changes no bit."""
    plain, kept = session(tiny), session(tiny)
    rows = plain.prompt_rows(ids_of(40))
    want = plain.prefill(rows)
    for drop in (Drop(1, 16), Drop(1, 16, by_score=True)):
        np.testing.assert_array_equal(session(tiny).prefill(rows, reduction=Reduction(6, 16, (drop,))), want)
    kept.prefill(rows, reduction=Reduction(6, 16, (Drop(1, 16),)))
    np.testing.assert_array_equal(plain.decode(9), kept.decode(9))


def test_fewer_tokens_take_less_time(deep):
    cycles = []
    for drops in ((), (Drop(1, 8),), (Drop(1, 0),)):
        machine = session(deep, "cycle")
        machine.prefill(machine.prompt_rows(ids_of(64)), reduction=Reduction(4, 48, drops))
        cycles.append(machine.results[-1][1].cycles)
    assert cycles == sorted(cycles, reverse=True) and cycles[2] < cycles[0] / 2


def test_decode_with_a_shorter_cache_costs_next_to_nothing(deep):
    """Segments of a single token stay on the chip."""
    cycles = []
    for drops in ((), (Drop(2, 0),)):
        machine = session(deep, "cycle")
        machine.prefill(machine.prompt_rows(ids_of(20)), reduction=Reduction(4, 8, drops))
        machine.decode(5)
        cycles.append(machine.results[-1][1].cycles)
    assert cycles[1] < 1.03 * cycles[0]


def test_time_without_values_is_near(deep):
    """A run for timing only ranks as if the first tokens had won: an estimate."""
    reduction = Reduction(4, 48, (Drop(2, 9, by_score=True),))
    found = []
    for options in ({"with_data": True}, {}):
        machine = Session(deep[0], model_image(deep[0], deep[1]), backend("cycle", **options))
        machine.prefill(machine.prompt_rows(ids_of(64)), reduction=reduction)
        found.append(machine.results[-1][1].cycles)
    print(f"exact {found[0]} cycles, without values {found[1]}")
    assert abs(found[1] - found[0]) < 0.02 * found[0]


# --- RTL -------------------------------------------------------------------------------------------------

CHOICES = {"even": {"keep_schedule": "1:5"}, "exit": {"exit_layer": 1}, "score": {"fastv": "1:5"}}
SELECTIONS = [(5, "rank"), (8, "row")]


def require_exact(outcome: Outcome) -> None:
    assert outcome.bit_exact, f"{outcome.name}: {outcome.first_difference}"
    assert outcome.cycle_exact, f"{outcome.name}: {outcome.cycles_simulated} simulated, {outcome.cycles_rtl} RTL"
    assert not outcome.counters_differing, f"{outcome.name}: {outcome.counters_differing}"


def exact_checksums(flow: Flow, **options) -> set[str]:
    """Of the programs of a verification in RTL, which must agree in every bit and cycle."""
    found: list[Outcome] = []
    verify(flow, "rtl", seen=found.append, **options)
    for outcome in found:
        require_exact(outcome)
    return {outcome.program_sha256 for outcome in found}


def flow_of(fixture) -> Flow:
    compiled, quant = fixture
    return Flow("llava-tiny", quant, compiled, quant.config.text.layers)


def test_rtl_ranks_tokens(deep):
    """The compiled program, unchanged."""
    flow = flow_of(deep)
    outcome = check_text(
        flow,
        flow.machine(CrossBackend(executors("rtl"))),
        flow.golden(),
        "score",
        ids_of(18),
        reduction=Reduction(1, 12, (Drop(1, 5, by_score=True), Drop(3, 0))),
    )[0]
    require_exact(outcome)
    assert outcome.program_sha256 == sha256(np.array(deep[0].program.words, np.uint64)).hexdigest()


@pytest.mark.slow
def test_rtl_of_every_mechanism_runs_one_program():
    flow = open_flow("llava-tiny", "tiny")
    checksums = exact_checksums(flow, lengths=(33,), steps=1)
    for options in CHOICES.values():
        checksums |= exact_checksums(flow, lengths=(17, 33), steps=2, reduction=asked(**options))
    for keep, strategy in SELECTIONS:
        flow.keep(keep, strategy)
        checksums |= exact_checksums(flow, lengths=(33,), steps=1)
    checksums |= exact_checksums(flow, lengths=(33,), steps=1, reduction=asked(fastv="1:5"))
    print(f"program SHA-256 of all runs: {checksums}")
    assert len(checksums) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", DEEP)
def test_rtl_of_several_drops(deep, name):
    """Neighbouring and repeated drops; decode steps and a continued prompt behind caches of different lengths."""
    flow = flow_of(deep)
    machine, golden = flow.machine(CrossBackend(executors("rtl"))), flow.golden()
    for n, reduction in ((41, Reduction(1, 16, DEEP[name])), (1, None), (20, None), (1, None)):
        require_exact(check_text(flow, machine, golden, f"{name}, {n} tokens", ids_of(n), reduction=reduction)[0])


def test_default_lengths_hold_the_visual_tokens(tiny):
    flow = flow_of(tiny)
    assert default_lengths(flow, None) == (1, 2, 7, 16, 33)
    assert default_lengths(flow, asked(fastv="1:7")) == (16, 33)
    with pytest.raises(UserError, match="30 visual tokens are to go on, there are 16"):
        default_lengths(flow, asked(keep_schedule="1:30"))


def test_macs_follow_the_layers(tiny):
    layout = tiny[0].layout
    d, kv, ff, vocab = 64, 32, 176, 259

    def layer(n: int) -> int:
        return n * (2 * d * d + 2 * d * kv + 3 * d * ff) + n * (n + 1) * d

    for drops, left in ((EVEN, 22), (EXIT, 17), (SCORE, 22)):
        assert text_macs(layout, 33, reduction=Reduction(6, 16, drops)) == layer(33) + layer(left) + d * vocab
    assert text_macs(layout, 33, reduction=Reduction(6, 16, ())) == text_macs(layout, 33)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"keep_schedule": "8"}, "no list of layer:count"),
        ({"keep_schedule": "8:x"}, "no list of layer:count"),
        ({"keep_schedule": "1:0"}, "keeps 0 visual tokens"),
        ({"fastv": "1:0"}, "keeps 0 visual tokens"),
        ({"fastv": "1:-3"}, "no list of layer:count"),
        ({"keep_schedule": "missing.json"}, "no readable JSON"),
        ({"keep_schedule": "1:5", "exit_layer": 1}, "drops tokens already"),
    ],
)
def test_bad_options_are_refused(options, words):
    with pytest.raises(UserError, match=words):
        parse_drops(**options)


def test_lists_come_from_a_file(tmp_path):
    path = tmp_path / "kept.json"
    path.write_text('{"2": [9, 4], "5": [4]}')
    assert parse_drops(str(path)) == (Drop(2, 2, numbers=(4, 9)), Drop(5, 1, numbers=(4,)))
    path.write_text('{"2": []}')
    with pytest.raises(UserError, match="keeps 0 visual tokens"):
        parse_drops(str(path))


@pytest.mark.parametrize(
    "start, count, drops, words",
    [
        (6, 16, (Drop(1, 17),), "17 visual tokens are to go on, there are 16"),
        (6, 16, (Drop(1, 3), Drop(2, 4)), "4 visual tokens are to go on, there are 3"),
        (6, 16, (Drop(0, 3),), "layer 0 is outside 1..4"),
        (6, 16, (Drop(5, 3),), "layer 5 is outside 1..4"),
        (6, 16, (Drop(1, 2, numbers=(5, 16)),), r"visual token 16 is not among .* \(16 of 0\.\.15\)"),
        (
            6,
            16,
            (Drop(1, 2, numbers=(5, 7)), Drop(2, 1, numbers=(6,))),
            "visual token 6 is not among those that layer 1",
        ),
        (20, 20, (), "do not fit a prompt of 40 tokens"),
        (6, 16, (Drop(1, 5, by_score=True), Drop(2, 3)), "nobody knows which visual tokens are left"),
    ],
)
def test_bad_reductions_are_refused(start, count, drops, words):
    with pytest.raises(UserError, match=words):
        Reduction(start, count, drops).check(40, 5)


def test_ranking_needs_an_empty_cache_and_no_mask(tiny):
    machine, reduction = session(tiny), Reduction(6, 16, SCORE)
    with pytest.raises(UserError, match="leave --attention-mask out"):
        machine.prefill([0] * 30, mask=BlockMask.causal(32, 8), reduction=reduction)
    machine.kept = 3
    with pytest.raises(UserError, match="3 are in the cache"):
        machine.prefill([0] * 30, reduction=reduction)


def test_places_of_visual_tokens():
    assert visual_range(616, 576) == (35, 576)
    assert visual_range(33, 16) == (14, 16)
    assert visual_range(33, 16, 4, 2) == (2, 4)
    assert visual_places([1, 9, 9, 2], 9) == (1, 2)
    for ids in ([1, 2], [9, 1, 9]):
        with pytest.raises(UserError, match="one image"):
            visual_places(ids, 9)
