"""A compiled function that fails while it is traced leaves the model unchanged."""

import mlx.core as mx
import pytest
from support.tiny_models import config, padded, random_model, random_sources, random_targets

from mlx_transformer.config.search import SearchConfig
from mlx_transformer.decoding.beam_search import generate_ids
from mlx_transformer.inference.scoring import score_ids

CONFIG = config()


@pytest.mark.parametrize(
    "refused",
    [
        lambda model: generate_ids(model, mx.full((1, 41), 3), SearchConfig(max_tokens=3)),
        lambda model: score_ids(model, mx.full((1, 5), 3), mx.full((1, 50), 3)),
    ],
    ids=["source", "target"],
)
def test_model_is_usable_after_a_rejected_input(refused):
    model = random_model(CONFIG)
    source, target = padded(random_sources(CONFIG, [5]), CONFIG), random_targets(CONFIG, 1, 4)
    before = mx.array(model(source, target))
    with pytest.raises(ValueError, match="at most 40 tokens long"):
        refused(model)
    assert mx.array_equal(model(source, target), before)
