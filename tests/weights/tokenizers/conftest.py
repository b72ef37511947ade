"""Fixtures for tests of tokenizer conversion."""

import pytest
from support.tiny_sentencepiece_tokenizers import transformers_class


@pytest.fixture
def without_sacremoses(monkeypatch):
    """MarianTokenizer does not normalise punctuation, whether sacremoses is installed or not."""

    def keep_punctuation(self):
        self.punc_normalizer = lambda text: text

    monkeypatch.setattr(transformers_class("MarianTokenizer"), "_setup_normalizer", keep_punctuation)
