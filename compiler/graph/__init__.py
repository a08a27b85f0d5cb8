"""The graph of a user's module: what torch.export gives, brought to few operators, checked against torch."""
