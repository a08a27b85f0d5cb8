"""Resource tables: how counts add up over a hierarchy."""

from alula.info import describe
from hw.spec.config import CONFIGS
from hw.synth import hierarchy_cells, tally


def test_counts_multiply_over_instances() -> None:
    modules = {
        "\\top": {"num_cells_by_type": {"\\leaf": 3, "FDRE": 2, "RAMB18E2": 1}},
        "\\leaf": {"num_cells_by_type": {"DSP48E2": 4, "$lut": 5}},
    }
    table = tally(hierarchy_cells(modules, "\\top")["\\top"])
    assert (table["DSP48E2"], table["LUT"], table["FF"], table["BRAM36"]) == (12, 15, 2, 0.5)


def test_describe() -> None:
    for name in CONFIGS:
        result = describe(name)
        assert result["dsp_total"] > result["chain_dsps"]
