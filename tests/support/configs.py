"""One config of each class, with values that differ from the defaults."""

from mlx_transformer.config.folder import FolderConfig
from mlx_transformer.config.model import ModelConfig, QuantizationConfig, StackConfig
from mlx_transformer.config.search import SearchConfig, TaskConfig
from mlx_transformer.config.training import TrainingConfig

STACK = StackConfig(num_layers=2, num_heads=4, mlp_dims=64)
MODEL = ModelConfig(
    source_vocab_size=300,
    target_vocab_size=400,
    dims=32,
    encoder=STACK,
    decoder=StackConfig(1, 2, 16, norm_first=True, final_norm=True, positions="learned", max_length=9),
    share_embeddings=False,
    head_dims=24,
    dropout=0,
    activation="silu",
)
SEARCH = SearchConfig(beam_size=4, num_hypotheses=2, max_tokens=9, early_stopping="never", suppress_ids=(0, 2))
TRAINING = TrainingConfig(train=("a.tsv", "b::c"), valid=("dates",), output="run", best_by="bleu", seed=3)
QUANTIZATION = QuantizationConfig(bits=4, group_size=32)
TASK = TaskConfig("summarization", "summarize: ", SEARCH)
FOLDER = FolderConfig(format_version=1, model=MODEL, search=SEARCH, quantization=QUANTIZATION, tasks=(TASK,))
CONFIGS = [STACK, MODEL, SEARCH, TRAINING, QUANTIZATION, TASK, FOLDER]
