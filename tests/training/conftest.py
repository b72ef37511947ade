"""Fixtures of the training tests."""

import pytest
from support.training_cases import run_options, write_corpora


@pytest.fixture
def options(tmp_path):
    """Options of a short run on small corpora."""
    return run_options(write_corpora(tmp_path))
