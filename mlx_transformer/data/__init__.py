"""Parallel corpora, and batches of sentence pairs for training."""
