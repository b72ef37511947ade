"""Evaluation of a model on sources with references: BLEU, chrF and exact matches."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from mlx_transformer.config.search import BATCH_TOKENS, SearchConfig, SearchOptions, Unpack, change_search
from mlx_transformer.inference.generation import generate_hypotheses
from mlx_transformer.inference.search_options import make_search
from mlx_transformer.inference.source_lines import PerLineText, as_list
from mlx_transformer.metrics import check_reference_counts, check_sacrebleu, corpus_scores
from mlx_transformer.model.transformer import Transformer
from mlx_transformer.tokenization.tokenizer import Tokenizer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """Scores of a model's translations of a test set.

    Attributes:
        bleu: BLEU of the corpus by sacrebleu, 0 to 100.
        bleu_signature: How sacrebleu computed it.
        chrf: chrF of the corpus by sacrebleu, 0 to 100.
        chrf_signature: How sacrebleu computed it.
        exact_match: Share of translations that equal one of their references, 0 to 1.
        hypotheses: The translation of each source.
    """

    bleu: float
    bleu_signature: str
    chrf: float
    chrf_signature: str
    exact_match: float
    hypotheses: list[str] = field(repr=False)


def evaluate(
    model: Transformer,
    tokenizer: Tokenizer,
    sources: str | Iterable[str],
    references: str | Iterable[Sequence[str]],
    search: SearchConfig | None = None,
    *,
    source_language: PerLineText = None,
    target_language: PerLineText = None,
    source_prefix: str | None = None,
    batch_tokens: int = BATCH_TOKENS,
    **options: Unpack[SearchOptions],
) -> Evaluation:
    """Generate the best target of each source and compare it with its references, as the command `evaluate` does.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        sources: Source texts, or a single one. Those beyond the model's maximum length are truncated, with a warning in
            the log.
        references: One reference, or a list of them, for each source.
        search: See `generate_hypotheses`.
        source_language: See `generate_hypotheses`.
        target_language: See `generate_hypotheses`.
        source_prefix: See `generate_hypotheses`.
        batch_tokens: See `generate_hypotheses`.
        **options: See `generate_hypotheses`.

    Raises:
        TypeError: If a keyword argument is unknown, with similar names.
        ValueError: If sacrebleu is not installed, the numbers of sources and references differ, a source has no
            reference, or no result.
    """
    check_sacrebleu()
    texts = list(as_list(sources, "sources"))
    groups = [[group] if isinstance(group, str) else group for group in as_list(references, "references")]
    check_reference_counts(texts, groups)
    search = change_search(make_search(evaluate, model, search, options), num_hypotheses=1)
    results = generate_hypotheses(
        model,
        tokenizer,
        texts,
        search,
        source_language=source_language,
        target_language=target_language,
        source_prefix=source_prefix,
        batch_tokens=batch_tokens,
    )
    hypotheses = []
    for number, (best, *_) in enumerate(results, start=1):
        if best.truncated:
            logger.warning("Line %d is longer than the model can read and was cut.", number)
        hypotheses.append(best.text or "")
    return Evaluation(**corpus_scores(hypotheses, groups), hypotheses=hypotheses)
