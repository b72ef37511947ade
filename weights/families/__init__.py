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
from mlx_transformer.weights.families.marian import MARIAN
from mlx_transformer.weights.families.opennmt import OPENNMT_PY
from mlx_transformer.weights.families.spec import Family
from mlx_transformer.weights.families.torch_nn import TORCH_NN

# Files without a config.json belong to the family that most of their tensors fit, the first of several.
FAMILIES: dict[str, Family] = {
    **HUGGINGFACE_FAMILIES,
    "torch": TORCH_NN,
    "annotated": ANNOTATED_TRANSFORMER,
    "d2l": D2L,
    "bentrevett": BENTREVETT,
    "hkproj": HKPROJ,
    "jadore": JADORE,
    "hyunwoongko": HYUNWOONGKO,
    "gordicaleksa": GORDICALEKSA,
    "deep-phonemizer": DEEP_PHONEMIZER,
    "fairseq": FAIRSEQ,
    "opennmt-py": OPENNMT_PY,
    "joeynmt": JOEYNMT,
    "marian-native": MARIAN,
}
