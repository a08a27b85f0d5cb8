"""A machine of one's own: by file and by `--set`; everything that is no machine is refused in one line."""

from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hw.spec import cards
from hw.spec.config import CONFIGS, Config, ConfigError, get
from hw.spec.config_fields import FIELDS, MEMORY_FIELDS
from hw.spec.machine import resolve


def written(folder, text, name="mine.toml"):
    path = folder / name
    path.write_text(text)
    return str(path)


def refusal(machine, changes=()):
    with pytest.raises(ConfigError) as raised:
        resolve(machine, changes)
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_name_is_itself(name):
    assert resolve(name) is get(name) and resolve(get(name)) is get(name)


def test_a_file_changes_its_base(tmp_path):
    path = written(tmp_path, 'base = "u280"\nlanes = 32\n[memory]\nkind = "fixed"\nread_latency = 100\n')
    u280 = get("u280")
    memory = replace(u280.memory, kind="fixed", read_latency=100)
    assert resolve(path) == replace(u280, name="mine", base="u280", lanes=32, memory=memory)
    named = written(tmp_path, 'base = "tiny"\nname = "other-1"\n', "x.toml")
    assert resolve(named).name == "other-1"


def test_changes_come_on_top(tmp_path):
    path = written(tmp_path, 'base = "u55c"\nlanes = 32\nchains = 4\n')
    made = resolve(path, ["lanes=128", "memory.write_latency=7", "clock_hz=200_000_000"])
    assert (made.lanes, made.chains, made.memory.write_latency, made.clock_hz) == (128, 4, 7, 200_000_000)
    assert made.base == "u55c" and cards.card_of(made).name == "u55c"
    assert resolve("u280", ["lanes=32"]).name == "u280-lanes32"
    assert resolve("u280", ["lanes = 32"]) != resolve("u280", ["lanes=64"])


def test_the_base_changes_nothing_in_the_machine():
    """A configuration's digest, which RTL and container carry, is that of its own fields."""
    u280 = get("u280")
    assert replace(u280, base="u55c").digest() == u280.digest()
    assert replace(u280, lanes=32).digest() != u280.digest()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lanes = 32\n", "no base: write base = NAME"),
        ('base = "u281"\n', "base = 'u281': write base = NAME, one of tiny"),
        ('base = "u280"\nlane = 32\n', "lane is no field, is lanes meant?"),
        ('base = "u280"\n[memory]\nlatency = 3\n', "memory.latency is no field"),
        ('base = "u280"\nmemory = 3\n', "memory is a section"),
        ('base = "u280"\n[memory]\nkind = "hbm3"\n', "memory.kind = 'hbm3', supported are fixed, hbm"),
        ('base = "u280"\n[memory]\nkind = 3\n', "memory.kind = 3 is not a word"),
        ('base = "u280"\nlanes = 33\n', "lanes = 33 is not a multiple of 16"),
        ('base = "u280"\nlanes = "32"\n', "lanes = '32' is not a whole number of lanes"),
        ('base = "u280"\nlanes = 32.0\n', "lanes = 32.0 is not a whole number"),
        ('base = "u280"\nunits = true\n', "units = True is not a whole number"),
        ('base = "u280"\nname = "tiny"\n', "is that of a built-in configuration"),
        ('base = "u280"\nname = "a/b"\n', "the name 'a/b' is not of 1 to 48"),
        ('base = "u280"\nlanes = \n', "is not TOML"),
        ('base = "u280"\nclock_hz = 301_000_000\n', "is above memory.clock_hz = 300,000,000"),
    ],
)
def test_what_is_no_machine(tmp_path, text, said):
    assert said in refusal(written(tmp_path, text))


def test_files_that_cannot_be_read(tmp_path):
    assert "no file" in refusal(str(tmp_path / "none.toml"))
    (tmp_path / "folder.toml").mkdir()
    assert "cannot read" in refusal(str(tmp_path / "folder.toml"))
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe\x00")
    assert "is not text" in refusal(str(tmp_path / "bytes.toml"))


@pytest.mark.parametrize("change", ["lanes", "=3", "lanes=", ""])
def test_what_is_no_change(change):
    assert f"--set {change!r} is not field=value" in refusal("tiny", [change])


@pytest.mark.parametrize("name", ["U280", "u28", "nothing", ""])
def test_names_that_are_none(name):
    assert f"unknown configuration {name!r}" in refusal(name)


def test_every_field_has_a_range_and_every_range_is_kept():
    fields = [name for name in asdict(get("tiny")) if name not in ("name", "memory", "base")]
    assert list(FIELDS) == fields
    assert list(MEMORY_FIELDS) == [name for name in asdict(get("tiny").memory) if name != "kind"]
    for name, field in FIELDS.items():
        for value in (field.least - 1, field.most + 1, -1):
            assert f"{name} = {value:,} is outside {field.least:,}..{field.most:,} {field.unit}" in refusal(
                "tiny", [f"{name}={value}"]
            )
    for name, field in MEMORY_FIELDS.items():
        assert f"memory.{name} = {field.most + 1:,} is outside" in refusal("tiny", [f"memory.{name}={field.most + 1}"])


@given(name=st.sampled_from([*FIELDS, *(f"memory.{name}" for name in MEMORY_FIELDS)]), value=st.integers(-2, 1 << 37))
def test_a_number_makes_a_machine_or_is_refused_in_one_line(name, value):
    try:
        made = resolve("u280", [f"{name}={value}"])
    except ConfigError as error:
        assert "\n" not in str(error)
    else:
        assert isinstance(made, Config) and cards.card_of(made).budget(made)
