"""Tiny transformers models with random weights, of every supported family."""

import numpy as np
import pytest

SOURCE_LENGTHS = (9, 4, 7, 3, 8, 5)
VOCAB = 23
SHARED = {
    "vocab_size": VOCAB,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 20,
    "max_position_embeddings": 40,
    "scale_embedding": True,
    "dropout": 0.0,
}
BART = {**SHARED, "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
T5 = {
    "vocab_size": VOCAB,
    "d_model": 16,
    "d_kv": 6,
    "d_ff": 24,
    "num_heads": 3,
    "num_layers": 3,  # at least as many as in the decoder: the cache of transformers 5.23 is sized by it
    "num_decoder_layers": 2,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 7,
    "layer_norm_epsilon": 1e-3,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "dropout_rate": 0.0,
}
MARIAN = {
    **SHARED,
    "pad_token_id": VOCAB - 1,
    "eos_token_id": 0,
    "decoder_start_token_id": VOCAB - 1,
    "forced_eos_token_id": None,
    "activation_function": "swish",
}
GATED = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
# Name -> class of transformers, configuration, generation settings.
MODELS = {
    "marian": (
        "Marian",
        MARIAN,
        {"bad_words_ids": [[VOCAB - 1]], "renormalize_logits": True, "forced_eos_token_id": 0},
    ),
    "marian-relu": ("Marian", {**MARIAN, "activation_function": "relu", "scale_embedding": False}, {}),
    "marian-split": (
        "Marian",
        {**MARIAN, "share_encoder_decoder_embeddings": False, "vocab_size": 25, "decoder_vocab_size": VOCAB},
        {"bad_words_ids": [[VOCAB - 1]]},
    ),
    "bart": (
        "Bart",
        BART,
        {"forced_bos_token_id": 0, "forced_eos_token_id": 2, "no_repeat_ngram_size": 3, "min_length": 4},
    ),
    "bart-tanh": ("Bart", {**BART, "activation_function": "tanh", "scale_embedding": False}, {}),
    "plbart": ("PLBart", {**BART, "decoder_start_token_id": 5}, {"repetition_penalty": 1.3}),
    "mbart": ("MBart", {**BART, "decoder_start_token_id": 6}, {"forced_eos_token_id": 2}),
    "mbart-50": (
        "MBart",
        {**BART, "activation_function": "relu"},
        {"forced_bos_token_id": 7, "forced_eos_token_id": 2},
    ),
    "m2m100": ("M2M100", BART, {"forced_bos_token_id": 8, "bad_words_ids": [[1], [4, 5]]}),
    "nllb": ("M2M100", {**BART, "decoder_layers": 1}, {"forced_bos_token_id": 9, "suppress_tokens": [1, 11]}),
    "pegasus": (
        "Pegasus",
        {**BART, "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0, "activation_function": "relu"},
        {"forced_eos_token_id": 1, "no_repeat_ngram_size": 2},
    ),
    "blenderbot": (
        "Blenderbot",
        {**BART, "pad_token_id": 0, "bos_token_id": 1, "decoder_start_token_id": 1},
        {"min_new_tokens": 3, "encoder_no_repeat_ngram_size": 3},
    ),
    "blenderbot-small": (
        "BlenderbotSmall",
        {**BART, "pad_token_id": 0, "bos_token_id": 1, "decoder_start_token_id": 1},
        {},
    ),
    "t5": ("T5", {**T5, "feed_forward_proj": "relu"}, {}),
    "t5-untied": ("T5", {**T5, "feed_forward_proj": "relu", "tie_word_embeddings": False}, {}),
    "t5-v1.1": ("T5", {**T5, **GATED}, {"no_repeat_ngram_size": 3}),
    "flan": ("T5", {**T5, **GATED, "num_heads": 2, "d_kv": 8}, {"repetition_penalty": 1.2}),
    "byt5": ("T5", {**T5, **GATED, "num_layers": 3, "num_decoder_layers": 1}, {}),
    "madlad": ("T5", {**T5, **GATED, "d_kv": 12, "num_decoder_layers": None}, {}),
    "t5-gated-silu": ("T5", {**T5, "feed_forward_proj": "gated-silu"}, {}),
    "mt5": ("MT5", {**T5, **GATED}, {}),
    "umt5": ("UMT5", {**T5, **GATED}, {}),
}


# Settings that every config.json has, and settings that it may omit because they have defaults.
REQUIRED = (*SHARED, *T5, "decoder_vocab_size", "share_encoder_decoder_embeddings", "decoder_start_token_id")
OPTIONAL = (
    "scale_embedding",
    "layer_norm_epsilon",
    "relative_attention_num_buckets",
    "relative_attention_max_distance",
)


def required_settings(name):
    """Return the settings of a model without those that a config.json may omit."""
    return {key: value for key, value in MODELS[name][1].items() if key in REQUIRED and key not in OPTIONAL}


def torch_model(name, seed=0, settings=None, generation=None, gain=1.0):
    """Return a transformers model with random weights, biases and norms.

    Its settings and generation settings default to those in MODELS. `gain` is a factor of matrices inside layers: those
    of wide models magnify rounding errors.
    """
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.set_num_threads(1)  # several threads busy-wait for each other, which takes minutes on a loaded machine
    kind, default_settings, default_generation = MODELS[name]
    settings = default_settings if settings is None else settings
    generation = {"max_length": 9} | (default_generation if generation is None else generation)
    sizes = {settings.get("vocab_size"), settings.get("decoder_vocab_size")}
    config = (
        vars(transformers)[f"{kind}Config"](**settings)
        if f"{kind}Config" in vars(transformers)
        else getattr(transformers, f"{kind}Config")(**settings)
    )
    names = (f"{kind}ForConditionalGeneration", f"{kind}MTModel")
    model = next(getattr(transformers, name) for name in names if hasattr(transformers, name))(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, value in model.named_parameters():
            if "embed_positions" in key and not value.requires_grad:
                continue
            deviation = 0.6 if value.shape[0] in sizes and value.ndim == 2 else 0.35 * gain
            if key.endswith("Attention.q.weight"):
                deviation /= 4  # these products are not scaled: larger values would magnify rounding errors
            norm = key.endswith("norm.weight")
            torch.nn.init.normal_(value, 1.0 if norm else 0.0, 0.2 if norm else deviation, generator=generator)
        if "final_logits_bias" in dict(model.named_buffers()):
            torch.nn.init.normal_(model.final_logits_bias, generator=generator)
            model.final_logits_bias[0, config.eos_token_id] = 3.0
    # Replace the defaults of a new model, which depend on the version of transformers.
    settings = {key: settings.get(key) for key in ("pad_token_id", "eos_token_id", "decoder_start_token_id")}
    model.generation_config = transformers.GenerationConfig(**settings, **generation)
    return model


def torch_sources(model, seed=0):
    """Return source ids as a numpy array, each ending with the end token and padded on the right."""
    config = model.config
    ids = np.random.default_rng(seed).integers(3, VOCAB - 1, (len(SOURCE_LENGTHS), max(SOURCE_LENGTHS)))
    for row, length in zip(ids, SOURCE_LENGTHS, strict=True):
        row[length - 1] = config.eos_token_id
        row[length:] = config.pad_token_id
    return ids
