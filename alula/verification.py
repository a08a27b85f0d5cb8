"""`alula verify`: vision, prefill at several lengths and decode steps on every executor, against the golden model."""

from collections.abc import Callable, Iterator

import numpy as np

from alula.cross import CrossBackend, Outcome, executors
from alula.expected import (
    Piece,
    cache_pieces,
    choice_piece,
    features_piece,
    filled_places,
    result_piece,
    survivors_piece,
    write_pieces,
)
from alula.reduction import Asked
from alula.runtime.session import Session
from alula.session import Flow
from hw.spec import numerics as nm
from hw.spec.errors import UserError
from hw.spec.memory import MemoryModel
from ref_model.golden import GoldenText
from ref_model.golden.model import LayerCache
from ref_model.mask import BlockMask
from ref_model.quantise import fixed
from ref_model.reduction import Reduction

PREFILL_LENGTHS, SOME_LAYERS_LENGTHS = (1, 2, 7, 16, 33), (16,)
DECODE_STEPS = 4
SEED, CACHE_SEED = 2024, 7
Note = Callable[[str], None]


def text_pieces(flow: Flow, golden: GoldenText, result: np.ndarray) -> list[Piece]:
    """The step's result and the whole cache, empty places included."""
    pieces = [result_piece(flow.layout, result, flow.head, flow.layout.aux["logits"].base)]
    if flow.head:
        pieces.append(choice_piece(flow.layout, result))
    for index, cache in enumerate(golden.cache):
        found = cache_pieces(flow.layout, "text", index, cache, flow.context)
        # Padded rows leave keys and values behind the last token.
        pieces += filled_places(flow.layout, found, cache, flow.context) if flow.program == "bucketed" else found
    return pieces


def default_lengths(flow: Flow, reduction: Asked | None) -> tuple[int, ...]:
    """Prefills when nobody says which: one for a run of some layers; with a reduction those long enough for it."""
    lengths = PREFILL_LENGTHS if flow.layers == flow.model.config.text.layers else SOME_LAYERS_LENGTHS
    if reduction is None:
        return lengths
    fitting = tuple(n for n in lengths if _fits(flow, reduction, n))
    if not fitting:
        reduction.synthetic(flow, max(lengths))  # says why
    return fitting


def _fits(flow: Flow, reduction: Asked, n: int) -> bool:
    try:
        reduction.synthetic(flow, n)
    except UserError:
        return False
    return True


def pick(flow: Flow, logits: np.ndarray) -> int:
    """The greedy token, ties to the lowest id. The image token stands for a picture and is never generated."""
    image = flow.model.config.image_token_index
    if image is not None and image < len(logits):
        logits = logits.copy()
        logits[image] = logits.min()
    return int(logits.argmax())


def check_text(
    flow: Flow,
    machine: Session,
    golden: GoldenText,
    name: str,
    ids: list[int],
    features: np.ndarray | None = None,
    mask: BlockMask | None = None,
    order: np.ndarray | None = None,
    reduction: Reduction | None = None,
) -> tuple[Outcome, np.ndarray, np.ndarray]:
    """Runs ids behind what machine and golden hold; the outcome, the golden model's result, the machine's.

    features: of all tiles, which `order` arranges.
    """
    rows = machine.prompt_rows(ids, flow.model.config.image_token_index, order)
    found = machine.prefill(rows, mask=mask, reduction=reduction)
    assert found is not None
    if features is not None and order is not None:
        features = flow.golden_vision().gather(features, order)
    expected = flow.golden_result(golden, golden.embed(ids, features), mask, reduction)
    backend = machine.backend
    assert isinstance(backend, CrossBackend)
    return backend.check(name, text_pieces(flow, golden, expected)), expected, found


def check_vision(flow: Flow, machine: Session, patches: np.ndarray, tile: int = 0) -> tuple[Outcome, np.ndarray]:
    """Runs the tower on Q16 patches; the outcome and the golden model's visual tokens."""
    machine.encode_image(patches, tile=tile, keep=flow.keep_visual, strategy=flow.strategy)
    golden = flow.golden_vision()
    features = golden.forward(patches / (1 << 16), flow.keep_visual, flow.strategy)
    backend = machine.backend
    assert isinstance(backend, CrossBackend)
    pieces = [features_piece(flow.layout, features, machine.feature_row(tile * flow.layout.tower.n_patches))]
    if flow.keep_visual is not None:
        pieces.append(survivors_piece(flow.layout, golden.survivors))
    return backend.check("vision", pieces), features


def synthetic_patches(flow: Flow) -> np.ndarray:
    """Seeded noise in the range of a normalised image, Q16."""
    v = flow.model.config.vision
    assert v is not None
    return fixed(np.random.default_rng(SEED).standard_normal((v.n_patches, v.patch_width)))


