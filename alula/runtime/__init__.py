"""A compiled model at work: its memory, its sessions on an executor, and the work that a run is held against."""
