"""Containers: round trip, and one-line refusals."""

import numpy as np
import pytest

from alula.runtime.images import container_image, model_image
from compiler import container
from hw.spec.errors import UserError


def test_round_trip_keeps_program_and_memory(tmp_path, tiny):
    compiled, quant = tiny
    manifest = container.save(tmp_path / "m.alula", compiled, quant)
    opened = container.load(tmp_path / "m.alula")
    assert opened.program() == compiled.program.words
    assert opened.manifest == manifest
    ours, theirs = model_image(compiled, quant), container_image(opened, compiled.config)
    for (port, at, data), (port2, at2, data2) in zip(ours.contents(), theirs.contents(), strict=True):
        assert (port, at) == (port2, at2)
        np.testing.assert_array_equal(data, data2)


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda b: b"x" + b[1:], "not an alula container"),
        (lambda b: b[:7] + b"\x09" + b[8:], "version 9"),
        (lambda b: b[:60] + b"~" + b[61:], "corrupt"),
        (lambda b: b[:-100], "truncated"),
        (lambda b: b[:-10] + bytes([b[-10] ^ 1]) + b[-9:], "corrupt"),
        (lambda b: b"", "not an alula container"),
        (lambda b: b[:20], "corrupt"),
    ],
)
def test_damage_is_one_line(tmp_path, tiny, damage, message):
    path = tmp_path / "m.alula"
    container.save(path, *tiny)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=message) as error:
        container.load(path)
    assert "\n" not in str(error.value)


def test_nothing_is_left_when_writing_fails(tmp_path, tiny, monkeypatch):
    def fail(*_):
        raise UserError("no")

    monkeypatch.setattr(container, "_write", fail)
    with pytest.raises(UserError):
        container.save(tmp_path / "m.alula", *tiny)
    assert list(tmp_path.iterdir()) == []


def test_another_configuration_is_refused(tmp_path, tiny):
    from hw.spec import config

    container.save(tmp_path / "m.alula", *tiny)
    with pytest.raises(UserError, match="compile it again"):
        container_image(container.load(tmp_path / "m.alula"), config.get("small"))
