"""Checkpoint families: how each one names its tensors and what its configuration means.

To add a family, define a `Family` and register it in FAMILIES.
"""

from mlx_transformer.weights.families.annotated_transformer import ANNOTATED_TRANSFORMER
from mlx_transformer.weights.families.d2l import D2L
from mlx_transformer.weights.families.fairseq import FAIRSEQ
from mlx_transformer.weights.families.huggingface import HUGGINGFACE_FAMILIES
from mlx_transformer.weights.families.joeynmt import JOEYNMT
from mlx_transformer.weights.families.opennmt import OPENNMT_PY
from mlx_transformer.weights.families.spec import Family
from mlx_transformer.weights.families.torch_nn import TORCH_NN

# Files without a config.json belong to the first family whose signature they match.
FAMILIES: dict[str, Family] = {
    **HUGGINGFACE_FAMILIES,
    "torch": TORCH_NN,
    "annotated": ANNOTATED_TRANSFORMER,
    "d2l": D2L,
    "fairseq": FAIRSEQ,
    "opennmt-py": OPENNMT_PY,
    "joeynmt": JOEYNMT,
}

# model_type -> why it cannot be converted.
UNSUPPORTED_MODEL_TYPES = {
    "led": "its encoder has windows and global attention",
    "longt5": "its encoder has local and transient-global attention",
    "pegasus_x": "its encoder has block-local and global attention",
    "bigbird_pegasus": "its encoder has block-sparse attention",
    "nllb-moe": "its feed-forward networks are mixtures of experts",
    "switch_transformers": "its feed-forward networks are mixtures of experts",
    "t5gemma": "it has rotary positions, grouped queries and soft-capped scores",
    "t5gemma2": "it has rotary positions, grouped queries and merged attention",
    "prophetnet": "its decoder predicts several tokens at once",
    "xlm-prophetnet": "its decoder predicts several tokens at once",
    "encoder-decoder": "its encoder and decoder are separate models of other types",
    "whisper": "its source is audio",
    "speech_to_text": "its source is audio",
}
