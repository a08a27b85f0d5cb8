"""The integer level: what the machine computes of a graph, in its own integers. Its interpreter is the golden model."""
