"""The host's runtime: a card under XRT, or a stand-in for one over the RTL simulation."""
