"""What the packaged kernel's parts are called: the host, the packaging and the linker use the same names."""

from hw.spec.csr import REGISTERS

KERNEL = "alula_kernel"
"""The module that Vivado packages."""
COMPUTE_UNIT = "alula_1"
"""Its only instance in a linked container."""
FIRST_POINTER = sum(offset < REGISTERS["status"] for offset in REGISTERS.values())
"""Number of the kernel argument that is port 0's pointer; the other ports' pointers follow in their order."""


def port_name(port: int) -> str:
    """The interface of a memory port: `m00_axi` for port 0."""
    return f"m{port:02d}_axi"
