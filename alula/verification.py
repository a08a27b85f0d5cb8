"""`alula verify`: vision, prefill at several lengths and decode steps on every executor, against the golden model."""

from collections.abc import Callable, Iterator

import numpy as np

from alula.cross import CrossBackend, Outcome, executors
from alula.expected import Piece, cache_pieces, features_piece, result_piece
from alula.session import Flow
from compiler.host import Session
from ref_model.golden import GoldenText, GoldenVision
from ref_model.quantise import fixed

PREFILL_LENGTHS = (1, 2, 7, 16, 33)
DECODE_STEPS = 4
SEED = 2024
Note = Callable[[str], None]


def text_pieces(flow: Flow, golden: GoldenText, result: np.ndarray) -> list[Piece]:
    """The step's result and the whole cache, empty places included."""
    pieces = [result_piece(flow.layout, result, flow.head, flow.layout.aux["logits"].base)]
    for index, cache in enumerate(golden.cache):
        pieces += cache_pieces(flow.layout, "text", index, cache, flow.context)
    return pieces


def pick(flow: Flow, logits: np.ndarray) -> int:
    """The greedy token, ties to the lowest id. The image token stands for a picture and is never generated."""
    image = flow.model.config.image_token_index
    if image is not None and image < len(logits):
        logits = logits.copy()
        logits[image] = logits.min()
    return int(logits.argmax())


def check_text(
    flow: Flow, machine: Session, golden: GoldenText, name: str, ids: list[int], features: np.ndarray | None = None
) -> tuple[Outcome, int, np.ndarray]:
    """Runs ids behind what machine and golden hold; the outcome, the golden model's next token (any id, without
    head), the machine's result."""
    found = machine.prefill(machine.prompt_rows(ids, flow.model.config.image_token_index))
    assert found is not None
    expected = flow.golden_result(golden, golden.embed(ids, features))
    backend = machine.backend
    assert isinstance(backend, CrossBackend)
    return backend.check(name, text_pieces(flow, golden, expected)), pick(flow, expected), found


def check_vision(flow: Flow, machine: Session, patches: np.ndarray) -> tuple[Outcome, np.ndarray]:
    """Runs the tower on Q16 patches; the outcome and the golden model's visual tokens."""
    machine.encode_image(patches)
    features = GoldenVision(flow.model).forward(patches / (1 << 16))
    backend = machine.backend
    assert isinstance(backend, CrossBackend)
    pieces = [features_piece(flow.layout, features, flow.layout.aux["features"].base)]
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


def outcomes(flow: Flow, last: str, lengths: tuple[int, ...], steps: int, note: Note) -> Iterator[Outcome]:
    """Vision (if the model has it), a prefill of every length, and decode steps behind the longest prefill."""
    backend = CrossBackend(executors(last))

    def named(name: str) -> str:
        backend.note = lambda executor: note(f"{name} on {executor}")
        return name

    if flow.model.vision is not None:
        named("vision")
        yield check_vision(flow, flow.machine(backend), synthetic_patches(flow))[0]
    for length in sorted(lengths):
        machine, golden = flow.machine(backend), flow.golden()
        name = named(f"prefill {length}")
        outcome, token, _ = check_text(flow, machine, golden, name, synthetic_ids(flow, length))
        yield outcome
    for _ in range(steps):
        name = named(f"decode kv {machine.kept + 1}")
        outcome, token, _ = check_text(flow, machine, golden, name, [token])
        yield outcome


def verify(
    flow: Flow,
    last: str = "rtl",
    lengths: tuple[int, ...] = PREFILL_LENGTHS,
    steps: int = DECODE_STEPS,
    note: Note = lambda _: None,
    seen: Callable[[Outcome], None] = lambda _: None,
) -> dict:
    """Every case; the JSON of `alula verify`."""
    flow.require_tokens(max(lengths) + steps)
    found = []
    for outcome in outcomes(flow, last, lengths, steps, note):
        found.append(outcome)
        seen(outcome)
    return summary(found) | {
        "model": flow.model.config.name,
        "config": flow.config.name,
        "backend": last,
        "layers": flow.layers,
        "cases": [outcome.as_json() for outcome in found],
    }


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
