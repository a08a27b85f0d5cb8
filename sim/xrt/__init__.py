"""The host's side of a card: by XRT, by SLASH, or a stand-in over the RTL simulation."""
