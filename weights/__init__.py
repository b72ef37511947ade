"""Torch checkpoints to MLX: readers, tables of families, conversion; and the bundled model in pretrained/."""
