"""`python -m hw.spec.isa_doc > docs/isa.md`: the instruction-set reference, from the tables that define it."""

import ast
import re
from collections.abc import Sequence
from pathlib import Path

from . import csr, isa, legal

_KINDS = {"r": "register", "u": "unit", "m": "unit mask", "f": "descriptor field", "-": ""}
_ENUMS = (isa.StMode, isa.LdKind, isa.StKind, isa.StreamFormat, isa.MxMode, isa.Src, isa.Mul1, isa.Mul2, isa.Add,
          isa.Func, isa.Mul3, isa.Row, isa.Tap, isa.Reduce, isa.Fin, isa.Dst, isa.Error)  # fmt: skip


def page() -> str:
    """The whole page."""
    comments = _member_comments()
    parts = [
        "# Instruction set",
        "Generated from `hw/spec/isa.py`, `hw/spec/legal.py` and `hw/spec/csr.py` by `python -m hw.spec.isa_doc`; "
        "do not edit.",
        (isa.__doc__ or "").strip(),
        f"Version {isa.ISA_VERSION}; {isa.REGISTERS} registers of 32 bits, r0 reads 0; r1..r{isa.ARGUMENT_REGISTERS} "
        f"are arguments; loops nest {isa.LOOP_DEPTH} deep.",
        "## Legal instruction streams",
        (legal.__doc__ or "").strip(),
        "## Instructions",
        _table(
            ("code", "name", "a", "b", "c", "meaning"),
            [
                (f"0x{op:02x}", op.name, *(_KINDS[k] for k in isa.OPERANDS[op]), comments["Op", op.name])
                for op in isa.Op
            ],
        ),
        "## Descriptors",
        "SET's operand a is unit * 32 + index. Every field is 32 bits; strides are signed.",
        *(
            f"**{unit.name}**: " + ", ".join(f"{i} `{name}`" for i, name in enumerate(isa.FIELDS[unit]))
            for unit in isa.Unit
        ),
        "### Vector control words",
        *(f"`{name}`: " + ", ".join(_bits(layout)) for name, layout in (("ctl0", isa.CTL0), ("ctl1", isa.CTL1))),
        "## Enumerations",
        *(_enumeration(kind, comments) for kind in _ENUMS),
        "## Control registers",
        "AXI4-Lite; byte offsets. A register has 32 bits; one of 64 has its low word at the offset, its high word 4 "
        "bytes further on. Offsets that are not listed read 0, writes there have no effect. Status and counters are "
        "those of the latest run and are cleared by its start. Base registers are written while the machine is idle.",
        "Access: " + "; ".join(f"{name}: {meaning}" for name, meaning in csr.ACCESS.items()) + ".",
        _table(("offset", "name", "access", "bits", "unit", "meaning"), _registers()),
        "### Bit fields",
        "Bits that are not listed mean nothing.",
        _table(("register", "bits", "name", "access", "meaning"), _fields()),
    ]
    return "\n\n".join(parts) + "\n"


def _registers() -> list[tuple[str, ...]]:
    """A row a register; the base registers, of which a configuration has one a memory port, are one row."""
    base = csr.registers(1)[-1]
    rows = [(f"0x{r.offset:03x}", f"`{r.name}`", r.access, str(r.bits), r.unit, r.meaning) for r in csr.registers(0)]
    meaning = (
        f"base address of memory port P (the channels from 0 on, then the auxiliary memory): "
        f"{base.meaning.replace('memory port 0', 'the port')}"
    )
    return [*rows, (f"0x{base.offset:03x} + 8 P", "`baseP`", base.access, str(base.bits), base.unit, meaning)]


def _fields() -> list[tuple[str, ...]]:
    return [
        (f"`{register.name}`", _range(field.low, field.high), f"`{field.name}`", field.access or register.access,
         field.meaning)
        for register in csr.registers(0)
        for field in register.fields
    ]  # fmt: skip


def _range(low: int, high: int) -> str:
    return f"{low}" if low == high else f"{high}:{low}"


def _enumeration(kind, comments: dict) -> str:
    doc = (kind.__doc__ or "").strip()
    rows = [(str(int(m)), m.name, comments[kind.__name__, m.name]) for m in kind]
    return f"### {kind.__name__}\n\n{doc}\n\n" + _table(("code", "name", "meaning"), rows)


def _bits(layout) -> list[str]:
    out, at = [], 0
    for name, bits, _ in layout:
        out.append(f"{name} [{at}]" if bits == 1 else f"{name} [{at + bits - 1}:{at}]")
        at += bits
    return out


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _member_comments() -> dict[tuple[str, str], str]:
    """(class, member) -> the comment on the member's line, with the comment lines that continue it."""
    source = Path(isa.__file__).read_text()
    lines, out = source.splitlines(), {}
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.ClassDef):
            continue
        for item in node.body:
            if isinstance(item, ast.Assign) and isinstance(item.targets[0], ast.Name):
                out[node.name, item.targets[0].id] = _comment(lines, item.lineno - 1)
    return out


def _comment(lines: list[str], at: int) -> str:
    text = lines[at].partition("#")[2].strip()
    while text and at + 1 < len(lines) and re.match(r"\s+#", lines[at + 1]):
        at += 1
        text += " " + lines[at].partition("#")[2].strip()
    return text


if __name__ == "__main__":
    print(page(), end="")
