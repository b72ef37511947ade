"""Building the model and the tokenizer of a new run."""

import dataclasses

from mlx_transformer.config.model import AverageAttentionConfig
from mlx_transformer.data.parallel_corpus import ParallelCorpora
from mlx_transformer.tokenization.tokenizer import Tokenizer
from mlx_transformer.training.builders import build_model_and_tokenizer, new_model_config


def test_new_model_config_follows_the_options(options):
    tokenizer = Tokenizer.train(["ab"], ["cd"], 261, shared=False)
    rates = {"dropout": 0.1, "attention_dropout": 0.2, "activation_dropout": 0.3}
    sizes = {"num_layers": 2, "decoder_layers": 1, "num_heads": 2, "activation": "gelu", "norm_first": False}
    model = new_model_config(dataclasses.replace(options, **rates, **sizes, mlp_layers=3), tokenizer)
    assert {name: vars(model)[name] for name in rates} == rates
    assert (model.dims, model.activation, model.share_embeddings) == (64, "gelu", False)
    for stack, layers in ((model.encoder, 2), (model.decoder, 1)):
        assert (stack.num_layers, stack.num_heads, stack.mlp_dims) == (layers, 2, 32)
        assert (stack.norm_first, stack.final_norm, stack.mlp_layers) == (False, False, 3)


def test_average_attention_has_networks_like_those_of_the_layers(options):
    tokenizer = Tokenizer.train(["ab"], ["cd"], 261)
    average = dataclasses.replace(options, decoder_self_attention="average", activation="silu")
    model = new_model_config(average, tokenizer)
    assert model.average_attention == AverageAttentionConfig(32, 2, "silu", gated=True)
    assert new_model_config(options, tokenizer).average_attention is None


def test_separate_vocabularies_are_learned_from_their_own_sides(options, tmp_path):
    (tmp_path / "pairs.tsv").write_text("ab ab\txy xy\n" * 9)
    spec = f"en:fr={tmp_path / 'pairs.tsv'}"
    config = dataclasses.replace(options, train=(spec,), shared_vocabulary=False)
    _, tokenizer = build_model_and_tokenizer(config, ParallelCorpora(config.train))
    for side, text, other in ((tokenizer.source, "ab", "xy"), (tokenizer.target, "xy", "ab")):
        assert len(side.tokenizer.encode(text).ids) < len(side.tokenizer.encode(other).ids)
    config = tokenizer.config
    assert (config.default_source_language, config.default_target_language) == ("en", "fr")
