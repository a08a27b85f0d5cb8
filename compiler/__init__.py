"""torch.export graph -> IR -> passes -> instruction stream and packed weights."""
