"""The checks that need no vendor tool pass for every card, and each finds the fault that is planted."""

import dataclasses
import re

import pytest

from alula.alveo import checks, generic, recipes, slash, tcl, vitis
from alula.alveo.flow import HOST, LINK, PACKAGE, VERILOG
from hw.accelerator import TOP, ports
from hw.kernel import Kernel
from hw.spec import cards, config
from hw.spec.packaging import KERNEL
from hw.verilog_writer import convert
from sim.rtl.lint import lint
from tests.alveo.test_build import PAIRS, wrapper


@pytest.fixture(scope="module", params=PAIRS, ids=lambda pair: "-".join(pair))
def project(request):
    """(config, card, files)"""
    return made(*request.param)


@pytest.fixture(scope="module", params=[pair for pair in PAIRS if cards.get(pair[1]).flow == cards.VITIS],
                ids=lambda pair: "-".join(pair))  # fmt: skip
def xrt_project(request):
    """As `project`, of the cards that v++ links."""
    return made(*request.param)


@pytest.fixture(scope="module")
def slash_project():
    """As `project`, of V80."""
    return made("v80", "v80")


@pytest.fixture(scope="module")
def generic_project():
    """As `project`, of no card."""
    return made("tiny", "generic")


def made(name: str, card: str) -> tuple:
    """(config, card, files)"""
    return config.get(name), cards.get(card), recipes.files(config.get(name), cards.get(card), wrapper(name))


def faults(project, file_name, change):
    """What the checks say when one file is changed."""
    machine, card, contents = project
    text = change(contents[file_name])
    assert text != contents[file_name], "the fault was not planted"
    return checks.all_checks(machine, card, contents | {file_name: text})


def test_a_good_project_passes(project):
    assert checks.all_checks(*project) == []


def test_the_kernel_lints(project):
    """With a stand-in for the accelerator, whose own text is linted in tests/hw."""
    declared = ports(project[0])
    ways = {name: "input" if member.flow.name == "In" else "output" for name, member in declared.items()}
    bits = {name: member.shape if isinstance(member.shape, int) else 1 for name, member in declared.items()}
    lines = [f"  {ways[name]} {f'[{bits[name] - 1}:0] ' if bits[name] > 1 else ''}{name}" for name in declared]
    driven = "".join(f"  assign {name} = 0;\n" for name in declared if ways[name] == "output")
    stand_in = f"module {TOP}(\n  input clk,\n  input rst,\n" + ",\n".join(lines) + f");\n{driven}endmodule\n"
    assert lint(project[2][VERILOG] + stand_in, KERNEL) == []


def test_a_missing_wlast_is_found(project):
    said = faults(project, VERILOG, lambda text: text.replace("  output m01_axi_wlast;\n", ""))
    assert said == [f"{KERNEL}: no port m01_axi_wlast"]


def test_a_port_outside_of_an_interface_is_found(project):
    def change(text):
        return text.replace("module alula_kernel(", "module alula_kernel(trace_cycle, ").replace(
            "  input ap_clk;\n", "  input ap_clk;\n  output [63:0] trace_cycle;\n"
        )

    assert faults(project, VERILOG, change) == [f"{KERNEL}: port trace_cycle belongs to no interface"]


def test_a_short_address_is_found(project):
    said = faults(
        project,
        VERILOG,
        lambda text: text.replace("output [63:0] m00_axi_araddr", "output [31:0] m00_axi_araddr"),
    )
    assert said == [f"{KERNEL}: port m00_axi_araddr is output of 32 bits, not output of 64"]


