"""Runs the generated Tcl with the vendor's commands recorded: names and options are checked, nothing is built."""

import shutil
import subprocess

from hw.spec.errors import InternalError

VENDOR_COMMANDS = {
    "create_project": "-force -part=", "add_files": "-norecurse", "current_fileset": "", "update_compile_order":
    "-fileset=", "close_project": "-delete", "set_property": "", "get_property": "", "package_xo":
    "-force -xo_path= -kernel_name= -ctrl_protocol= -ip_directory=", "ipx::package_project":
    "-root_dir= -vendor= -library= -taxonomy= -import_files -set_current=", "ipx::unload_core": "",
    "ipx::edit_ip_in_project": "-upgrade= -name= -directory=", "ipx::current_core": "", "ipx::get_user_parameters":
    "-of_objects=", "ipx::remove_user_parameter": "", "ipx::associate_bus_interfaces": "-busif= -clock= -reset=",
    "ipx::add_memory_map": "-quiet", "ipx::add_address_block": "-quiet", "ipx::add_register": "",
    "ipx::add_register_parameter": "", "ipx::get_bus_interfaces": "-of_objects=", "ipx::create_xgui_files": "",
    "ipx::update_checksums": "", "ipx::check_integrity": "-kernel", "ipx::save_core": "", "create_pblock": "",
    "get_pblocks": "", "resize_pblock": "-add=", "add_cells_to_pblock": "", "get_cells": "-hierarchical -filter=",
    "report_utilization": "-file= -cells=", "report_timing_summary": "-no_detailed_paths -file=",
    "report_power": "-file=", "create_clock": "-name= -period=", "get_ports": "",
}  # fmt: skip
"""Vivado's commands that recipes may use -> their options; one that ends in = takes a value."""

_FIELD, _RECORD = "\x1f", "\x1e"
_PRELUDE = r"""
set ::recorded {}
proc alula_record {name arguments} {
    set legal [dict get $::vendor $name]
    set last {}
    foreach argument $arguments {
        if {$last ne {}} { set last {}; continue }
        if {![string match -* $argument]} { continue }
        if {[lsearch -exact $legal $argument=] >= 0} { set last $argument
        } elseif {[lsearch -exact $legal $argument] < 0} { error "$name has no option $argument" }
    }
    if {$last ne {}} { error "$name: $last has no value" }
    lappend ::recorded [join [linsert $arguments 0 $name] \x1f]
    return "<$name [join $arguments { }]>"
}
namespace eval ipx {}
foreach name [dict keys $::vendor] {
    proc $name args "return \[alula_record $name \$args\]"
}
set ::env(ALULA_REPORTS) reports
"""
_CURRENT_CORE = "proc ipx::get_user_parameters args { alula_record ipx::get_user_parameters $args; return {} }\n"


def run(text: str) -> list[list[str]]:
    """The vendor commands a script runs, in order, with their arguments; nested ones come first, and stand in the outer
    one's arguments as `<command arguments>`. InternalError where it breaks."""
    vendor = " ".join(f"{{{name}}} {{{options}}}" for name, options in VENDOR_COMMANDS.items())
    script = f"set ::vendor [dict create {vendor}]\n{_PRELUDE}{_CURRENT_CORE}\n{text}"
    recorded = _evaluate(script)
    return [record.split(_FIELD) for record in recorded.split(_RECORD) if record]


def _evaluate(script: str) -> str:
    """Python's own Tcl where it was built with it, else tclsh."""
    try:
        import tkinter
    except ImportError:
        return _tclsh(script)
    interpreter = tkinter.Tcl()
    try:
        interpreter.eval(script)
        return str(interpreter.eval(r"join $::recorded \x1e"))
    except tkinter.TclError as error:
        raise InternalError(f"Tcl: {error}") from None


def _tclsh(script: str) -> str:
    path = shutil.which("tclsh")
    if path is None:
        raise InternalError("there is no Tcl: install Python's tkinter (Debian: python3-tk) or tclsh")
    done = subprocess.run(
        [path],
        input=f"{script}\nputs -nonewline [join $::recorded \\x1e]\n",
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode or done.stderr:
        raise InternalError(f"Tcl: {done.stderr.splitlines()[0] if done.stderr else done.returncode}")
    return done.stdout
