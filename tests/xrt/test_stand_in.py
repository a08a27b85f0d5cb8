"""`alula generate --backend xrt --device sim`: the host runtime's own code over the packaged kernel's RTL."""

import json

import numpy as np
import pytest
from PIL import Image

from alula import cli
from alula.session import open_flow
from hw.spec import config as configurations
from hw.spec.isa import Error
from hw.spec.run import Invocation
from sim.memory_image import MemoryImage
from sim.xrt.backend import XrtBackend
from tests.hw.machine import PROGRAM_BEAT, Program

CONFIG = configurations.get("tiny")
TOKENS = 3
pytestmark = pytest.mark.slow  # the packaged kernel is a netlist of its own to build


def generate(tmp_path, name: str, *more: str) -> dict:
    """What `alula generate` reports of llava-tiny on one picture."""
    picture = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (56, 56, 3), np.uint8)).save(picture)
    out = tmp_path / f"{name}.json"
    arguments = ["generate", "--model", "llava-tiny", "--config", "tiny", "--image", str(picture), "--prompt", "What?",
                 "--tokens", str(TOKENS), "--check", "--json", str(out), "--backend", name, *more]  # fmt: skip
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 0
    return json.loads(out.read_text())


def test_llava_tiny_through_the_host_runtime(tmp_path):
    """Image, prompt and decode steps: the golden model's tokens and bits, and the cycles of the cycle simulator."""
    made, simulated = generate(tmp_path, "xrt", "--device", "sim"), generate(tmp_path, "cycle")
    assert made["bit_exact"] and made["tokens_equal_golden"] and made["compared_bytes"] > 10_000
    assert made["token_ids"] == simulated["token_ids"] and len(made["token_ids"]) == TOKENS
    assert [step["cycles"] for step in made["steps"]] == [step["cycles"] for step in simulated["steps"]]


def one(program: Program, **options):
    """A program's result through the host runtime."""
    memory = MemoryImage(CONFIG)
    memory.write(CONFIG.aux_port, 64 * PROGRAM_BEAT, program.image())
    backend = XrtBackend(**options)
    return backend.run(CONFIG, memory, Invocation(PROGRAM_BEAT, len(program.words), instruction_limit=1000))


def test_errors_of_the_machine_reach_the_host():
    program = Program()
    program.halt(7)
    result = one(program)
    assert (result.status, result.detail, result.counters["instructions"]) == (Error.HALT_CODE, 7, 1)


def test_a_bus_error_ends_the_run_and_is_told():
    """The program lies behind the end of the device's buffer."""
    program = Program()
    program.halt()
    memory = MemoryImage(CONFIG)
    backend = XrtBackend(sizes_bytes=[4096] * CONFIG.units + [64 * PROGRAM_BEAT])
    result = backend.run(CONFIG, memory, Invocation(PROGRAM_BEAT, 1))
    assert result.status == Error.BUS_READ


def test_stalls_change_no_bit(tmp_path):
    """A text step with every handshake stalled at random: the logits of the functional simulator."""
    flow = open_flow("llava-tiny", "tiny", vision=False)
    machine, reference = (flow.machine(backend) for backend in (XrtBackend(stall_percent=30), _functional()))
    rows = [machine.embed_row(token) for token in (3, 1, 4)]
    np.testing.assert_array_equal(machine.prefill(rows), reference.prefill(rows))


def _functional():
    from sim.registry import backend

    return backend("functional")
