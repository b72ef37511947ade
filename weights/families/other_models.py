"""Recognises checkpoints that are no complete encoder-decoder Transformer: by model_type, or by names of tensors."""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from mlx_transformer.weights.formats.other_formats import USE_ADAPTER
from mlx_transformer.weights.formats.tensors import quote

MAX_NAMES = 1_000  # that are looked at, without counting layers


class OtherModel(NamedTuple):
    """A kind of model that cannot be converted.

    Attributes:
        pattern: A regular expression that is found in one of its names; several if each must be found in one.
        reason: Why it cannot be converted, as "it is ...".
        remedy: What the user can do.
    """

    pattern: str | tuple[str, ...]
    reason: str
    remedy: str


DECODER_ALONE = "it is a decoder without an encoder"
ENCODER_ALONE = "it is an encoder without a decoder"
AUDIO = "its source is audio"
IMAGE = "its source is an image"
EXPERTS = "its feed-forward networks are mixtures of experts"
RUN_MLX_LM = "use mlx-lm for decoder-only models"
USE_WHOLE = "convert a whole encoder-decoder model"
RENAME_OTHER = f"{USE_WHOLE}, or rename the tensors of its other stack"
NAME_ENCODER = (
    f"{RENAME_OTHER}; to embed texts with an encoder of transformers, name its class in config.json, as in "
    '"architectures": ["T5EncoderModel"]'
)
USE_TEXT = "convert a model whose source is text"
USE_TRANSFORMER = "convert a Transformer"
USE_ORIGINAL = "convert the original model, and quantise that"

# A part of a name that tells which library has quantised the weights.
QUANTIZERS = {
    r"\.SCB$|\.weight\.(absmax|quant_map|quant_state)": "bitsandbytes",
    r"\.(qweight|qzeros)$": "GPTQ or AWQ",
    r"\.weight_(packed|scale|scale_inv)$": "compressed-tensors",
    r"\.weight\._(data|scale)$": "quanto",
    r"\._packed_params\b|\.zero_point$": "torch.ao",
}
ADAPTER = (
    r"(^|[._])lora_|\.ia3_|\.hada_w|\.lokr_w|\.b?oft_|vera_lambda|\.adapters\.|adapter_(down|up)|prompt_embeddings"
)
# Weights that are not stored as plain weights, of whatever model.
ALTERED = (
    OtherModel(
        ADAPTER,
        "it has an adapter that is not merged",
        "merge it, in peft by model.merge_and_unload(), and save the result",
    ),
    *(OtherModel(suffix, f"it is quantised by {library}", USE_ORIGINAL) for suffix, library in QUANTIZERS.items()),
)
OTHER_MODELS = (
    OtherModel(
        (r"(^|\.)(text_model|token_embedding)\b", r"(^|\.)(vision_model|visual)\b"),
        "it has two encoders, for text and images, as CLIP",
        USE_WHOLE,
    ),
    OtherModel(
        (r"(^|\.)(question|query)_encoder\.", r"(^|\.)(ctx|context|passage|document)_encoder\."),
        "it has two encoders, for retrieval",
        USE_WHOLE,
    ),
    OtherModel(
        r"(^|\.)encoder\.conv1\.weight$|(^|\.)encoder\.(embed|frontend)\.conv|feature_extractor\.conv_layers\."
        r"|subsampl|conv_module\.|(^|\.)(wav2vec2|audio_encoder|speech_encoder)\w*\.",
        AUDIO,
        USE_TEXT,
    ),
    OtherModel(
        r"patch_embed|conv_proj\.weight$|(^|\.)(visual|vision_model|vision_encoder|image_encoder)\.|layer1\.0\.conv1\.",
        IMAGE,
        USE_TEXT,
    ),
    OtherModel(r"weight_hh(_l\d+)?$", "its layers are recurrent ({cell})", USE_TRANSFORMER),
    OtherModel(r"\.A_log$|\.time_(mix|decay|maa)", "it has state-space or linear-attention layers", USE_TRANSFORMER),
    OtherModel(
        r"(encoder|decoder)\.(convolutions|convs)\.\d+\.|\.conv\.weight_linear\.",
        "it is convolutional",
        USE_TRANSFORMER,
    ),
    OtherModel(r"\bexperts?\b|\.expert_\d|block_sparse_moe|moe_layer|\.router\.", EXPERTS, "convert a dense model"),
    OtherModel(r"\.crossattention\.self\.", "its encoder and decoder are those of BERT", USE_TRANSFORMER),
    OtherModel(r"\.scales$", "it is quantised by MLX", USE_ORIGINAL),
)
# What a model is all of whose layers are in one stack that is called neither encoder nor decoder.
ONE_STACK = (
    OtherModel(r"embeddings\.word_embeddings\.", ENCODER_ALONE, USE_WHOLE),
    OtherModel(
        r"c_attn|query_key_value|(^|\.)h\.\d+\.|\.attention\.w(q|qkv)\.|\.(sa|attn)\.(heads|key)\b"
        r"|layers\.\d+\.self_attn\.(q_proj|qkv_proj)\.",
        DECODER_ALONE,
        RUN_MLX_LM,
    ),
)
MODEL_FOLDER = re.compile(r"layers\.\d+\.self_attention_residual\.norm\.")
CELLS = {4: "LSTM", 3: "GRU", 1: "RNN"}  # rows of a hidden-to-hidden matrix for each of its columns
LAYER_NUMBER = re.compile(r"\.\d+\.")
ATTENTION = re.compile(r"att|query|in_proj|linear1", re.IGNORECASE)  # or the layer around it
ENCODER_WORD = re.compile(r"(?<!qu)enc|src|source", re.IGNORECASE)  # not "sequence"
DECODER_WORD = re.compile(r"dec|tgt|trg|target", re.IGNORECASE)
CROSS_ATTENTION = re.compile(r"cross|multihead_attn|(src|enc|encoder|context|memory)_att|encdec", re.IGNORECASE)

