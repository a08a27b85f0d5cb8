"""The baselines to the one program: bucketed and unrolled streams give the same bits; their sizes."""

import json

import numpy as np
import pytest

from alula.cli import main
from alula.runtime.images import model_image
from alula.runtime.lengths import SESSIONS, Bucketed, Unrolled, program_sizes, stream_bytes
from alula.session import open_flow
from alula.verification import verify
from hw.spec.errors import UserError
from hw.spec.isa import Op
from ref_model.golden import GoldenText
from ref_model.mask import BlockMask
from sim.registry import backend

STRAIGHT = {Op.LDS, Op.SET, Op.ISSUE, Op.FENCE, Op.HALT}


class Keeping:
    """A backend that remembers the streams it ran."""

    def __init__(self, name: str):
        self.inner, self.name, self.streams = backend(name), name, []

    def run(self, config, memory, call):
        words = memory.read(config.aux_port, call.program_addr * 64, call.program_length * 8)
        self.streams.append(words.tobytes())
        return self.inner.run(config, memory, call)


@pytest.mark.parametrize("mode", ["unrolled", "bucketed"])
@pytest.mark.parametrize("n", [1, 2, 17, 100, 130])
def test_prefill_and_decode_equal_golden(tiny, mode, n):
    compiled, quant = tiny
    machine, golden = SESSIONS[mode](compiled, model_image(compiled, quant), backend("functional")), GoldenText(quant)
    ids = np.random.default_rng(n).integers(0, 256, n).tolist()
    want = golden.logits(golden.forward(golden.embed(ids))[-1:])[0]
    np.testing.assert_array_equal(machine.prefill(machine.prompt_rows(ids)), want)
    for token in (7, 255):
        want = golden.logits(golden.forward(golden.embed([token])))[0]
        np.testing.assert_array_equal(machine.decode(token), want)


def test_streams_are_straight_and_serve_what_they_say(tiny):
    compiled, quant = tiny
    memory = model_image(compiled, quant)
    seen = {}
    for mode in (Unrolled, Bucketed):
        machine = mode(compiled, memory.fork(), Keeping("functional"))
        for token in range(34):
            machine.decode(token)
        seen[mode] = machine.backend.streams
        ops = {op for stream in seen[mode] for op in np.frombuffer(stream, np.uint64).astype(np.uint8).tolist()}
        assert ops <= STRAIGHT
    assert len(set(seen[Unrolled])) == 34
    # A stream a bucket of 16, however many keys of a slot it has: scales come in granules of 16.
    assert len(set(seen[Bucketed])) == 3
    assert all(len(set(seen[Bucketed][first : first + 16])) == 1 for first in (0, 16, 32))
    again = Unrolled(compiled, memory.fork(), Keeping("functional"))
    for token in (90, 91):
        again.decode(token)
    assert again.backend.streams == seen[Unrolled][:2], "a stream must not depend on the tokens"


@pytest.mark.parametrize("program", ["unrolled", "bucketed"])
def test_verify_runs_them(program):
    flow = open_flow("llava-tiny", "tiny", program=program)
    result = verify(flow, "cycle", lengths=(1, 19), steps=1, decode=(3, 40))
    assert result["bit_exact"] and result["program"] == program
    cases = {case["name"]: case for case in result["cases"]}
    assert all(case["cycles_simulated"] > 0 for case in result["cases"])
    # A bucketed prefill is two runs, 128 rows and a decode step: both count.
    assert cases["prefill 19"]["cycles_simulated"] > 4 * cases["decode kv 20"]["cycles_simulated"]
    assert cases["prefill 19"]["program_bytes"] > cases["decode kv 20"]["program_bytes"]


@pytest.mark.slow
@pytest.mark.parametrize("program", ["unrolled", "bucketed"])
def test_streams_in_rtl(program):
    """Instruction memory grows to what they need: the same machine built with 16,384 instructions."""
    result = verify(open_flow("llava-tiny", "tiny", vision=False, program=program), "rtl", lengths=(17, 70), steps=1)
    assert result["bit_exact"] and result["cycle_exact"]


