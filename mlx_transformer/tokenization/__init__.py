"""Tokenizers: vocabularies, language tokens, BPE training and incremental detokenization."""
