"""The cache heals itself: a damaged or half-made entry is found and made anew, and processes never meet in one."""

import multiprocessing
import os
import time
from pathlib import Path

import pytest

from hw.spec.errors import InternalError, UserError
from hw.verilog_writer import convert
from sim import cache
from sim.cache import SUMS, entry, intact, once
from sim.rtl import toolchain
from sim.rtl.build import BINARY, Design, build
from sim.rtl.toolchain import refuse_spaces
from tests.sim.copy_engine import CopyEngine


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("ALULA_CACHE", str(tmp_path / "a cache"))
    return tmp_path / "a cache"


def two_files(folder):
    (folder / "text").write_text("hello")
    (folder / "more").mkdir()
    (folder / "more" / "data").write_bytes(bytes(100))


def counted(made, make=two_files):
    def wrapped(folder):
        made.append(folder)
        make(folder)

    return wrapped


def test_an_entry_is_made_once():
    made = []
    first = entry("kind", "key", counted(made))
    assert entry("kind", "key", counted(made)) == first == cache.cache_dir() / "kind" / "key"
    assert (first / "text").read_text() == "hello" and len(made) == 1
    entry("kind", "another", counted(made))
    assert len(made) == 2


DAMAGE = {
    "truncated": lambda folder: (folder / "text").write_text("hel"),
    "flipped": lambda folder: (folder / "more" / "data").write_bytes(bytes(99) + b"x"),
    "empty": lambda folder: (folder / "text").write_text(""),
    "a file less": lambda folder: (folder / "text").unlink(),
    "a file more": lambda folder: (folder / "stray").write_text("?"),
    "no digests": lambda folder: (folder / SUMS).unlink(),
    "garbage for digests": lambda folder: (folder / SUMS).write_bytes(b"\xff\xfe\x00"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_entry_is_made_anew(damage):
    made = []
    place = entry("kind", "key", counted(made))
    DAMAGE[damage](place)
    assert not intact(place)
    entry("kind", "key", counted(made))
    assert len(made) == 2 and intact(place) and (place / "text").read_text() == "hello"
    assert not (place / "stray").exists()


def test_a_half_made_entry_is_no_entry(folder):
    """A failure leaves nothing; a process that was killed leaves a folder of its own that nobody takes for an entry."""

    def fails(place):
        (place / "text").write_text("hel")
        raise InternalError("no")

    with pytest.raises(InternalError):
        entry("kind", "key", fails)
    assert {path.name for path in (folder / "kind").iterdir()} == {"key.lock"}
    (folder / "kind" / "key").mkdir()
    (folder / "kind" / "key" / "text").write_text("hel")
    assert (entry("kind", "key", two_files) / "text").read_text() == "hello"


def test_checks_run_until_they_have_passed_once(folder, monkeypatch):
    ran = []

    def passes():
        ran.append(1)

    def fails():
        raise InternalError("no")

    for _ in range(2):
        with pytest.raises(InternalError):
            once("checks", "key", fails)
    once("checks", "key", passes)
    once("checks", "key", passes)
    once("checks", "key", fails)
    assert len(ran) == 1
    (folder / "checks" / "key" / "passed").write_text("damaged")
    once("checks", "key", passes)
    (folder.parent / "file").write_text("")
    monkeypatch.setenv("ALULA_CACHE", str(folder.parent / "file" / "below"))
    for _ in range(2):
        once("checks", "key", passes)
    assert len(ran) == 4


def slowly(place):
    (place / "text").write_text(str(place))
    time.sleep(0.05)
    two_files(place)


def meet(start, results):
    start.wait()
    place = entry("kind", "key", slowly)
    results.put((place / "text").read_text() + str(intact(place)))


def test_processes_that_meet_share_nothing():
    context = multiprocessing.get_context("fork")
    for _ in range(5):
        start, results = context.Event(), context.Queue()
        processes = [context.Process(target=meet, args=(start, results)) for _ in range(4)]
        for process in processes:
            process.start()
        start.set()
        assert [results.get(timeout=30) for _ in processes] == ["helloTrue"] * 4
        for process in processes:
            process.join(30)
        (cache.cache_dir() / "kind" / "key" / "text").write_text("damaged")


def test_temporary_folders_have_names_of_their_own(monkeypatch):
    """Also for processes of the same number, as those of two containers are."""
    monkeypatch.setattr(os, "getpid", lambda: 1)
    seen = []
    for number in range(20):
        entry("kind", str(number % 2), counted(seen))
        DAMAGE["empty"](cache.cache_dir() / "kind" / str(number % 2))
    assert len({place.name for place in seen}) == 20


def test_a_cache_that_cannot_be_written_is_one_line(folder, monkeypatch):
    (folder.parent / "file").write_text("")
    monkeypatch.setenv("ALULA_CACHE", str(folder.parent / "file" / "below"))
    with pytest.raises(UserError, match=r"cannot use the cache folder .*: Not a directory: .*ALULA_CACHE") as raised:
        entry("kind", "key", two_files)
    assert "\n" not in str(raised.value)


def test_a_user_without_a_home_has_a_cache(monkeypatch):
    monkeypatch.delenv("ALULA_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def no_home(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", no_home)
    assert cache.cache_dir().name == f"alula-cache-{os.getuid()}"


@pytest.mark.slow
def test_a_simulation_builds_in_a_cache_whose_path_has_spaces_and_heals():
    design = Design(convert(CopyEngine(2), "copy_engine"), "copy_engine", 2)
    place = build(design)
    assert " " in str(place)
    good = (place / BINARY).read_bytes()
    (place / BINARY).write_bytes(good[: len(good) // 2])
    assert (build(design) / BINARY).stat().st_size == len(good)
    before = (place / BINARY).stat().st_mtime_ns
    assert (build(design) / BINARY).stat().st_mtime_ns == before


def test_make_cannot_build_among_spaces(monkeypatch):
    refuse_spaces()
    monkeypatch.setattr(toolchain.tempfile, "gettempdir", lambda: "/tmp/with a space")
    with pytest.raises(UserError, match=r"temporary files lies in '/tmp/with a space'.*TMPDIR"):
        refuse_spaces()
