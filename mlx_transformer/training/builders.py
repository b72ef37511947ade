"""The model that a run trains, with its tokenizer: a new one, or another one that it trains further."""

from dataclasses import replace
from pathlib import Path

import mlx.core as mx

from mlx_transformer.checkpoints import model_folder
from mlx_transformer.config.model import ModelConfig, StackConfig
from mlx_transformer.config.search import SearchConfig
from mlx_transformer.config.training import FREEZABLE_PARTS, TrainingConfig
from mlx_transformer.data.parallel_corpus import ParallelCorpora
from mlx_transformer.model.precision import check_dtype, parse_dtype
from mlx_transformer.model.transformer import Transformer
from mlx_transformer.pretrained.loading import load
from mlx_transformer.tokenization.bpe_trainer import check_vocab_size
from mlx_transformer.tokenization.tokenizer import Tokenizer

TOKENIZER_SAMPLE_SIZE = 500_000  # a vocabulary is learned from so many pairs at most, evenly spread


def build_model_and_tokenizer(
    config: TrainingConfig, training: ParallelCorpora, last: Path | None = None
) -> tuple[Transformer, Tokenizer]:
    """The model of a run, in float32, and its tokenizer.

    Args:
        config: The run.
        training: What a new tokenizer learns from.
        last: The checkpoint that the run goes on from; its weights are not read here.

    Raises:
        ValueError: If the options do not make a model, or the model to train further has no tokenizer.
        FileNotFoundError: If there is no model to train further.
    """
    if last is not None:
        folder = model_folder.read_config(last)
        model = model_folder.uninitialized_model(folder.model, folder.search, folder.tasks)
        tokenizer: Tokenizer | None = Tokenizer.load(last)
    elif config.init is not None:
        model, tokenizer = _pretrained_model(config)
    else:
        check_vocab_size(config.vocab_size, len({*training.source_languages, *training.target_languages}))
        tokenizer = _new_tokenizer(config, training)
        model = Transformer(new_model_config(config, tokenizer), SearchConfig(suppress_ids=(tokenizer.start_id,)))
    if tokenizer is None:
        raise ValueError(f"A model that is trained further needs its tokenizer: {config.init} has none.")
    if config.source_prefix:
        tokenizer.config = replace(tokenizer.config, source_prefix=config.source_prefix)
    check_dtype(parse_dtype(config.compute_dtype), model.config, allow_overflow=False)
    freeze_parts(model, config.freeze)
    return model, tokenizer


def _pretrained_model(config: TrainingConfig) -> tuple[Transformer, Tokenizer | None]:
    """A model that has learned something, with the dropout of this run."""
    source, tokenizer = load(config.init, dtype="float32")
    rates = {name: vars(config)[name] for name in ("dropout", "attention_dropout", "activation_dropout")}
    model = model_folder.uninitialized_model(
        replace(source.config, **rates), source.search_defaults, source.tasks.values()
    )
    model.update(source.parameters())
    return model, tokenizer


def _new_tokenizer(config: TrainingConfig, training: ParallelCorpora) -> Tokenizer:
    pairs = training.sample(TOKENIZER_SAMPLE_SIZE)
    return Tokenizer.train(
        [pair.source for pair in pairs],
        [pair.target for pair in pairs],
        config.vocab_size,
        shared=config.shared_vocabulary,
        source_languages=training.source_languages,
        target_languages=training.target_languages,
    )


def new_model_config(config: TrainingConfig, tokenizer: Tokenizer) -> ModelConfig:
    """What a new model is: with a tied output layer and positions for sentences of the greatest length."""
    size = config.size
    encoder = StackConfig(
        num_layers=size.layers,
        num_heads=size.heads,
        mlp_dims=size.mlp_dims,
        norm_first=config.norm_first,
        final_norm=config.norm_first,
        # More rows than the longest sentence has tokens: the decoder reads the start token before it.
        max_length=config.max_length + 1,
    )
    return ModelConfig(
        source_vocab_size=tokenizer.source_vocab_size,
        target_vocab_size=tokenizer.target_vocab_size,
        dims=size.dims,
        encoder=encoder,
        decoder=replace(encoder, num_layers=size.decoder_layers),
        share_embeddings=tokenizer.shared,
        activation=config.activation,
        dropout=config.dropout,
        attention_dropout=config.attention_dropout,
        activation_dropout=config.activation_dropout,
        pad_id=tokenizer.pad_id,
        eos_id=tokenizer.eos_id,
        start_id=tokenizer.start_id,
    )


def freeze_parts(model: Transformer, parts: tuple[str, ...]) -> None:
    """Keep parts of a model as they are.

    Raises:
        ValueError: If the model has no such part, or nothing is left to train.
    """
    for part in parts:
        names = [name for name in FREEZABLE_PARTS[part] if name in model]
        if not names:
            raise ValueError(f"This model has no {part} of its own to freeze: its output layer is the embeddings.")
        for name in names:
            if isinstance(model[name], mx.array):
                model.freeze(keys=[name], recurse=False)
            else:
                model[name].freeze()
    if not model.num_parameters:
        raise ValueError(f"Something must be left to train: freeze names all parts, {', '.join(parts)}.")
