"""`alula info`: what a configuration is, and what it costs."""

from dataclasses import asdict

from hw.spec import config as configurations
from hw.spec.isa import ISA_VERSION
from hw.spec.resources import dsp_total


def describe(name: str) -> dict:
    """Every field and the peaks that follow from them."""
    config = configurations.get(name)
    return asdict(config) | {
        "digest": config.digest(), "isa_version": ISA_VERSION, "macs_per_cycle": config.macs_per_cycle,
        "peak_macs_per_second": config.macs_per_cycle * config.clock_hz, "chain_dsps": config.chain_dsps,
        "peak_bytes_per_second": config.peak_bytes_per_cycle * config.clock_hz,
        "dsp_total": dsp_total(config),
    }  # fmt: skip


def resources(name: str) -> dict:
    """Yosys's counts; `dsp_equal` says whether the DSPs are those of the formula."""
    from hw.emit import DSP_MODEL
    from hw.synth import resources as synthesise
    from sim.rtl.accelerator import verilog

    found = synthesise(name, verilog(name).removesuffix("\n" + DSP_MODEL.read_text()))
    return {
        "resources": found["total"],
        "resources_by_module": found["modules"],
        "primitives": found["primitives"],
        "dsp_formula": found["dsp_formula"],
        "dsp_equal": found["total"]["DSP48E2"] == found["dsp_formula"],
    }
