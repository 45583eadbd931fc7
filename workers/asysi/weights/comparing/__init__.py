"""Comparing two checkpoints: which tensors belong together, and what changed."""
