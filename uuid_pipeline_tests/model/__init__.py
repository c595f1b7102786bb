"""A state-space search over the batch protocol."""
