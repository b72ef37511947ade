"""Conversion of the tokenizers that accompany checkpoints."""
