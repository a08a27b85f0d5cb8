"""The single source of truth: configurations, instruction set, numerics, formats, memory map, timing.

Everything else derives from these modules; they import the standard library only.
"""
