"""A tiny untrained model of several languages, with its tokenizer, in a model folder."""

import mlx.core as mx
from mlx.utils import tree_map

import mlx_transformer as mt


def save_multilingual_model(folder, texts, languages):
    """Save a model that reads the source language and generates the target language; return its folder."""
    mx.random.seed(2)
    tokenizer = mt.Tokenizer.train(texts, texts, 300, source_languages=languages, target_languages=languages)
    stack = mt.StackConfig(num_layers=1, num_heads=1, mlp_dims=16, max_length=60)
    size = tokenizer.source_vocab_size
    model = mt.Transformer(mt.ModelConfig(size, size, dims=16, encoder=stack, decoder=stack))
    # Larger weights than training starts from, so that different sources have different targets.
    model.update(tree_map(lambda array: array + 0.5 * mx.random.normal(array.shape), model.parameters()))
    mt.save(folder, model, tokenizer)
    return folder
