"""What is above a bound of `hw.spec.resources.NETLIST_BOUNDS` in `tiny` and known; what is not listed here fails.

All of it is of the matrix units and what surrounds them. `aux_reset_0` stands for the resets of all blocks, which are
one module: the one that is above the bound is the matrix's.
"""

KNOWN: dict[str, set[str]] = {
    "crossings": set(),
    "fanouts": set(),
    "paths": set(),
    "resets": set(),
}
