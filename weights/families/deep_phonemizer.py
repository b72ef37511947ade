"""Checkpoints of the autoregressive model of as-ideas/DeepPhonemizer."""

from typing import Any

from mlx_transformer.weights.families import transforms
from mlx_transformer.weights.families.options import OWN_DEFAULTS, OWN_FIELDS, option
from mlx_transformer.weights.families.spec import BIASES, FINAL_NORMS, OUTPUT_BIAS, Family, NameTable, stack_names
from mlx_transformer.weights.families.torch_nn import DECODER_LAYER, ENCODER_LAYER

# Position tables are multiplied by a learned factor.
NAMES: NameTable = {
    **stack_names(ENCODER_LAYER, DECODER_LAYER, "encoder.layers.{i}", "decoder.layers.{i}"),
    "encoder.norm": "encoder.norm",
    "decoder.norm": "decoder.norm",
    "source_embedding.weight": "encoder.weight",
    "target_embedding.weight": "decoder.weight",
    "encoder.positions.weight": ("pos_encoder.pe", transforms.position_table, "pos_encoder.scale"),
    "decoder.positions.weight": ("pos_decoder.pe", transforms.position_table, "pos_decoder.scale"),
    "output": "fc_out",
}


def start_id(settings: dict[str, Any]) -> int | None:
    """Return the id of the start token; None if it is unknown, or there is one for each of several languages."""
    return 1 if count_languages(settings) == 1 else None


def end_id(settings: dict[str, Any]) -> int | None:
    """Return the id of the end token: it follows padding and one start token for each language."""
    count = count_languages(settings)
    return count and count + 1


def count_languages(settings: dict[str, Any]) -> int | None:
    """Return the number of languages; None if the settings do not show it."""
    languages = option("preprocessing_languages")(settings)
    return len(languages) if isinstance(languages, list | tuple) else None


DEEP_PHONEMIZER = Family(
    NAMES,
    OWN_FIELDS | {"start_id": start_id, "eos_id": end_id},
    presence=BIASES | OUTPUT_BIAS | FINAL_NORMS,
    defaults=OWN_DEFAULTS | {"num_heads": 4, "scale_embeddings": False, "pad_id": 0, "start_id": 1, "eos_id": 2},
    defaults_from="as-ideas/DeepPhonemizer",
    source_specials=("start", "end"),
)
