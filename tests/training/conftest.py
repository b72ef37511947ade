"""Fixtures of the training tests."""

import pytest
from support.training_cases import run_options, write_corpora

from mlx_transformer.training.trainer import train


@pytest.fixture
def options(tmp_path):
    """Options of a short run on small corpora."""
    return run_options(write_corpora(tmp_path))


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """Options of a finished run; they differ from `options` in folders and `keep`. Tests do not change its files."""
    options = run_options(write_corpora(tmp_path_factory.mktemp("finished")), keep=3)
    train(options)
    return options
