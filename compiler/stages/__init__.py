"""The stage level: integer steps become instructions of the units, in phases that run tile by tile."""
