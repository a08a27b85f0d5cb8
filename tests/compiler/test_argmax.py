"""The greedy choice on the machine: the largest logit's number, ties to the lowest."""

from dataclasses import replace

import numpy as np
import pytest

from alula.runtime.images import model_image
from alula.runtime.session import Session
from compiler import layout
from compiler.pipeline import compile_model
from hw.spec import config
from sim.registry import backend


def session(compiled, quant) -> Session:
    return Session(compiled, model_image(compiled, quant), backend("functional"))


@pytest.fixture(scope="module")
def sliced(tiny):
    """The head in five slices."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "head_slices", lambda geo, head: layout.HeadSlices(5, 2, 4))
        return compile_model(tiny[1].config, config.get("tiny"))


def with_head(quant, change):
    """The same model with `change` applied to the head's weights and words; memory images are made of it."""
    head = quant.text.head
    weight, words = np.array(head.weight), np.array(head.words)
    change(weight, words)
    return replace(quant, text=replace(quant.text, head=replace(head, weight=weight, words=words)))


@pytest.mark.parametrize("n", [1, 2, 17, 40])
def test_prefill_and_decode(tiny, n):
    machine, rng = session(*tiny), np.random.default_rng(n)
    logits = machine.prefill(machine.prompt_rows(rng.integers(0, 256, n).tolist()))
    assert machine.choice == logits.argmax()
    for token in (3, 200):
        assert machine.decode(token).argmax() == machine.choice


@pytest.mark.parametrize("name", ["all zero", "two rows", "all the same", "negative", "last"])
def test_ties_go_to_the_first(tiny, sliced, name):
    def change(weight, words):
        if name == "all zero":
            weight[:] = 0
        elif name == "two rows":
            weight[[80, 200]], words[[80, 200]] = weight[40] * 0 + np.sign(weight[40]), words.max()
        elif name == "all the same":
            weight[:], words[:] = weight[7].copy(), words[7]
        elif name == "negative":
            weight[:] = 0
            weight[:, 0], weight[:, 1] = 1, 0
        else:
            weight[:-1] = 0

    for compiled in (tiny[0], sliced):
        quant = with_head(tiny[1], change)
        machine = session(compiled, quant)
        seen = set()
        for token in range(6):
            logits = machine.prefill(machine.prompt_rows([token]))
            assert machine.choice == logits.argmax()
            seen.add(machine.choice)
        if name in ("all zero", "all the same"):
            assert seen == {0}


def test_slices_agree(tiny, sliced):
    assert sliced.layout.head.count > 1
    whole, parts = session(*tiny), session(sliced, tiny[1])
    for ids in ([1, 2, 3], [9], [255, 0]):
        a, b = (machine.prefill(machine.prompt_rows(ids)) for machine in (whole, parts))
        np.testing.assert_array_equal(a, b)
        assert whole.choice == parts.choice == a.argmax()