def test_an_unmapped_master_is_found(xrt_project):
    said = faults(xrt_project, LINK, lambda text: re.sub(r"sp=\S+m01_axi:.*\n", "", text))
    assert said == ["master m01_axi has no sp="]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (r"m01_axi:HBM\[1\]", "m01_axi:HBM[0]", r"masters m00_axi and m01_axi share HBM\[0\]"),
        (r"m01_axi:HBM\[1\]", "m01_axi:HBM[32]", r"has no memory HBM\[32\]"),
        (r"m01_axi:", "m99_axi:", "sp= names m99_axi, the kernel has no such master"),
        (r"(sp=\S+m01_axi:\S+\n)", r"\1\1", "master m01_axi has 2 sp="),
        (r"nk=alula_kernel:1", "nk=alula_kernel:2", "nk= is"),
        (r"platform=\S+", "platform=another", "platform= is"),
    ],
)
def test_a_wrong_connection_is_found(xrt_project, old, new, message):
    said = faults(xrt_project, LINK, lambda text: re.sub(old, new, text))
    assert any(re.search(message, line) for line in said), said


def test_a_place_that_the_card_has_not_is_found(xrt_project):
    machine, card, _ = xrt_project
    if vitis.fits_one_slr(machine, card):
        said = faults(xrt_project, LINK, lambda text: text.replace(":SLR0", ":SLR7"))
        assert said == [f"slr=alula_1:SLR7 is not on {card.name}"]
        return
    last = card.slrs - 1
    said = faults(xrt_project, vitis.FLOORPLAN, lambda text: text.replace(f"-add SLR{last}", "-add SLR7"))
    assert said == [f"Pblock alula_slr{last} is in SLR7, {card.name} has no such SLR"]
    said = faults(
        xrt_project,
        vitis.FLOORPLAN,
        lambda text: "".join(line for line in text.splitlines(keepends=True) if "unit_3}" not in line),
    )
    assert said == ["matrix unit 3 is in no Pblock"]


def test_a_changed_offset_is_found(project):
    said = faults(project, PACKAGE, lambda text: text.replace("program_addr 0x010 32", "program_addr 0x014 32"))
    assert len(said) == 1 and said[0].startswith("register program_addr is packaged as")
    said = faults(project, HOST, lambda text: text.replace('"offset": 24', '"offset": 28'))
    assert said == [f"{HOST}: arguments is not the machine's"]


def test_a_pointer_without_its_master_is_found(project):
    said = faults(project, PACKAGE, lambda text: text.replace("base01 0x408 64 m01_axi", "base01 0x408 64"))
    assert len(said) == 1 and said[0].startswith("register base01 is packaged as (offset, bits, master)")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("ipx::add_register_parameter", "ipx::add_register_paramter", "invalid command name"),
        ("-norecurse", "-norecursive", "add_files has no option -norecursive"),
        ("set_property usage register $block\n", "", "does not set usage register"),
        (r"ipx::check_integrity( -kernel)? \$core\n", "", "does not run ipx::check_integrity"),
        ("-busif m01_axi -clock ap_clk", "-busif m00_axi -clock ap_clk", "interface m01_axi has no clock"),
        ("    }\n}\nadd_register", "    }\nadd_register", "Tcl: "),
    ],
)
def test_a_broken_script_is_found(project, old, new, message):
    said = faults(project, PACKAGE, lambda text: re.sub(old if "?" in old else re.escape(old), new, text))
    assert any(message in line for line in said), said


def test_both_interpreters_record_the_same(monkeypatch, project):
    text = project[2][PACKAGE]
    if tcl.shutil.which("tclsh") is None:
        assert tcl.run(text)  # Python's own is all there is
        return
    own = tcl.run(text)
    monkeypatch.setattr(tcl, "_evaluate", tcl._tclsh)
    assert tcl.run(text) == own


def test_a_kernel_object_needs_what_makes_it_one(xrt_project):
    said = faults(xrt_project, PACKAGE, lambda text: text.replace("set_property sdx_kernel true $core\n", ""))
    assert said == ["package.tcl does not set sdx_kernel true"]
    said = faults(xrt_project, PACKAGE, lambda text: re.sub("package_xo .*\n", "", text))
    assert said == ["package.tcl does not run package_xo"]


