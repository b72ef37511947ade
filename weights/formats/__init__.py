"""File formats of torch checkpoints, read without torch."""
