"""DSP slices of a configuration. `alula info --synth yosys` counts them in the netlist and compares."""

from .config import Config

LANE_DSPS = 14
"""Multipliers of one vector lane after Yosys has cut them into 27 x 18 bits."""
FINALISER_DSPS = 3
SEQUENCER_DSPS = 3
"""The scalar MUL, 32 x 32 bits."""
STORE_DSPS = 3
"""Address strides of the store unit."""


def dsp_total(config: Config) -> int:
    """Chains (instantiated) and the multipliers that synthesis infers around them."""
    return config.chain_dsps + LANE_DSPS * config.lanes + FINALISER_DSPS + SEQUENCER_DSPS + STORE_DSPS
