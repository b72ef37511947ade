"""Metrics of translations: BLEU and chrF by sacrebleu with any number of references, and exact matches."""

import importlib.util
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from mlx_transformer.messages import install_command

Source = TypeVar("Source")


def group_references(
    pairs: Iterable[tuple[Source, str]], max_sources: int | None = None
) -> tuple[list[Source], list[list[str]]]:
    """Collect the references of each source.

    Args:
        pairs: Sources and references; a source may occur several times.
        max_sources: How many distinct sources to keep, the first ones; None for all.

    Returns:
        The distinct sources in order of their first pair, and for each one its distinct references.
    """
    references: dict[Source, dict[str, None]] = {}
    for source, reference in pairs:
        if source in references or max_sources is None or len(references) < max_sources:
            references.setdefault(source, {})[reference] = None
    return list(references), [list(group) for group in references.values()]


def has_sacrebleu() -> bool:
    """Whether sacrebleu is installed."""
    return importlib.util.find_spec("sacrebleu") is not None


def check_sacrebleu() -> None:
    """Raise ValueError if sacrebleu is not installed, before anything is translated."""
    if not has_sacrebleu():
        raise ValueError(f"BLEU and chrF need sacrebleu, which is not installed: {install_command('train')}.")


def exact_match(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Return the share, 0 to 1, of hypotheses that equal one of their references."""
    check_reference_counts(hypotheses, references)
    return sum(text in group for text, group in zip(hypotheses, references, strict=True)) / len(hypotheses)


def corpus_scores(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Compute the metrics of a corpus.

    Args:
        hypotheses: One text per sentence.
        references: One or more references per sentence.

    Returns:
        `bleu` and `chrf` (0 to 100) with `bleu_signature` and `chrf_signature`, and `exact_match` (0 to 1).

    Raises:
        ValueError: If sacrebleu is not installed, or the numbers of hypotheses and references differ.

    Source: Post 2018, A Call for Clarity in Reporting BLEU Scores.
    """
    matches = exact_match(hypotheses, references)
    check_sacrebleu()
    from sacrebleu.metrics import BLEU, CHRF

    streams = to_reference_streams(references)
    scores: dict[str, Any] = {}
    for name, metric in (("bleu", BLEU()), ("chrf", CHRF())):
        score = metric.corpus_score(list(hypotheses), streams).score
        scores[name] = min(score, 100.0)  # rounding errors
        scores[f"{name}_signature"] = str(metric.get_signature())
    return scores | {"exact_match": matches}


def check_reference_counts(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    """Raise ValueError unless every hypothesis is a string with a list of references, one of them not empty."""
    if not hypotheses or len(hypotheses) != len(references):
        raise ValueError(
            f"There must be as many groups of references as texts, at least one, not {len(references)} and "
            f"{len(hypotheses)}."
        )
    for number, (text, group) in enumerate(zip(hypotheses, references, strict=True), start=1):
        is_list = isinstance(group, Sequence) and not isinstance(group, str)
        if not is_list or not all(isinstance(item, str) for item in (text, *group)):
            raise ValueError(
                f"Every sentence needs a hypothesis and a list of references, all strings: number {number} has "
                f"{text!r:.40} and {group!r:.40}."
            )
        if not any(group):
            raise ValueError(f"Every sentence needs a reference that is not empty: number {number} has none.")


def to_reference_streams(references: Sequence[Sequence[str]]) -> list[list[Any]]:
    """Convert groups to sacrebleu's streams: stream i has reference i of each sentence, or None."""
    width = max(len(group) for group in references)
    return [[group[i] if i < len(group) else None for group in references] for i in range(width)]
