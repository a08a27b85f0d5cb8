"""The files of a build, written from a configuration and a card: nothing in them is ever edited by hand."""

import json
from hashlib import sha256

from alula.alveo import generic, slash, vitis
from alula.alveo.flow import HOST, IP_FOLDER, PACKAGE, VERILOG, Flow, header
from alula.alveo.registers import ADDRESS_SPACE_BYTES, arguments, control, host_arguments
from hw.spec.cards import NO_SHELL, SLASH, VITIS, Card
from hw.spec.config import Config
from hw.spec.packaging import COMPUTE_UNIT, KERNEL, port_name

FLOWS = {VITIS: vitis.FLOW, SLASH: slash.FLOW, NO_SHELL: generic.FLOW}
TARGETS = tuple(dict.fromkeys(target for flow in FLOWS.values() for target in flow.targets))
"""What any card can be built for."""


def flow_of(card: Card) -> Flow:
    """How the card is built."""
    return FLOWS[card.flow]


_KERNEL_PROPERTIES = (
    "set_property sdx_kernel true $core",
    "set_property sdx_kernel_type rtl $core",
    "set_property vitis_drc {ctrl_protocol ap_ctrl_hs} $core",
)


def package_tcl(config: Config, card: Card) -> str:
    """Vivado: the Verilog becomes an IP-XACT core in `IP_FOLDER`, and where the flow wants one, the kernel .xo."""
    ports = [port_name(i) for i in range(config.units + 1)]
    kernel_object = flow_of(card).kernel_object
    part = f" -part {card.part}" if card.part else ""
    lines = [
        f"create_project -force package ./package_project{part}",
        f"add_files -norecurse {VERILOG}",
        f"set_property top {KERNEL} [current_fileset]",
        "update_compile_order -fileset sources_1",
        f"ipx::package_project -root_dir ./{IP_FOLDER} -vendor alula -library kernel -taxonomy /KernelIP -import_files "
        "-set_current false",
        f"ipx::unload_core ./{IP_FOLDER}/component.xml",
        f"ipx::edit_ip_in_project -upgrade true -name edit_ip -directory ./{IP_FOLDER} ./{IP_FOLDER}/component.xml",
        "set core [ipx::current_core]",
        "set_property core_revision 1 $core",
        "foreach parameter [ipx::get_user_parameters -of_objects $core] {",
        "    ipx::remove_user_parameter [get_property NAME $parameter] $core",
        "}",
        *(_KERNEL_PROPERTIES if kernel_object else ()),
        "set_property ipi_drc {ignore_freq_hz true} $core",
        "ipx::associate_bus_interfaces -clock ap_clk -reset ap_rst_n $core",
        *(f"ipx::associate_bus_interfaces -busif {port} -clock ap_clk $core" for port in ["s_axi_control", *ports]),
        "",
        "set map [ipx::add_memory_map -quiet s_axi_control $core]",
        "set_property slave_memory_map_ref s_axi_control [ipx::get_bus_interfaces s_axi_control -of_objects $core]",
        "set block [ipx::add_address_block -quiet reg0 $map]",
        f"set_property range {ADDRESS_SPACE_BYTES} $block",
        "set_property width 32 $block",
        "set_property usage register $block",
        "set_property access read-write $block",
        "proc add_register {block name offset size {port {}}} {",
        "    set register [ipx::add_register $name $block]",
        "    set_property address_offset $offset $register",
        "    set_property size $size $register",
        "    set_property access read-write $register",
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
        f"ipx::check_integrity{' -kernel' if kernel_object else ''} $core",
        "ipx::save_core $core",
        "close_project -delete",
    ]
    if kernel_object:
        lines.append(
            f"package_xo -force -xo_path {KERNEL}.xo -kernel_name {KERNEL} -ctrl_protocol ap_ctrl_hs "
            f"-ip_directory ./{IP_FOLDER}"
        )
    return header(config, card) + "\n".join(lines) + "\n"


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
        **flow_of(card).files(config, card),
        HOST: json.dumps(host | host_arguments(config), indent=2) + "\n",
    }


def digest(contents: dict[str, str]) -> str:
    """Of every file; changes with anything that is built."""
    state = sha256()
    for name in sorted(contents):
        state.update(f"{name}\0{len(contents[name])}\0{contents[name]}".encode())
    return state.hexdigest()
