"""Simulators of one encoded program: functional, cycle-exact and RTL."""
