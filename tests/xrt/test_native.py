"""The bridges to XRT's and SLASH's C++ libraries, against stand-ins that have those libraries' forms and no more."""

import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from hw.spec import config as configurations
from hw.spec import csr, packaging
from hw.spec.errors import InternalError, UserError
from hw.spec.isa import Error
from hw.spec.run import Invocation
from sim.memory_image import MemoryImage
from sim.xrt import native_runtime
from sim.xrt.backend import XrtBackend
from sim.xrt.native_runtime import SLASH, XRT
from tests.xrt.native_stand_ins import Machine, installed

CONFIG = configurations.get("tiny")
AUX = CONFIG.aux_port
DIGEST = int(CONFIG.digest()[:8], 16)
PLACES = {"XRT": ("1", "a.xclbin"), "SLASH": ("01:00", "a.vbin")}
"""Library -> the card and the container that its stand-in has."""
TODAYS_PYXRT = SimpleNamespace(kernel=SimpleNamespace)
"""pyxrt after 2.14: its kernel has no read_register."""


@pytest.fixture(params=[XRT, SLASH], ids=lambda library: library.name)
def library(request, monkeypatch):
    monkeypatch.setenv(request.param.variable, str(installed(request.param)))
    monkeypatch.setitem(sys.modules, "pyxrt", TODAYS_PYXRT)
    return request.param


def opened(library, tmp_path, device=None, name=None, **options):
    """A backend on the stand-in's card."""
    of, container = PLACES[library.name]
    path = tmp_path / (name or container)
    path.write_bytes(b"x")
    return XrtBackend(device or of, path, sizes_bytes=[4096] * CONFIG.units + [10000], **options)


def test_a_run_from_load_to_results(library, tmp_path):
    machine, backend = Machine(library, CONFIG, DIGEST), opened(library, tmp_path)
    memory = MemoryImage(CONFIG)
    memory.attach(0, 64, np.arange(10, dtype=np.uint8))
    memory.write(AUX, 0, bytes(range(32)))
    result = backend.run(CONFIG, memory, Invocation(3, 4, args=(-1, 7), watchdog=9))
    assert result.ok and result.cycles == 77 and result.counters["cycles"] == 77
    unit = {"XRT": "alula_kernel:{alula_1}", "SLASH": "alula_1"}[library.name]
    assert machine.opened == f"{tmp_path / PLACES[library.name][1]} {unit}"
    assert machine.register(csr.REGISTERS["program_addr"]) == 3
    assert machine.register(csr.REGISTERS["arg1"]) == 0xFFFFFFFF
    assert [machine.byte(0, 64 + at) for at in range(10)] == list(range(10))
    assert memory.read(AUX, 4, 3).tolist() == [4, 6, 6]  # what the machine changed, from the device
    memory.write(AUX, 5, b"\x20")
    assert machine.byte(AUX, 5) == 0x20
    backend.run(CONFIG, memory, Invocation(3, 4))
    assert memory.read(AUX, 5, 1)[0] == 0x21


def test_each_port_s_memory_is_in_the_bank_behind_it(library, tmp_path):
    """XRT: the kernel argument's group; SLASH: the channel of the vbin's connection, DDR for aux."""
    machine = Machine(library, CONFIG, DIGEST)
    opened(library, tmp_path).run(CONFIG, MemoryImage(CONFIG), Invocation(0, 1))
    found = [machine.base(port) for port in range(CONFIG.units + 1)]
    if library is SLASH:
        assert found == [0x40_0000_0000, 0x40_2000_0000, 0x600_0000_0000]
    else:
        first = packaging.FIRST_POINTER
        assert found == [0x12_3450_0000 + (40 + first + port << 32) for port in range(3)]


def test_slash_memory_above_its_largest_block_is_one(monkeypatch, tmp_path):
    """637 MB, as aux of LLaVA-1.5-7B needs: two blocks, and bytes over their border arrive."""
    monkeypatch.setenv(SLASH.variable, str(installed(SLASH)))
    machine = Machine(SLASH, CONFIG, DIGEST)
    border = 512 << 20
    backend, memory = opened(SLASH, tmp_path), MemoryImage(replace(CONFIG, aux_bytes=640 << 20))
    backend.sizes_bytes = [4096] * CONFIG.units + [637_202_432]
    backend.run(CONFIG, memory, Invocation(0, 1))
    memory.write(AUX, border - 2, bytes([1, 2, 3, 4]))
    assert [machine.byte(AUX, border + at) for at in (-2, 1)] == [1, 4]
    assert memory.read(AUX, border - 2, 4).tolist() == [1, 2, 3, 4]


