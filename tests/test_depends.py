"""What makes a recorded figure stale, and what leaves it alone."""

import pytest

from benchmarks import depends
from benchmarks.run import same

SOURCE = 'def f(x):\n    """Twice x."""\n    return 2 * x  # exactly\n'


def test_layout_comments_and_docstrings_mean_nothing():
    assert depends.meaning(SOURCE) == depends.meaning("def f(x):\n    return (2 *\n        x)\n")


@pytest.mark.parametrize("change", [("2 * x", "3 * x"), ("f(x)", "g(x)"), ("return", "yield")])
def test_code_means_something(change):
    assert depends.meaning(SOURCE) != depends.meaning(SOURCE.replace(*change))


def test_a_source_a_program_and_a_machine_make_the_digest(tmp_path, monkeypatch):
    monkeypatch.setattr(depends, "ROOT", tmp_path)
    (tmp_path / "a.py").write_text(SOURCE)
    named = ("*.py", "machine:tiny", "program:llava-tiny/tiny")
    stamped = {depends.KEY: depends.stamp(named)}
    assert not depends.is_stale(stamped)
    (tmp_path / "a.py").write_text(SOURCE + "# more\n")
    assert not depends.is_stale(stamped)
    (tmp_path / "a.py").write_text(SOURCE.replace("2", "3"))
    assert depends.is_stale(stamped)
    assert len({depends.digest([name]) for name in (*named, "machine:small")}) == 4


def test_a_pattern_without_files_is_refused():
    with pytest.raises(ValueError, match="names no file of the project"):
        depends.digest(["nowhere/*.py"])


def test_results_are_the_same_but_for_the_times_of_the_run():
    row = {"cycles": 7, "ratio": 1.5, "wall_seconds": 3.0}
    assert same(row, row | {"wall_seconds": 9.0, "ratio": 1.5 + 1e-9})
    assert not same(row, row | {"cycles": 8}) and not same(row, row | {"ratio": 1.51}) and not same(row, {"cycles": 7})
