"""Converts torch checkpoints: file formats, families, tokenizers. The folder pretrained/ holds the bundled model."""
