"""The host runtime against a stand-in for pyxrt up to 2.14: no RTL here, a machine of a few lines answers."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from hw.spec import config as configurations
from hw.spec import csr
from hw.spec.errors import InternalError, UserError
from hw.spec.isa import ISA_VERSION, Error
from hw.spec.packaging import FIRST_POINTER
from hw.spec.run import Invocation
from sim.memory_image import MemoryImage
from sim.xrt.backend import XrtBackend

CONFIG = configurations.get("tiny")
AUX = CONFIG.aux_port
DIGEST = int(CONFIG.digest()[:8], 16)


def fake_pyxrt(polls=3, status=0, digest=DIGEST, address=0x12_3450_0000):
    """A device whose kernel is done after some polls, and adds 1 to aux byte 5. Notes what happens in `log`."""
    state, log = {csr.CTRL: csr.CTRL_IDLE}, []
    state |= {csr.REGISTERS["isa_version"]: ISA_VERSION, csr.REGISTERS["config_digest"]: digest}
    objects: dict = {}

    class Bo:
        normal = 0

        def __init__(self, device, size, flags, group):
            self.group, self.host, self.card = group, np.zeros(size, np.uint8), np.zeros(size, np.uint8)
            objects[group] = self

        def address(self):
            return address + (self.group << 32)

        def size(self):
            return len(self.host)

        def write(self, data, seek):
            self.host[seek : seek + len(data)] = data

        def read(self, size, skip):
            return self.host[skip : skip + size].view(np.int8)

        def sync(self, direction, size, offset):
            source, target = (self.host, self.card) if direction == "to" else (self.card, self.host)
            target[offset : offset + size] = source[offset : offset + size]

    class Kernel:
        exclusive = 1

        def __init__(self, device, uuid, name, mode):
            log.append(("kernel", uuid, name, mode))

        def group_id(self, argument):
            return argument - FIRST_POINTER

    def read(self, offset):
        if offset == csr.CTRL and state.get("left", 0):
            state["left"] -= 1
            if not state["left"]:
                objects[AUX].card[5] += 1
                state[csr.REGISTERS["status"]] = status
                state[csr.counter_offset("cycles")] = 77
                state[csr.CTRL] = csr.CTRL_IDLE
                return csr.CTRL_DONE | csr.CTRL_IDLE
            return csr.CTRL_START
        return state.get(offset, 0)

    def write(self, offset, value):
        log.append((offset, value))
        if offset == csr.CTRL:
            state["left"] = polls

    Kernel.read_register, Kernel.write_register = read, write
    directions = SimpleNamespace(XCL_BO_SYNC_BO_TO_DEVICE="to", XCL_BO_SYNC_BO_FROM_DEVICE="from")
    device = lambda index: SimpleNamespace(load_xclbin=lambda path: f"uuid of {path} on {index}")  # noqa: E731
    return SimpleNamespace(device=device, kernel=Kernel, bo=Bo, xclBOSyncDirection=directions, log=log, objects=objects)


@pytest.fixture
def xclbin(tmp_path):
    path = tmp_path / "a.xclbin"
    path.write_bytes(b"x")
    return path


def opened(monkeypatch, xclbin, fake, **options):
    monkeypatch.setitem(sys.modules, "pyxrt", fake)
    return XrtBackend("1", xclbin, sizes_bytes=[4096] * CONFIG.units + [10000], **options)


def test_a_run_from_load_to_results(monkeypatch, xclbin):
    fake = fake_pyxrt()
    backend = opened(monkeypatch, xclbin, fake)
    memory = MemoryImage(CONFIG)
    memory.attach(0, 64, np.arange(10, dtype=np.uint8))
    memory.write(AUX, 0, bytes(range(32)))
    result = backend.run(CONFIG, memory, Invocation(3, 4, args=(-1, 7), watchdog=9))
    assert result.ok and result.cycles == 77 and result.counters["cycles"] == 77
    assert fake.log[0] == ("kernel", f"uuid of {xclbin} on 1", "alula_kernel:{alula_1}", 1)
    written = dict(fake.log[1:])
    assert written[csr.REGISTERS["program_addr"]] == 3 and written[csr.REGISTERS["arg1"]] == 0xFFFFFFFF
    assert (written[csr.base_offset(1)], written[csr.base_offset(1) + 4]) == (0x34500000, 0x12 + 1)
    assert fake.log[-1] == (csr.CTRL, csr.CTRL_START)
    assert fake.objects[0].card[64:74].tolist() == list(range(10))
    assert len(fake.objects[AUX].host) == 3 * 4096  # whole pages
    assert memory.read(AUX, 4, 3).tolist() == [4, 6, 6]  # what the machine changed, from the device
    memory.write(AUX, 5, b"\x20")
    assert fake.objects[AUX].card[5] == 0x20
    backend.run(CONFIG, memory, Invocation(3, 4))
    assert memory.read(AUX, 5, 1)[0] == 0x21 and len([entry for entry in fake.log if entry[0] == "kernel"]) == 1


def test_an_error_of_the_machine_is_its_status(monkeypatch, xclbin):
    backend = opened(monkeypatch, xclbin, fake_pyxrt(status=int(Error.BUS_READ)))
    result = backend.run(CONFIG, MemoryImage(CONFIG), Invocation(0, 1))
    assert not result.ok and result.status == Error.BUS_READ


def test_what_never_ends_is_given_up(monkeypatch, xclbin):
    backend = opened(monkeypatch, xclbin, fake_pyxrt(polls=10**9), timeout_seconds=0.05)
    with pytest.raises(InternalError, match="not done within"):
        backend.run(CONFIG, MemoryImage(CONFIG), Invocation(0, 1))
    with pytest.raises(InternalError, match="not idle"):
        backend.run(CONFIG, backend._owner, Invocation(0, 1))


def test_a_wrong_kernel_is_one_line(monkeypatch, xclbin):
    with pytest.raises(UserError, match="build and load that configuration") as error:
        opened(monkeypatch, xclbin, fake_pyxrt(digest=DIGEST ^ 1)).run(CONFIG, MemoryImage(CONFIG), Invocation(0, 1))
    assert "\n" not in str(error.value)


def test_a_buffer_off_its_page_is_refused(monkeypatch, xclbin):
    with pytest.raises(InternalError, match="not on a page"):
        opened(monkeypatch, xclbin, fake_pyxrt(address=64)).run(CONFIG, MemoryImage(CONFIG), Invocation(0, 1))


def test_memory_on_the_device_is_not_forked(monkeypatch, xclbin):
    backend, memory = opened(monkeypatch, xclbin, fake_pyxrt()), MemoryImage(CONFIG)
    backend.run(CONFIG, memory, Invocation(0, 1))
    with pytest.raises(InternalError, match="open a backend for each"):
        backend.run(CONFIG, MemoryImage(CONFIG), Invocation(0, 1))
    with pytest.raises(InternalError, match="the device's buffer has"):
        memory.read(0, 4090, 10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"device": "zero"}, "--device 'zero'"),
        ({"device": "0"}, "give --xclbin FILE"),
        ({"device": "0", "xclbin": "missing"}, "no file missing"),
    ],
)
def test_bad_options_are_one_line(arguments, message, tmp_path):
    from pathlib import Path

    arguments = {key: Path(value) if key == "xclbin" else value for key, value in arguments.items()}
    with pytest.raises(UserError, match=message):
        XrtBackend(**arguments)


def test_the_first_pointer_is_the_packaging_s():
    from alula.alveo.registers import arguments

    pointers = [a.index for a in arguments(CONFIG) if a.port]
    assert pointers == list(range(FIRST_POINTER, FIRST_POINTER + CONFIG.units + 1))
