"""No run has a hazard, whatever path of the program it takes; and the oracle sees one where tokens are left out."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from alula.runtime.images import model_image
from alula.runtime.session import Session
from compiler.kernels import attention
from compiler.kernels.tokens import Access
from compiler.pipeline import compile_model
from hw.spec import config
from ref_model.checkpoints.synthetic import SyntheticCheckpoint
from ref_model.config import named_config
from ref_model.mask import BlockMask
from ref_model.quantise import fixed, quantise
from ref_model.reduction import Drop, Reduction
from tests.compiler.hazards import HazardBackend

PATCHES = np.random.default_rng(1).standard_normal((16, 588))


def ids(n: int) -> list[int]:
    return np.random.default_rng(n).integers(0, 256, n).tolist()


def prefill(n: int, **options) -> Callable[[Session], None]:
    def run(machine: Session) -> None:
        machine.prefill(machine.prompt_rows(ids(n)), **options)
        for token in (7, 255):
            machine.decode(token)

    return run


def encode(**options) -> Callable[[Session], None]:
    def run(machine: Session) -> None:
        for _ in range(2):
            machine.encode_image(fixed(PATCHES), **options)

    return run


RUNS = {
    "one token": prefill(1),
    "a tile and one": prefill(17),
    "many tiles": prefill(100),
    "masked": prefill(100, mask=BlockMask.window(32, 8, 64)),
    "dropped evenly": prefill(40, reduction=Reduction(6, 16, (Drop(1, 5),))),
    "dropped by score": prefill(40, reduction=Reduction(6, 16, (Drop(1, 5, by_score=True),))),
    "image": encode(),
    "image, best tokens": encode(keep=5),
    "image, best rows": encode(keep=8, strategy="row"),
}
CONFIGS = {
    "tiny": {},
    "small tiles": {"acc_rows": 8},
    "small tiles, layers tile by tile": {"acc_rows": 8, "imem_instructions": 5504},
    "four units": {"units": 4, "chains": 4},
    "eight units": {"units": 8, "acc_rows": 16},
}


def session(tiny, changes: dict) -> Session:
    """llava-tiny on a changed configuration; what its runs find is in `backend.found`."""
    compiled, quant = tiny
    if changes:
        machine = replace(config.get("tiny"), name="changed", **({"imem_instructions": 16384} | changes))
        compiled = compile_model(quant.config, machine)
    return Session(compiled, model_image(compiled, quant), HazardBackend())


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("name", ["tiny", "small tiles"])
def test_no_run_has_a_hazard(tiny, name, run):
    machine = session(tiny, CONFIGS[name])
    RUNS[run](machine)
    assert machine.backend.checked > 100
    assert machine.backend.found == []


@pytest.mark.parametrize("run", ["many tiles", "image, best tokens"])
@pytest.mark.parametrize("name", list(CONFIGS)[2:])
def test_no_configuration_has_a_hazard(tiny, name, run):
    machine = session(tiny, CONFIGS[name])
    RUNS[run](machine)
    assert machine.backend.found == []


def test_words_of_several_granules_have_no_hazard():
    model = named_config("llava-tiny")
    text = replace(model.text, heads=2, kv_heads=2, head_dim=32)
    checkpoint = SyntheticCheckpoint(replace(model, text=text, vision=None, image_token_index=None))
    machine = session((None, quantise(checkpoint)), {"lanes": 32})
    RUNS["many tiles"](machine)
    assert machine.backend.found == []


# --- the oracle itself -----------------------------------------------------------------------------------


def _overlap(one, other) -> bool:
    return any(a.overlaps(b) for a in one for b in other)


LEFT_OUT = {
    "write after read": lambda self, other: _overlap(self.reads, other.writes) or _overlap(self.writes, other.writes),
    "read after write": lambda self, other: _overlap(self.writes, other.reads + other.writes),
}
"""What placement and its proof see of two accesses, `other` the earlier one, without one kind of hazard."""


@pytest.mark.parametrize("kind", LEFT_OUT)
def test_a_kind_of_hazard_that_tokens_do_not_order_is_found(tiny, kind, monkeypatch):
    monkeypatch.setattr(Access, "conflicts", LEFT_OUT[kind])
    machine = session(tiny, {"imem_instructions": 8192})
    RUNS["a tile and one"](machine)
    RUNS["image"](machine)
    assert machine.backend.found


def test_an_instruction_beyond_the_region_that_it_names_is_found(tiny, monkeypatch):
    """Tokens know regions: a unit that touches what it does not name is ordered behind nothing."""
    honest = attention.quantise

    def elsewhere(ctx, source, width, target, entries):
        honest(ctx, source, width, target, entries)
        ctx.b.block[-1].writes = ()

    monkeypatch.setattr(attention, "quantise", elsewhere)
    machine = session(tiny, {"imem_instructions": 8192})
    RUNS["many tiles"](machine)
    assert machine.backend.found
