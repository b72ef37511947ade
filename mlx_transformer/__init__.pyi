"""What a type checker and an editor see of the public names, which __init__.py loads on first use."""

from .alignment import AlignmentConfig as AlignmentConfig
from .attending import attention as attention
from .checkpoint import save as save
from .config import ModelConfig as ModelConfig
from .config import SearchConfig as SearchConfig
from .config import StackConfig as StackConfig
from .generation import generate as generate
from .generation import generate_hypotheses as generate_hypotheses
from .generation import stream_generate as stream_generate
from .hypotheses import Hypothesis as Hypothesis
from .model import Memory as Memory
from .model import Transformer as Transformer
from .pretrained import convert as convert
from .pretrained import load as load
from .recipe import TrainingConfig as TrainingConfig
from .scoring import Score as Score
from .scoring import score as score
from .scoring import score_ids as score_ids
from .search import generate_ids as generate_ids
from .tokenizer import Tokenizer as Tokenizer
from .training import train as train

__version__: str
