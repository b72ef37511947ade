"""Checkpoint families: how each one names its tensors and what its configuration means.

To add a family, define a `Family` and register it in FAMILIES.
"""

from mlx_transformer.weights.families.annotated_transformer import ANNOTATED_TRANSFORMER
from mlx_transformer.weights.families.bentrevett import BENTREVETT
from mlx_transformer.weights.families.d2l import D2L
from mlx_transformer.weights.families.deep_phonemizer import DEEP_PHONEMIZER
from mlx_transformer.weights.families.fairseq import FAIRSEQ
from mlx_transformer.weights.families.gordicaleksa import GORDICALEKSA
from mlx_transformer.weights.families.hkproj import HKPROJ
from mlx_transformer.weights.families.huggingface import HUGGINGFACE_FAMILIES
from mlx_transformer.weights.families.hyunwoongko import HYUNWOONGKO
from mlx_transformer.weights.families.jadore import JADORE
from mlx_transformer.weights.families.joeynmt import JOEYNMT
from mlx_transformer.weights.families.opennmt import OPENNMT_PY
from mlx_transformer.weights.families.spec import Family
from mlx_transformer.weights.families.torch_nn import TORCH_NN

# Files without a config.json belong to the first family whose signature they match.
FAMILIES: dict[str, Family] = {
    **HUGGINGFACE_FAMILIES,
    "deep-phonemizer": DEEP_PHONEMIZER,  # before torch's, whose layers it has
    "torch": TORCH_NN,
    "annotated": ANNOTATED_TRANSFORMER,
    "d2l": D2L,
    "bentrevett": BENTREVETT,
    "hkproj": HKPROJ,
    "jadore": JADORE,
    "hyunwoongko": HYUNWOONGKO,
    "gordicaleksa": GORDICALEKSA,
    "fairseq": FAIRSEQ,
    "opennmt-py": OPENNMT_PY,
    "joeynmt": JOEYNMT,
}

DECODER_ONLY = (
    "gpt2 gpt_neo gpt_neox gpt_bigcode gptj gpt_oss openai-gpt bloom opt xglm biogpt codegen llama llama4 mistral "
    "mixtral gemma gemma2 gemma3 gemma3_text qwen2 qwen2_moe qwen3 qwen3_moe phi phi3 falcon mpt olmo olmo2 olmo3 "
    "stablelm starcoder2 cohere cohere2 granite deepseek_v2 deepseek_v3 smollm3 mamba rwkv"
).split()

ENCODER_ONLY = (
    "bert roberta roberta-prelayernorm distilbert albert electra deberta deberta-v2 camembert xlm xlm-roberta "
    "xlm-roberta-xl mpnet modernbert ernie flaubert fnet funnel longformer big_bird convbert ibert megatron-bert "
    "mobilebert nomic_bert nystromformer rembert roformer squeezebert xmod esm layoutlm luke"
).split()

# model_type -> why it cannot be converted.
UNSUPPORTED_MODEL_TYPES = {
    **dict.fromkeys(DECODER_ONLY, "it is a decoder without an encoder"),
    **dict.fromkeys(ENCODER_ONLY, "it is an encoder without a decoder"),
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
    "speech-encoder-decoder": "its source is audio",
    "vision-encoder-decoder": "its source is an image",
}
