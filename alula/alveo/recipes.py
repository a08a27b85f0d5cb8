"""The files of a build, written from a configuration and a card: nothing in them is ever edited by hand."""

import json
from hashlib import sha256

from alula.alveo.registers import ADDRESS_SPACE_BYTES, arguments, control, host_arguments, port_name
from hw.kernel import KERNEL
from hw.spec.cards import Card
from hw.spec.config import Config
from hw.spec.resources import dsp_total

TARGETS = ("hw", "hw_emu", "xo")
COMPUTE_UNIT = "alula_1"
VERILOG, PACKAGE, LINK, FLOORPLAN, REPORTS, HOST = (
    "alula_kernel.v",
    "package_xo.tcl",
    "link.cfg",
    "floorplan.tcl",
    "reports.tcl",
    "host_args.json",
)
UNIT_CELL = f"*{COMPUTE_UNIT}/inst/accelerator/core/matrix/unit_"
"""Name pattern of a matrix unit's cell in the linked design; its number follows."""
SLR_DSP_SHARE = 0.75
"""A design that needs less of SLR0's DSPs than this stays there, next to the memory."""
_HEADER = "# Written by `alula build --config {config} --card {card}` (configuration {digest}): do not edit.\n"


def fits_one_slr(config: Config, card: Card) -> bool:
    return dsp_total(config) <= SLR_DSP_SHARE * card.slr(0)["DSP48E2"]


def package_tcl(config: Config, card: Card) -> str:
    """Vivado: the Verilog becomes a kernel, alula_kernel.xo."""
    ports = [port_name(i) for i in range(config.units + 1)]
    lines = [
        f"create_project -force package ./package_project -part {card.part}",
        f"add_files -norecurse {VERILOG}",
        f"set_property top {KERNEL} [current_fileset]",
        "update_compile_order -fileset sources_1",
        "ipx::package_project -root_dir ./ip -vendor alula -library kernel -taxonomy /KernelIP -import_files "
        "-set_current false",
        "ipx::unload_core ./ip/component.xml",
        "ipx::edit_ip_in_project -upgrade true -name edit_ip -directory ./ip ./ip/component.xml",
        "set core [ipx::current_core]",
        "set_property core_revision 1 $core",
        "foreach parameter [ipx::get_user_parameters -of_objects $core] {",
        "    ipx::remove_user_parameter [get_property NAME $parameter] $core",
        "}",
        "set_property sdx_kernel true $core",
        "set_property sdx_kernel_type rtl $core",
        "set_property vitis_drc {ctrl_protocol ap_ctrl_hs} $core",
        "set_property ipi_drc {ignore_freq_hz true} $core",
        "ipx::associate_bus_interfaces -clock ap_clk -reset ap_rst_n $core",
        *(f"ipx::associate_bus_interfaces -busif {port} -clock ap_clk $core" for port in ["s_axi_control", *ports]),
        "",
        "set map [ipx::add_memory_map -quiet s_axi_control $core]",
        "set_property slave_memory_map_ref s_axi_control [ipx::get_bus_interfaces s_axi_control -of_objects $core]",
        "set block [ipx::add_address_block -quiet reg0 $map]",
        f"set_property range {ADDRESS_SPACE_BYTES} $block",
        "set_property width 32 $block",
        "proc add_register {block name offset size {port {}}} {",
        "    set register [ipx::add_register $name $block]",
        "    set_property address_offset $offset $register",
        "    set_property size $size $register",
        "    if {$port ne {}} {",
        "        set parameter [ipx::add_register_parameter ASSOCIATED_BUSIF $register]",
        "        set_property value $port $parameter",
        "    }",
        "}",
        *(f"add_register $block {name} 0x{offset:03X} 32" for name, offset in control().items()),
        *(
            f"add_register $block {a.name} 0x{a.offset:03X} {a.bits}{f' {a.port}' if a.port else ''}"
            for a in arguments(config)
        ),
        "",
        "set_property supported_families {} $core",
        "set_property auto_family_support_level level_2 $core",
        "ipx::create_xgui_files $core",
        "ipx::update_checksums $core",
        "ipx::check_integrity -kernel $core",
        "ipx::save_core $core",
        "close_project -delete",
        f"package_xo -force -xo_path {KERNEL}.xo -kernel_name {KERNEL} -ctrl_protocol ap_ctrl_hs -ip_directory ./ip",
    ]
    return _header(config, card) + "\n".join(lines) + "\n"


