"""What is above a bound of `hw.spec.resources.NETLIST_BOUNDS` in `tiny` and known; what is not listed here fails.

All of it is of the matrix units and what surrounds them. `aux_reset_0` stands for the resets of all blocks, which are
one module: the one that is above the bound is the matrix's.
"""

KNOWN: dict[str, set[str]] = {
    "crossings": {
        "matrix_unit.active loads",
        "matrix_unit.bus_error loads",
        "matrix_unit.bus_idle driver",
        "matrix_unit.bus_idle loads",
        "matrix_unit.drain loads",
        "matrix_unit.drain_valid loads",
        "matrix_unit.full driver",
        "matrix_unit.full loads",
        "matrix_unit.header_error loads",
        "matrix_unit.kv driver",
        "matrix_unit.rd_desc loads",
        "matrix_unit.rd_start loads",
        "matrix_unit.round driver",
        "matrix_unit.round loads",
        "matrix_unit.row loads",
        "matrix_unit.rst loads",
        "matrix_unit.step driver",
        "matrix_unit.step loads",
        "matrix_unit.step_valid driver",
        "matrix_unit.stop driver",
        "matrix_unit.stop loads",
        "matrix_unit.take driver",
        "matrix_unit.take loads",
        "matrix_unit.unpack_stall driver",
        "matrix_unit.unpack_stall loads",
        "matrix_unit.window loads",
    },
    "fanouts": {
        "alula.core.aux_reset_0:held",
        "alula.core.dispatcher.rd:unit__start",
        "matrix_unit:i__payload",
        "matrix_unit:read",
        "matrix_unit:step_4",
        "matrix_unit:unnamed",
    },
    "paths": set(),
    "resets": {
        "matrix_unit:step_valid",
    },
}
