"""Checkpoint families: how each one names its tensors and what its configuration means."""
