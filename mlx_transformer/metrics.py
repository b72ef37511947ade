"""How good hypotheses are: BLEU and chrF by sacrebleu, with any number of references, and exact matches."""

import importlib.util
from collections.abc import Iterable, Sequence
from typing import Any

INSTALL_HINT = "pip install 'mlx_transformer[train]'"


def group_references(pairs: Iterable[tuple[str, str]]) -> tuple[list[str], list[list[str]]]:
    """Gather all references of a source that occurs in several pairs.

    Returns:
        The distinct sources in the order of their first pair, and for each one its distinct references.
    """
    references: dict[str, dict[str, None]] = {}
    for source, target in pairs:
        references.setdefault(source, {})[target] = None
    return list(references), [list(group) for group in references.values()]


def has_sacrebleu() -> bool:
    """Whether BLEU and chrF can be computed here."""
    return importlib.util.find_spec("sacrebleu") is not None


def check_sacrebleu() -> None:
    """Say early, before anything is translated, that the scores cannot be computed.

    Raises:
        ValueError: If sacrebleu is not installed.
    """
    if not has_sacrebleu():
        raise ValueError(f"BLEU and chrF need sacrebleu, which is not installed: {INSTALL_HINT}.")


def exact_match(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """The share, 0 to 1, of hypotheses that are one of their references, letter for letter."""
    check_reference_counts(hypotheses, references)
    return sum(text in group for text, group in zip(hypotheses, references, strict=True)) / len(hypotheses)


def corpus_scores(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Measure a corpus of hypotheses.

    Args:
        hypotheses: One text for each sentence.
        references: For each sentence its references, one or more.

    Returns:
        `bleu` and `chrf` (0 to 100) with `bleu_signature` and `chrf_signature`, and `exact_match` (0 to 1).

    Raises:
        ValueError: If sacrebleu is not installed, or hypotheses and references do not fit.

    Source: Post 2018, A Call for Clarity in Reporting BLEU Scores.
    """
    matches = exact_match(hypotheses, references)
    check_sacrebleu()
    from sacrebleu.metrics import BLEU, CHRF

    streams = to_reference_streams(references)
    scores: dict[str, Any] = {}
    for name, metric in (("bleu", BLEU()), ("chrf", CHRF())):
        scores[name] = metric.corpus_score(list(hypotheses), streams).score
        scores[f"{name}_signature"] = str(metric.get_signature())
    return scores | {"exact_match": matches}


def check_reference_counts(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    """Refuse what would give a number without a meaning."""
    if not hypotheses or len(hypotheses) != len(references):
        raise ValueError(
            f"There must be as many groups of references as hypotheses, at least one: got {len(references)} and "
            f"{len(hypotheses)}."
        )
    for number, group in enumerate(references, start=1):
        if not any(group):
            raise ValueError(f"Every sentence needs a reference that is not empty: number {number} has none.")


def to_reference_streams(references: Sequence[Sequence[str]]) -> list[list[Any]]:
    """Turn groups into sacrebleu's streams: stream i holds reference i of each sentence, None where there are fewer."""
    width = max(len(group) for group in references)
    return [[group[i] if i < len(group) else None for group in references] for i in range(width)]