def test_every_script_runs(xrt_project):
    for name in (PACKAGE, vitis.FLOORPLAN, vitis.REPORTS):
        tcl.run(xrt_project[2][name])
    reports = [command[0] for command in tcl.run(xrt_project[2][vitis.REPORTS]) if command[0].startswith("report_")]
    assert reports == ["report_utilization", "report_utilization", "report_timing_summary", "report_power"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (r"sp=\S+m63_axi:.*\n", "", "master m63_axi has no sp="),
        (r"m01_axi:HBM1\n", "m01_axi:HBM0\n", "masters m00_axi and m01_axi share HBM0"),
        (r"m01_axi:HBM1\n", "m01_axi:HBM64\n", "v80 has no memory HBM64"),
        (r"m01_axi:HBM1\n", r"m01_axi:HBM[1]\n", r"v80 has no memory HBM[1]"),
        (r"m64_axi:DDR0", "m64_axi:DDR4", "v80 has no memory DDR4"),
        (r"m01_axi:", "m99_axi:", "sp= names m99_axi, the kernel has no such master"),
        (r"(sp=\S+m01_axi:\S+\n)", r"\1\1", "master m01_axi has 2 sp="),
        (r"nk=alula_kernel:1", "nk=alula_kernel:2", "nk= is"),
        (r"freqhz=\d+", "freqhz=225", "[clock] is"),
        (r"krnl=alula_1\n", "", "[clock] is"),
        (
            r"(nk=.*\n)",
            r"\1[clock]\nkrnl=alula_1\nfreqhz=200000000\n",
            "stands in [clock], where slashkit does not read",
        ),
    ],
)
def test_a_wrong_connection_of_the_v80_is_found(slash_project, old, new, message):
    said = faults(slash_project, LINK, lambda text: re.sub(old, new, text))
    assert any(message in line for line in said), said


def test_the_v80_s_link_file_is_read_as_slashkit_reads_it(slash_project):
    machine, _, contents = slash_project
    found = slash.sections(contents[LINK])
    assert found["connectivity"][0] == ("nk", "alula_kernel:1:alula_1")
    assert found["connectivity"][1:] == [("sp", f"alula_1.m{i:02d}_axi:HBM{i}") for i in range(machine.units)] + [
        ("sp", "alula_1.m64_axi:DDR0")
    ]
    assert found["clock"] == [("krnl", "alula_1"), ("freqhz", "200000000")]


def test_a_clock_that_slash_does_not_set_is_found(slash_project):
    machine, card, _ = slash_project
    fast = dataclasses.replace(machine, clock_hz=400_000_000, memory=config.get("tiny").memory)
    assert checks.all_checks(fast, card, recipes.files(fast, card, wrapper("v80"))) == [
        "clock_hz = 400000000, SLASH sets at most 333333333 Hz"
    ]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("-period 4.444", "-period 5.000", "clock periods are ['5.000'] ns, the configuration has 225000000 Hz"),
        ("create_clock", "# create_clock", "clock periods are [] ns"),
        ("get_ports ap_clk", "get_ports clk", "alula_kernel has no port clk"),
        ("create_clock -name", "create_clock -nam", "create_clock has no option -nam"),
        ("[get_ports ap_clk]", "[get_ports ap_clk", "Tcl: "),
    ],
)
def test_wrong_constraints_are_found(generic_project, old, new, message):
    said = faults(generic_project, generic.CONSTRAINTS, lambda text: text.replace(old, new))
    assert any(message in line for line in said), said


def test_what_is_commented_out_of_the_constraints_runs_too(generic_project):
    """The Pblock that the template offers."""
    text = generic_project[2][generic.CONSTRAINTS]
    offered = [line[2:] for line in text.splitlines() if "pblock" in line]
    assert [c[0] for c in tcl.run("\n".join(offered)) if c[0].endswith("pblock")] == [
        "create_pblock", "resize_pblock", "add_cells_to_pblock",
    ]  # fmt: skip


def test_one_address_shifts_in_rtl_host_and_script_alike(monkeypatch):
    """One source: another number of units moves the last pointer everywhere."""
    machine = dataclasses.replace(config.get("tiny"), units=4)
    contents = recipes.files(machine, cards.get("u280"), convert(Kernel(machine), KERNEL))
    assert checks.all_checks(machine, cards.get("u280"), contents) == []
    assert "base04 0x420 64 m04_axi" in contents[PACKAGE]
