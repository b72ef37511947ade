"""Tokenizers: vocabularies, languages and detokenisation."""