def synthetic_ids(flow: Flow, count: int, seed: int = SEED) -> list[int]:
    """Seeded token ids, without the image token."""
    c = flow.model.config
    ids = np.random.default_rng(seed + count).integers(0, c.text.vocab, count)
    return [int(i) if i != c.image_token_index else 0 for i in ids]


def synthetic_cache(kv_heads: int, head_dim: int, n: int, layer: int) -> LayerCache:
    """Seeded keys and values of n earlier tokens, scales as those of a trained model's cache."""
    rng = np.random.default_rng((CACHE_SEED, layer))

    def int8() -> np.ndarray:
        return rng.integers(-127, 128, (kv_heads, n, head_dim), dtype=np.int8)

    def raw() -> np.ndarray:
        return rng.integers(1 << 15, 1 << 18, (kv_heads, n))

    return LayerCache(int8(), nm.to_scale(raw()), int8(), raw())


def fill_cache(flow: Flow, machine: Session, golden, n: int) -> None:
    """Puts n synthetic earlier tokens into the machine's memory and the golden model alike."""
    machine.kept = n
    if flow.timing_only:
        return
    c = flow.model.config.text
    for index in range(flow.layers):
        cache = synthetic_cache(c.kv_heads, c.head_dim, n, index)
        write_pieces(machine.memory, cache_pieces(flow.layout, "text", index, cache, flow.context))
        if golden is not None:
            golden.cache[index] = cache


def outcomes(
    flow: Flow,
    last: str,
    lengths: tuple[int, ...],
    steps: int,
    note: Note,
    mask: BlockMask | None = None,
    reduction: Asked | None = None,
    decode: tuple[int, ...] = (),
    memory: MemoryModel | None = None,
) -> Iterator[Outcome]:
    """Vision (if the model has it), a prefill of every length, decode steps behind the longest prefill, and one for
    each number of keys in `decode`, behind a synthetic cache."""
    backend = CrossBackend(executors(last), model=memory)

    def named(name: str) -> str:
        backend.note = lambda executor: note(f"{name} on {executor}")
        return name

    if flow.model.vision is not None:
        named("vision")
        yield check_vision(flow, flow.machine(backend), synthetic_patches(flow))[0]
    for length in sorted(lengths):
        machine, golden = flow.machine(backend), flow.golden()
        name = named(f"prefill {length}")
        reduced = None if reduction is None else reduction.synthetic(flow, length)
        ids = synthetic_ids(flow, length)
        outcome, expected, _ = check_text(flow, machine, golden, name, ids, mask=mask, reduction=reduced)
        yield outcome
    for _ in range(steps):
        name = named(f"decode kv {machine.kept + 1}")
        outcome, expected, _ = check_text(flow, machine, golden, name, [pick(flow, expected)])
        yield outcome
    for keys in sorted(decode):
        machine, golden = flow.machine(backend), flow.golden()
        fill_cache(flow, machine, golden, keys - 1)
        name = named(f"decode kv {keys}, synthetic cache")
        yield check_text(flow, machine, golden, name, synthetic_ids(flow, 1, keys))[0]


def verify(
    flow: Flow,
    last: str = "rtl",
    lengths: tuple[int, ...] = PREFILL_LENGTHS,
    steps: int = DECODE_STEPS,
    note: Note = lambda _: None,
    seen: Callable[[Outcome], None] = lambda _: None,
    mask: BlockMask | None = None,
    reduction: Asked | None = None,
    decode: tuple[int, ...] = (),
    memory: MemoryModel | None = None,
) -> dict:
    """Every case, prefills under `mask` and `reduction`; the JSON of `alula verify`. memory None: the configuration's
    own."""
    memory = memory or MemoryModel.of(flow.config)
    flow.require_tokens(max(lengths) + steps)
    if reduction is not None:
        reduction.check(flow, lengths, mask)
    found = []
    for outcome in outcomes(flow, last, lengths, steps, note, mask, reduction, decode, memory):
        found.append(outcome)
        seen(outcome)
    return (
        summary(found)
        | flow.compression_report
        | memory.report()
        | {
            "model": flow.model.config.name,
            "config": flow.config.name,
            "backend": last,
            "layers": flow.layers,
            "layers_of_model": flow.model.config.text.layers,
            "context": flow.context,
            "program": flow.program,
            "program_sha256": sorted({outcome.program_sha256 for outcome in found}),
            "cases": [outcome.as_json() for outcome in found],
        }
    )


def summary(found: list[Outcome]) -> dict:
    """Totals of several outcomes."""
    exact = [outcome.cycle_exact for outcome in found]
    simulated, rtl = ([getattr(o, key) for o in found] for key in ("cycles_simulated", "cycles_rtl"))
    return {
        "bit_exact": all(outcome.bit_exact for outcome in found),
        "cycle_exact": None if None in exact else all(exact),
        "compared_bytes": sum(outcome.compared_bytes for outcome in found),
        "cycles_simulated": None if None in simulated else sum(simulated),
        "cycles_rtl": None if None in rtl else sum(rtl),
    }