DECODER_TYPES = (
    "gpt2 gpt_neo gpt_neox gpt_bigcode gptj gpt_oss openai-gpt bloom opt xglm biogpt codegen llama llama4 mistral "
    "mixtral gemma gemma2 gemma3 gemma3_text qwen2 qwen2_moe qwen3 qwen3_moe phi phi3 falcon mpt olmo olmo2 olmo3 "
    "stablelm starcoder2 cohere cohere2 granite deepseek_v2 deepseek_v3 smollm3 mamba rwkv"
).split()
ENCODER_TYPES = (
    "bert roberta roberta-prelayernorm distilbert albert electra deberta deberta-v2 camembert xlm xlm-roberta "
    "xlm-roberta-xl mpnet modernbert ernie flaubert fnet funnel longformer big_bird convbert ibert megatron-bert "
    "mobilebert nomic_bert nystromformer rembert roformer squeezebert xmod esm layoutlm luke"
).split()
# model_type of a config.json -> why such a model cannot be converted.
UNSUPPORTED_MODEL_TYPES = {
    **dict.fromkeys(DECODER_TYPES, DECODER_ALONE),
    **dict.fromkeys(ENCODER_TYPES, ENCODER_ALONE),
    **dict.fromkeys(("whisper", "speech_to_text", "speech-encoder-decoder", "wav2vec2", "hubert", "speecht5"), AUDIO),
    **dict.fromkeys(("vision-encoder-decoder", "vit", "pix2struct", "donut-swin"), IMAGE),
    **dict.fromkeys(("nllb-moe", "switch_transformers"), EXPERTS),
    **dict.fromkeys(("prophetnet", "xlm-prophetnet"), "its decoder predicts several tokens at once"),
    "clip": "it has two encoders, for text and images",
    "led": "its encoder has windows and global attention",
    "longt5": "its encoder has local and transient-global attention",
    "pegasus_x": "its encoder has block-local and global attention",
    "bigbird_pegasus": "its encoder has block-sparse attention",
    "t5gemma": "it has rotary positions, grouped queries and soft-capped scores",
    "t5gemma2": "it has rotary positions, grouped queries and merged attention",
    "encoder-decoder": "its encoder and decoder are separate models of other types",
}


