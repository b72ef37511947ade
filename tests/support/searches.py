"""Search configurations of every kind, for tiny models of at least seven tokens."""

from mlx_transformer.config.search import SearchConfig

RULES = {
    "no_repeat_ngram_size": 4,
    "source_no_repeat_ngram_size": 2,
    "repetition_penalty": 1.2,
    "bad_words": ((3, 4), (5,)),
    "min_length_ratio": 2.0,
}
SEARCHES = {
    "greedy": SearchConfig(),
    "beam": SearchConfig(3, 3, length_penalty=0.6),
    "sampling": SearchConfig(3, 2, temperature=0.7, top_k=6, top_p=0.95, seed=3),
    "alternatives": SearchConfig(3, 3, alternatives=True),
    "greedy with rules": SearchConfig(**RULES),
    "beam with rules": SearchConfig(3, 3, **RULES),
    "sampling with rules": SearchConfig(3, 3, temperature=1.0, min_p=0.02, **RULES),
}