def link_cfg(config: Config, card: Card) -> str:
    """v++ --link --config: one compute unit, a memory bank for each of its masters, the clock that is asked for."""
    lines = [
        f"platform={card.platform}",
        f"kernel_frequency={config.clock_hz // 10**6}",
        "save-temps=1",
        "",
        "[connectivity]",
        f"nk={KERNEL}:1:{COMPUTE_UNIT}",
    ]
    lines += [f"sp={COMPUTE_UNIT}.{port_name(i)}:{card.memory_of(config, i)}" for i in range(config.units + 1)]
    if fits_one_slr(config, card):
        lines.append(f"slr={COMPUTE_UNIT}:SLR0")
    return _header(config, card) + "\n".join(lines) + "\n"


def floorplan_tcl(config: Config, card: Card) -> str:
    """Vivado, before placement: matrix units over the SLRs. Empty where the whole stays in SLR0 (`slr=`)."""
    lines = []
    for slr, units in ({} if fits_one_slr(config, card) else card.floorplan(config)).items():
        if not units:
            continue
        block = f"alula_slr{slr}"
        lines += [f"create_pblock {block}", f"resize_pblock [get_pblocks {block}] -add SLR{slr}"]
        for unit in units:
            cells = f"[get_cells -hierarchical -filter {{NAME =~ {UNIT_CELL}{unit}}}]"
            lines.append(f"add_cells_to_pblock [get_pblocks {block}] {cells}")
    return _header(config, card) + "".join(line + "\n" for line in lines)


def reports_tcl(config: Config, card: Card) -> str:
    """Vivado, behind routing: the reports that `alula build` reads back."""
    cell = f"[get_cells -hierarchical -filter {{NAME =~ *{COMPUTE_UNIT}}}]"
    lines = [
        "set folder $::env(ALULA_REPORTS)",
        "report_utilization -file $folder/utilization.rpt",
        f"report_utilization -cells {cell} -file $folder/utilization_kernel.rpt",
        "report_timing_summary -no_detailed_paths -file $folder/timing.rpt",
        "report_power -file $folder/power.rpt",
    ]
    return _header(config, card) + "\n".join(lines) + "\n"


def files(config: Config, card: Card, verilog: str) -> dict[str, str]:
    """File name -> contents. ConfigError where the configuration does not fit the card's memories."""
    card.check(config)
    host = {
        "kernel": KERNEL,
        "compute_unit": COMPUTE_UNIT,
        "config": config.name,
        "digest": config.digest(),
        "memories": {port_name(i): card.memory_of(config, i) for i in range(config.units + 1)},
    }
    return {
        VERILOG: verilog,
        PACKAGE: package_tcl(config, card),
        LINK: link_cfg(config, card),
        FLOORPLAN: floorplan_tcl(config, card),
        REPORTS: reports_tcl(config, card),
        HOST: json.dumps(host | host_arguments(config), indent=2) + "\n",
    }


def digest(contents: dict[str, str]) -> str:
    """Of every file; changes with anything that is built."""
    state = sha256()
    for name in sorted(contents):
        state.update(f"{name}\0{len(contents[name])}\0{contents[name]}".encode())
    return state.hexdigest()


def commands(target: str) -> list[tuple[str, list[str]]]:
    """(tool, arguments) in order, run in the project's folder, whose absolute path stands for FOLDER."""
    package = ("vivado", ["-mode", "batch", "-nojournal", "-log", "package.log", "-source", PACKAGE])
    if target == "xo":
        return [package]
    link = ["--link", "--target", target, "--config", LINK, "--output", f"{KERNEL}.{target}.xclbin"]
    if target == "hw":
        link += [
            "--vivado.prop",
            f"run.impl_1.STEPS.PLACE_DESIGN.TCL.PRE=FOLDER/{FLOORPLAN}",
            "--vivado.prop",
            f"run.impl_1.STEPS.ROUTE_DESIGN.TCL.POST=FOLDER/{REPORTS}",
        ]
    return [package, ("v++", [*link, f"{KERNEL}.xo"])]


def _header(config: Config, card: Card) -> str:
    return _HEADER.format(config=config.name, card=card.name, digest=config.digest())