@pytest.mark.slow
def test_one_program_in_rtl():
    lengths = (1, 2, 3, 15, 16, 17, 31, 33, 63, 64, 65, 100)
    flow = open_flow("llava-tiny", "tiny")
    result = verify(flow, "rtl", lengths=lengths, decode=lengths)
    print(f"program SHA-256 at all lengths: {result['program_sha256']}")
    assert result["bit_exact"] and result["cycle_exact"] and len(result["program_sha256"]) == 1


def test_one_program_for_all_lengths():
    result = verify(open_flow("llava-tiny", "tiny"), "cycle", lengths=(1, 16, 17), steps=0, decode=(1, 2, 33))
    assert result["bit_exact"] and len(result["program_sha256"]) == 1
    assert {case["program_bytes"] for case in result["cases"]} == {result["cases"][0]["program_bytes"]}


def test_what_streams_refuse(tiny):
    compiled, quant = tiny
    machine = Bucketed(compiled, model_image(compiled, quant), backend("functional"))
    machine.prefill(machine.prompt_rows([1, 2, 3]))
    with pytest.raises(UserError, match="empty cache"):
        machine.prefill(machine.prompt_rows([1, 2, 3]))
    geo = compiled.layout.geo
    mask = BlockMask.parse("causal", 1 << geo.keys_per_slot_log2, geo.slots(compiled.layout.context))
    with pytest.raises(UserError, match="no attention mask"):
        Unrolled(compiled, machine.memory, backend("functional")).prefill([machine.embed_row(1)], mask=mask)
    with pytest.raises(UserError, match="unknown kind of program"):
        open_flow("llava-tiny", "tiny", program="rolled")


def test_extrapolated_sizes_are_the_real_ones():
    flow = open_flow("smollm2-135m", "small", layers=6, vision=False, timing_only=True)
    assert flow.layers == 6
    for tokens, start in ((1, 40), (30, 0)):
        machine = Unrolled(flow.compiled, flow.image.fork(), Keeping("functional"), head=tokens > 0)
        machine.kept = start
        machine.backend.inner = _Nothing()
        machine.prefill([machine.embed_row(0)] * tokens)
        real = len(machine.backend.streams[0])
        assert stream_bytes(flow.compiled, flow.image.fork(), "unrolled", tokens, start) == real


class _Nothing:
    def run(self, config, memory, call):
        from hw.spec.isa import Error
        from hw.spec.run import Result

        return Result(Error.NONE, 0, 0, None)


def test_sizes(tiny):
    flow = open_flow("llava-tiny", "tiny", timing_only=True)
    sizes = program_sizes(flow.compiled, flow.image)
    assert sizes["runtime"]["program_bytes"] == len(tiny[0].program.words) * 8
    assert sizes["runtime"]["program_bytes"] < sizes["bucketed"]["program_bytes"] < sizes["unrolled"]["program_bytes"]
    assert sizes["bucketed"]["streams"] == 16 + 2 and sizes["unrolled"]["streams"] == 512


def test_compile_command(tmp_path, capsys):
    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            main(["compile", *arguments])
        return ended.value.code

    for mode in ("runtime", "bucketed", "unrolled"):
        assert run("--timing-only", "--lengths", mode, "--json", str(tmp_path / "c.json")) == 0
        found = json.loads((tmp_path / "c.json").read_text())
        assert found["program_bytes"] == found["by_lengths"][mode]["program_bytes"]
        assert set(found["by_lengths"]) == {"runtime", "bucketed", "unrolled"}
    assert run("--timing-only", "-o", str(tmp_path / "p.alula")) == 0
    assert run("--lengths", "unrolled", "-o", str(tmp_path / "x.alula")) == 1
    assert run("--timing-only", "--lengths", "rolled") == 1
    assert run() == 1
    assert "give -o FILE" in capsys.readouterr().err


@pytest.mark.slow
def test_baselines_of_a_large_model_have_sizes(capsys):
    """A program for one long length of 7B has more instructions than any machine's memory: it is sized all the same."""
    with pytest.raises(SystemExit) as end:
        main(["compile", "--model", "llava-1.5-7b", "--config", "u280", "--timing-only"])
    assert end.value.code == 0
    assert "unrolled" in capsys.readouterr().out
