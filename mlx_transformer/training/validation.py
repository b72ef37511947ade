"""Validation: loss and token accuracy with teacher forcing, and scores of translations."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_transformer.config.training import TrainingConfig
from mlx_transformer.data.batch_sampler import epoch_batches
from mlx_transformer.data.dataset import TokenizedCorpus
from mlx_transformer.data.parallel_corpus import ParallelCorpora, SentencePair
from mlx_transformer.inference.generation import generate
from mlx_transformer.metrics import corpus_scores, exact_match, group_references, has_sacrebleu
from mlx_transformer.model.transformer import Transformer
from mlx_transformer.tokenization.tokenizer import Tokenizer
from mlx_transformer.training.losses import chunk_slices, token_losses


@dataclass(frozen=True)
class Validation:
    """The results of a validation during training.

    Attributes:
        step: Number of finished steps.
        loss: Cross entropy per target token, in nats, without label smoothing.
        token_accuracy: Share of target tokens that are predicted correctly from the correct tokens before them.
        is_best: Whether this is the best model so far, by the run's `best_by`.
        exact_match: Share of translations that equal one of their references; None without translations.
        bleu: BLEU of the translations, 0 to 100; None without translations or without sacrebleu.
        chrf: Their chrF, likewise.
        samples: A few translations: dicts of `source`, `reference` and `hypothesis`.
    """

    step: int
    loss: float
    token_accuracy: float
    is_best: bool
    exact_match: float | None = None
    bleu: float | None = None
    chrf: float | None = None
    samples: Sequence[dict[str, str]] = ()


class Validator:
    """Validates models on the validation corpora of a run."""

    def __init__(
        self, pairs: ParallelCorpora, corpus: TokenizedCorpus, tokenizer: Tokenizer, config: TrainingConfig
    ) -> None:
        self.corpus, self.tokenizer, self.config = corpus, tokenizer, config
        self.sources, self.references = sample_references(pairs, config.bleu_sentences)

    def measure(self, model: Transformer) -> dict[str, Any]:
        """Return loss, token accuracy, scores of the translations of the first sentences, and a few samples.

        Raises:
            FloatingPointError: If the loss is NaN or infinite.
        """
        results: dict[str, Any] = validate(model, self.corpus, self.config.batch_tokens)
        if not math.isfinite(results["loss"]):
            raise FloatingPointError
        return results | self.score_translations(model)

    def score_translations(self, model: Transformer) -> dict[str, Any]:
        """Translate the first sentences; return their scores and a few samples.

        The search is the model's, as in `generate` and `evaluate`, so that scores compare with theirs: greedy for a new
        model, the beams of its checkpoint for a fine-tuned one.
        """
        if not self.sources:
            return {}
        texts, _, source_languages, target_languages = map(list, zip(*self.sources, strict=True))
        hypotheses = generate(
            model,
            self.tokenizer,
            texts,
            source_language=source_languages,
            target_language=target_languages,
            source_prefix=self.config.source_prefix or None,
        )
        rows = zip(texts, self.references, hypotheses, strict=True)
        samples = [
            {"source": source, "reference": references[0], "hypothesis": hypothesis}
            for source, references, hypothesis in islice(rows, self.config.samples)
        ]
        if not has_sacrebleu():
            return {"exact_match": exact_match(hypotheses, self.references), "samples": samples}
        scores = corpus_scores(hypotheses, self.references)
        return {name: scores[name] for name in ("bleu", "chrf", "exact_match")} | {"samples": samples}


def sample_references(pairs: Iterable[SentencePair], count: int) -> tuple[list[SentencePair], list[list[str]]]:
    """Return the first `count` distinct sources, and all references of each."""
    if not count:
        return [], []  # without reading the pairs
    return group_references(((pair._replace(target=""), pair.target) for pair in pairs), count)


def validate(model: Transformer, corpus: TokenizedCorpus, batch_tokens: int) -> dict[str, float]:
    """Return the loss per token (nats, no label smoothing) and the token accuracy, with teacher forcing."""
    batch_metrics = model.compiled(_batch_metrics)
    totals = mx.zeros(3)
    for batch in epoch_batches(corpus, batch_tokens):
        totals = totals + batch_metrics(mx.array(batch.source), mx.array(batch.target))
        mx.async_eval(totals)
    loss, correct, tokens = np.array(totals).tolist()
    return {"loss": loss / tokens, "token_accuracy": correct / tokens}


def _batch_metrics(model: Transformer, source: mx.array, target: mx.array) -> mx.array:
    """Return the summed loss, the number of correct tokens and the number of tokens, float32 (3,)."""
    hidden_states, labels = model.hidden_states(source, target[:, :-1]).flatten(0, 1), target[:, 1:].flatten()
    mask = labels != model.config.pad_id
    totals = mx.zeros(3)
    for chunk in chunk_slices(len(labels), model.config.target_vocab_size):
        # Each chunk depends on the previous one, so that only one chunk of logits is in memory.
        logits, chunk_mask = model.logits(mx.depends([hidden_states[chunk]], [totals])[0]), mask[chunk]
        losses = token_losses(logits, labels[chunk])
        correct = logits.argmax(axis=-1) == labels[chunk]
        totals = totals + mx.stack([(losses * chunk_mask).sum(), (correct & chunk_mask).sum(), chunk_mask.sum()])
    return totals
