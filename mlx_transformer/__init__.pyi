"""What a type checker and an editor see of the public names, which __init__.py loads on first use."""

from .checkpoints.adapter_folder import save_adapter as save_adapter
from .checkpoints.model_folder import save as save
from .config.adapter import AdapterConfig as AdapterConfig
from .config.alignment import AlignmentConfig as AlignmentConfig
from .config.model import ModelConfig as ModelConfig
from .config.model import PoolingConfig as PoolingConfig
from .config.model import StackConfig as StackConfig
from .config.search import SearchConfig as SearchConfig
from .config.search import SearchOptions as SearchOptions
from .config.training import TrainingConfig as TrainingConfig
from .decoding.beam_search import generate_ids as generate_ids
from .decoding.hypothesis import Hypothesis as Hypothesis
from .inference.attention_weights import AttentionWeights as AttentionWeights
from .inference.attention_weights import attention_ids as attention_ids
from .inference.embedding import embed as embed
from .inference.evaluation import Evaluation as Evaluation
from .inference.evaluation import evaluate as evaluate
from .inference.generation import generate as generate
from .inference.generation import generate_hypotheses as generate_hypotheses
from .inference.generation import stream_generate as stream_generate
from .inference.scoring import Score as Score
from .inference.scoring import score as score
from .inference.scoring import score_ids as score_ids
from .inference.text_attention import TextAttention as TextAttention
from .inference.text_attention import attention as attention
from .model.adapters import add_adapter as add_adapter
from .model.adapters import fuse_adapter as fuse_adapter
from .model.adapters import remove_adapter as remove_adapter
from .model.transformer import Memory as Memory
from .model.transformer import Transformer as Transformer
from .plotting.attention_maps import plot_attention as plot_attention
from .plotting.learning_curves import plot_learning_curves as plot_learning_curves
from .pretrained.loading import load as load
from .pretrained.loading import load_adapter as load_adapter
from .pretrained.loading import load_model as load_model
from .tokenization.tokenizer import Tokenizer as Tokenizer
from .training.losses import loss as loss
from .training.step_metrics import TrainingStep as TrainingStep
from .training.trainer import train as train
from .training.validation import Validation as Validation
from .weights.adapters.peft_writer import save_peft_adapter as save_peft_adapter
from .weights.convert import ConversionReport as ConversionReport
from .weights.convert import convert as convert
from .weights.tokenizers.options import TokenizerOptions as TokenizerOptions

__version__: str
