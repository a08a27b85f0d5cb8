"""The table of registers: complete, without overlaps, and what the RTL and the page go by."""

from itertools import pairwise
from pathlib import Path

from hw.spec import csr
from hw.spec.run import KEEP_PROGRAM

PAGE = (Path(__file__).resolve().parents[3] / "docs/isa.md").read_text()
PORTS = 3


def test_registers_lie_one_behind_the_other():
    table = csr.registers(PORTS)
    for register, following in pairwise(table):
        assert register.offset % 4 == 0 and register.offset + register.bits // 8 <= following.offset
    assert len({register.name for register in table}) == len(table)


def test_every_register_is_explained():
    for register in csr.registers(PORTS):
        assert register.meaning and register.access in csr.ACCESS and register.bits in (32, 64)
        for field in register.fields:
            assert field.meaning and (field.access or "RW") in csr.ACCESS
            assert 0 <= field.low <= field.high < register.bits


def test_the_table_is_what_programs_use():
    offsets = {register.name: register.offset for register in csr.registers(PORTS)}
    assert csr.REGISTERS.items() <= offsets.items()
    assert {name: csr.counter_offset(name) for name in csr.COUNTERS}.items() <= offsets.items()
    assert [offsets[f"base{port:02d}"] for port in range(PORTS)] == [csr.base_offset(port) for port in range(PORTS)]
    assert [offsets[name] for name in ("ctrl", "gier", "ier", "isr")] == [csr.CTRL, csr.GIER, csr.IER, csr.ISR]
    assert (csr.CTRL_START, csr.CTRL_DONE, csr.CTRL_IDLE, csr.CTRL_READY) == (1, 2, 4, 8)
    flags = next(register for register in csr.registers(0) if register.name == "flags")
    assert 1 << flags.fields[0].low == KEEP_PROGRAM


def test_the_page_has_every_register():
    for register in csr.registers(0):
        assert f"| 0x{register.offset:03x} | `{register.name}` | {register.access} |" in PAGE
        assert register.meaning in PAGE
