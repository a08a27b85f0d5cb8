"""What sparsity costs in logic: LUTs of the tables that sparse steps look activations up in, by Yosys."""

import time

from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hw.chain import CASCADE_GROUPS, DENSE_BREAKS, STEP, SUMS, TABLES, SparseChain, flow
from hw.matrix_unit import MatrixUnit
from hw.spec.config import get
from hw.synth import luts, synthesise, tally
from hw.verilog_writer import convert

DEPENDS = ("hw/*.py", "hw/spec/weights.py", "machine:tiny", "machine:u280")
CONFIGS = ("tiny", "u280")


class Chain(wiring.Component):
    """A chain of a matrix unit; `dense`: with its sparse mode tied off, which leaves nothing of the tables."""

    def __init__(self, dense: bool):
        self.dense = dense
        super().__init__({"i": In(flow(STEP)), "tables": In(TABLES), "o": Out(flow(SUMS))})

    def elaborate(self, platform):
        m = Module()
        m.submodules.chain = chain = SparseChain(cascade_groups=CASCADE_GROUPS, primitive=True)
        m.d.comb += [
            chain.i.payload.eq(self.i.payload),
            chain.i.valid.eq(self.i.valid),
            chain.i.payload.breaks.eq(DENSE_BREAKS),
            chain.tables.eq(self.tables),
            self.o.payload.eq(chain.o_sums.payload),
            self.o.valid.eq(chain.o_sums.valid),
        ]
        if self.dense:
            m.d.comb += chain.i.payload.sparse.eq(0)
        return m


def measure() -> dict:
    """Yosys's counts; LUTs are rough (no timing, no retiming)."""
    began = time.monotonic()
    dense, sparse = (_count(Chain(tied), "chain", flatten=True) for tied in (True, False))
    runs = [
        {"block": "chain of 16 DSPs", "design": name, **table} for name, table in (("dense", dense), ("sparse", sparse))
    ]
    for name in CONFIGS:
        unit = _count(MatrixUnit(get(name), primitive=True), "unit")
        chains = get(name).chains
        runs.append({"block": f"matrix unit of {name}, {chains} chains", "design": "sparse", **unit})
    return {
        "what": "Yosys synth_xilinx; chain: the same with the sparse mode tied off and with it",
        "sparse_luts_a_chain": luts(sparse) - luts(dense),
        "dsps_equal": dense["DSP48E2"] == sparse["DSP48E2"],
        "wall_seconds": time.monotonic() - began,
        "runs": runs,
    }


def _count(component, top: str, flatten: bool = False) -> dict[str, float]:
    return tally(synthesise(convert(component, top), top, flatten)[top])