def test_an_error_of_the_machine_is_its_status(library, tmp_path):
    _machine = Machine(library, CONFIG, DIGEST, status=int(Error.BUS_READ))
    result = opened(library, tmp_path).run(CONFIG, MemoryImage(CONFIG), Invocation(0, 1))
    assert not result.ok and result.status == Error.BUS_READ


def test_what_never_ends_is_given_up(library, tmp_path):
    _machine = Machine(library, CONFIG, DIGEST, polls=10**9)
    with pytest.raises(InternalError, match="not done within"):
        opened(library, tmp_path, timeout_seconds=0.05).run(CONFIG, MemoryImage(CONFIG), Invocation(0, 1))


def test_a_wrong_kernel_and_a_buffer_off_its_page_are_refused(library, tmp_path):
    _machine = Machine(library, CONFIG, DIGEST ^ 1)
    with pytest.raises(UserError, match="build and load that configuration"):
        opened(library, tmp_path).run(CONFIG, MemoryImage(CONFIG), Invocation(0, 1))
    _machine = Machine(library, CONFIG, DIGEST, shift=64)
    with pytest.raises(InternalError, match="not on a page"):
        opened(library, tmp_path).run(CONFIG, MemoryImage(CONFIG), Invocation(0, 1))


def test_what_the_library_says_is_one_line(library, tmp_path):
    _machine = Machine(library, CONFIG, DIGEST)
    device = {"XRT": "7", "SLASH": "02:00"}[library.name]
    with pytest.raises(
        UserError, match=f"cannot open card {device} with .*{library.name}: [Nn]o (such )?device"
    ) as error:
        opened(library, tmp_path, device).run(CONFIG, MemoryImage(CONFIG), Invocation(0, 1))
    assert "\n" not in str(error.value)


def test_a_vbin_for_simulation_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv(SLASH.variable, str(installed(SLASH)))
    _machine = Machine(SLASH, CONFIG, DIGEST)
    with pytest.raises(UserError, match="give one that was built with --target hw"):
        opened(SLASH, tmp_path, name="sim.vbin").run(CONFIG, MemoryImage(CONFIG), Invocation(0, 1))


def test_without_the_library_it_says_so(library, tmp_path, monkeypatch):
    monkeypatch.setenv(library.variable, str(tmp_path))
    message = rf"{library.name} is not installed: there is no include/\S+ in \S+ .*; install"
    with pytest.raises(UserError, match=message) as error:
        opened(library, tmp_path).run(CONFIG, MemoryImage(CONFIG), Invocation(0, 1))
    assert "\n" not in str(error.value)


def test_headers_of_another_form_are_one_line(tmp_path, monkeypatch):
    """A library whose forms have changed: the compiler's first complaint."""
    header = tmp_path / "include" / XRT.header
    header.parent.mkdir(parents=True)
    header.write_text("#pragma once\n")
    monkeypatch.setenv(XRT.variable, str(tmp_path))
    with pytest.raises(InternalError, match=r"the bridge to XRT does not compile against .*error") as error:
        native_runtime.build(XRT)
    assert "\n" not in str(error.value)


def test_the_kernel_is_called_as_its_packaging_says():
    from hw import emit, kernel

    assert emit.KERNEL == packaging.KERNEL
    for config in configurations.CONFIGS.values():
        members = kernel.Kernel(config).signature.members
        interfaces = {name.rsplit("_", 1)[0] for name in members if name.startswith("m")}
        assert interfaces == {packaging.port_name(port) for port in range(config.units + 1)}


@pytest.mark.parametrize(
    ("device", "name", "message"),
    [("0", "a.vbin", "give the PCIe address of a V80"), ("d8:00", "a.xclbin", "give a card's number")],
)
def test_a_card_is_named_as_its_container_wants(tmp_path, device, name, message):
    with pytest.raises(UserError, match=message):
        opened(SLASH if name == "a.vbin" else XRT, tmp_path, device, name)
