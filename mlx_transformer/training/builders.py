"""Builds the model and the tokenizer that a run trains: new ones, or those of a model to fine-tune."""

import logging
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten

from mlx_transformer.checkpoints import model_folder
from mlx_transformer.checkpoints.adapter_folder import check_base, read_adapter_config, with_base
from mlx_transformer.config.adapter import AdapterConfig
from mlx_transformer.config.model import AverageAttentionConfig, ModelConfig, StackConfig
from mlx_transformer.config.search import SearchConfig
from mlx_transformer.config.training import FREEZABLE_PARTS, TrainingConfig
from mlx_transformer.data.parallel_corpus import ParallelCorpora
from mlx_transformer.model.adapters import add_adapter
from mlx_transformer.model.dense_weights import use_dense_products
from mlx_transformer.model.precision import check_dtype, parse_dtype
from mlx_transformer.model.quantization import dequantize, quantization_of, quantize_weights
from mlx_transformer.model.transformer import Transformer
from mlx_transformer.model.weights_source import record_source, unchanged_source
from mlx_transformer.pretrained.loading import load_as_stored, missing_tokenizer
from mlx_transformer.tokenization.bpe_trainer import check_vocab_size
from mlx_transformer.tokenization.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

TOKENIZER_SAMPLE_SIZE = 500_000  # maximum number of pairs that a vocabulary is learned from, evenly spread


def build_model_and_tokenizer(
    config: TrainingConfig, train_pairs: ParallelCorpora, checkpoint: Path | None = None
) -> tuple[Transformer, Tokenizer]:
    """Build the model of a run, in float32, and its tokenizer.

    Args:
        config: Options of the run.
        train_pairs: Corpora from which a new tokenizer is learned.
        checkpoint: Checkpoint that the run resumes from. Its config and tokenizer are used; its weights are not read.

    Raises:
        ValueError: If the options do not fit together, the model to fine-tune has no tokenizer, or an adapter resumes
            on another model.
        FileNotFoundError: If the model to fine-tune does not exist.
    """
    if config.adapter is not None:
        model, tokenizer = _pretrained_model(config)
        _add_adapter(model, config.adapter, config, checkpoint)
    elif checkpoint is not None:
        folder = model_folder.read_config(checkpoint)
        model = model_folder.uninitialized_model(folder.model, folder.search, folder.tasks)
        tokenizer = Tokenizer.load(checkpoint)
    elif config.init is not None:
        model, tokenizer = _pretrained_model(config)
    else:
        num_languages = len({*train_pairs.source_languages, *train_pairs.target_languages})
        check_vocab_size(config.vocab_size, num_languages)
        tokenizer = _train_tokenizer(config, train_pairs)
        model = Transformer(new_model_config(config, tokenizer), SearchConfig(suppress_ids=(tokenizer.start_id,)))
    model.config.require_decoder()
    if config.source_prefix:
        tokenizer.config = replace(tokenizer.config, source_prefix=config.source_prefix)
    check_dtype(parse_dtype(config.compute_dtype), model.config, allow_overflow=None)
    freeze_parts(model, config.freeze)
    return model, tokenizer


def _add_adapter(model: Transformer, adapter: AdapterConfig, config: TrainingConfig, checkpoint: Path | None) -> None:
    """Freeze a model and add the adapter of a run."""
    if checkpoint is not None:
        check_base(model, read_adapter_config(checkpoint), checkpoint)
    model.freeze()
    try:
        add_adapter(model, with_base(adapter, model))
    except ValueError as error:
        raise ValueError(f"lora_{error}") from None  # begins with the name of a field


def _pretrained_model(config: TrainingConfig) -> tuple[Transformer, Tokenizer]:
    """Load the model to fine-tune, with the dropout rates of this run; with an adapter it stays quantised."""
    pretrained, tokenizer = load_as_stored(config.init)
    if tokenizer is None:
        raise missing_tokenizer(config.init)
    return trainable_model(pretrained, config), tokenizer


def trainable_model(pretrained: Transformer, config: TrainingConfig) -> Transformer:
    """Return a loaded model in float32 with the dropout rates of a run; for an adapter it stays quantised."""
    if config.adapter is None:
        dequantize(pretrained)
    pretrained.set_dtype(mx.float32)
    for name, array in dict(tree_flatten(pretrained.parameters())).items():
        if not mx.isfinite(array).all():
            raise ValueError(
                f"The weights of {config.init} must be finite, but those of {name} are not: use another model."
            )
    rates = {name: vars(config)[name] for name in ("dropout", "attention_dropout", "activation_dropout")}
    model = model_folder.uninitialized_model(
        replace(pretrained.config, **rates), pretrained.search_defaults, pretrained.tasks.values()
    )
    if (quantization := quantization_of(pretrained)) is not None:
        quantize_weights(model, quantization)
        if mx.default_device() == mx.cpu:
            use_dense_products(model)
    model.update(pretrained.parameters())
    record_source(model, unchanged_source(pretrained))
    return model


def _train_tokenizer(config: TrainingConfig, train_pairs: ParallelCorpora) -> Tokenizer:
    sample = train_pairs.sample(TOKENIZER_SAMPLE_SIZE)
    logger.info("Learning a vocabulary from %d pairs", len(sample))
    return Tokenizer.train(
        [pair.source for pair in sample],
        [pair.target for pair in sample],
        config.vocab_size,
        shared=config.shared_vocabulary,
        source_languages=train_pairs.source_languages,
        target_languages=train_pairs.target_languages,
    )


def new_model_config(config: TrainingConfig, tokenizer: Tokenizer) -> ModelConfig:
    """Return the config of a new model, with a tied output layer and positions for sentences of maximum length."""
    size = config.size
    encoder = StackConfig(
        num_layers=size.layers,
        num_heads=size.heads,
        mlp_dims=size.mlp_dims,
        mlp_layers=config.mlp_layers,
        norm_first=config.norm_first,
        final_norm=config.norm_first,
        # One more position than tokens in the longest sentence, for the decoder's start token.
        max_length=config.max_length + 1,
    )
    average = None
    if config.decoder_self_attention == "average":
        average = AverageAttentionConfig(size.mlp_dims, activation=config.activation)
    return ModelConfig(
        source_vocab_size=tokenizer.source_vocab_size,
        target_vocab_size=tokenizer.target_vocab_size,
        dims=size.dims,
        encoder=encoder,
        decoder=replace(encoder, num_layers=size.decoder_layers),
        share_embeddings=tokenizer.shared,
        decoder_self_attention=config.decoder_self_attention,
        average_attention=average,
        activation=config.activation,
        dropout=config.dropout,
        attention_dropout=config.attention_dropout,
        activation_dropout=config.activation_dropout,
        pad_id=tokenizer.pad_id,
        eos_id=tokenizer.eos_id,
        start_id=tokenizer.start_id,
    )


def freeze_parts(model: Transformer, parts: tuple[str, ...]) -> None:
    """Freeze parts of a model.

    Raises:
        ValueError: If the model has no such part, or nothing is left to train.
    """
    for part in parts:
        names = [name for name in FREEZABLE_PARTS[part] if name in model]
        if not names:
            raise ValueError(
                f"This model has no separate {part} to freeze: its output layer is tied to the embeddings."
            )
        for name in names:
            if isinstance(model[name], mx.array):
                model.freeze(keys=[name], recurse=False)
            else:
                model[name].freeze()
    if not model.num_parameters:
        raise ValueError(f"freeze must leave something to train, but nothing is left without {', '.join(parts)}.")