def describe_other_model(
    shapes: Mapping[str, tuple[int, ...]], file_names: Iterable[str], may_be_encoder: bool = False
) -> str | None:
    """Return an error that says what a checkpoint is, if it is no complete encoder-decoder Transformer.

    Args:
        shapes: The names and shapes of the model's tensors.
        file_names: The names of all tensors in the file, before any were renamed.
        may_be_encoder: Whether an encoder without a decoder will do.

    Returns:
        A sentence with the reason, a tensor that shows it and a remedy; None if the names do not tell.
    """
    names, all_names = (_one_of_each_layer(some) for some in (shapes, file_names))
    if all_names and all(re.search(ADAPTER, name) for name in all_names):
        return f"An adapter is not a complete model: {USE_ADAPTER}."
    if name := next(filter(MODEL_FOLDER.search, all_names), None):
        reason = "it is the file of a model folder without its config.json"
        return _cannot_be_converted(reason, name, "give the path of the whole folder")
    if message := _describe(ALTERED, all_names, {}) or _describe(OTHER_MODELS, names, shapes):
        return message
    if name := next((name for name in names if name.endswith("weight") and len(shapes[name]) == 4), None):
        return _cannot_be_converted("it has two-dimensional convolutions, for images", name, USE_TEXT)
    return None if may_be_encoder else _describe_one_stack(names)


def _one_of_each_layer(names: Iterable[str]) -> list[str]:
    """Return the first names that differ in more than the numbers of layers."""
    first: dict[str, str] = {}
    for name in names:
        if len(first) < MAX_NAMES:
            first.setdefault(LAYER_NUMBER.sub(".", name), name)
    return list(first.values())


def _describe(models: Iterable[OtherModel], names: list[str], shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """Return the error for the first model all of whose patterns match a name."""
    for model in models:
        patterns = [model.pattern] if isinstance(model.pattern, str) else model.pattern
        matches = [next(filter(re.compile(pattern).search, names), None) for pattern in patterns]
        if (name := matches[0]) is not None and None not in matches:
            rows, columns = (*shapes.get(name, ()), 0, 0)[:2]
            reason = model.reason.format(cell=CELLS.get(rows // max(columns, 1), "LSTM or GRU"))
            return _cannot_be_converted(reason, name, model.remedy)
    return None


def _describe_one_stack(names: list[str]) -> str | None:
    """Return the error for a model all of whose layers are in one stack."""
    layers: dict[str, str] = {}  # what precedes the numbers of layers -> the first tensor
    for name in names:
        stack, *rest = LAYER_NUMBER.split(name, maxsplit=1)
        if rest and ATTENTION.search(rest[0]):
            layers.setdefault(stack, name)
    encoders, decoders = (
        [name for stack, name in layers.items() if word.search(stack)] for word in (ENCODER_WORD, DECODER_WORD)
    )
    if len(decoders) == len(layers) > 0 and not encoders:
        return _cannot_be_converted(DECODER_ALONE, decoders[0], RENAME_OTHER)
    if decoders or any(map(CROSS_ATTENTION.search, names)):
        return None
    if len(encoders) == len(layers) > 0:
        return _cannot_be_converted(ENCODER_ALONE, encoders[0], NAME_ENCODER)
    if len(layers) != 1:
        return None
    (name,) = layers.values()
    message = _describe(ONE_STACK, names, {})
    return message or _cannot_be_converted("all its layers are in one stack", name, RENAME_OTHER)


def _cannot_be_converted(reason: str, name: str, remedy: str) -> str:
    return f"The checkpoint cannot be converted: {reason}, as {quote(name)} shows; {remedy}."
