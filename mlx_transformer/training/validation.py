"""Validation: loss and accuracy by teacher forcing, and translations beside their references."""

import math
from collections.abc import Iterable
from itertools import islice
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_transformer.config.training import TrainingConfig
from mlx_transformer.data.batch_sampler import validation_batches
from mlx_transformer.data.dataset import TokenizedCorpus
from mlx_transformer.data.parallel_corpus import ParallelCorpora, SentencePair
from mlx_transformer.inference.generation import generate
from mlx_transformer.metrics import corpus_scores, exact_match, has_sacrebleu
from mlx_transformer.model.transformer import Transformer
from mlx_transformer.tokenization.tokenizer import Tokenizer
from mlx_transformer.training.losses import chunk_sizes, token_losses


class Validator:
    """The pairs that a run is validated on."""

    def __init__(
        self, corpora: ParallelCorpora, corpus: TokenizedCorpus, tokenizer: Tokenizer, config: TrainingConfig
    ) -> None:
        self.corpus, self.tokenizer, self.config = corpus, tokenizer, config
        self.sources, self.references = sample_references(corpora, config.bleu_sentences)

    def measure(self, model: Transformer) -> dict[str, Any]:
        """Loss, accuracy and, of the first sentences, the scores of greedy translations and a few samples.

        Raises:
            FloatingPointError: If the loss is not finite.
        """
        results: dict[str, Any] = validate(model, self.corpus, self.config.batch_tokens)
        if not math.isfinite(results["loss"]):
            raise FloatingPointError
        return results | self._translate(model)

    def _translate(self, model: Transformer) -> dict[str, Any]:
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
    """The first distinct sources, and all references of each."""
    references: dict[tuple, dict[str, None]] = {}
    first: dict[tuple, SentencePair] = {}
    for pair in pairs if count else ():
        key = pair.source, pair.source_language, pair.target_language
        if key in first or len(first) < count:
            first.setdefault(key, pair)
            references.setdefault(key, {})[pair.target] = None
    return list(first.values()), [list(texts) for texts in references.values()]


def validate(model: Transformer, corpus: TokenizedCorpus, batch_tokens: int) -> dict[str, float]:
    """Loss without label smoothing (nats a token) and share of tokens predicted right, by teacher forcing."""
    measure = model.compiled(_batch_metrics)
    totals = mx.zeros(3)
    for batch in validation_batches(corpus, batch_tokens):
        totals = totals + measure(mx.array(batch.source), mx.array(batch.target))
        mx.async_eval(totals)
    loss, correct, tokens = np.array(totals).tolist()
    return {"loss": loss / tokens, "token_accuracy": correct / tokens}


def _batch_metrics(model: Transformer, source: mx.array, target: mx.array) -> mx.array:
    """Sum of losses, number of tokens predicted right, number of tokens."""
    hidden_states, labels = model.hidden_states(source, target[:, :-1]).flatten(0, 1), target[:, 1:].flatten()
    mask = labels != model.config.pad_id
    totals = mx.zeros(3)
    for piece in chunk_sizes(len(labels), model.config.target_vocab_size):
        logits, counted = model.logits(mx.depends([hidden_states[piece]], [totals])[0]), mask[piece]
        losses = token_losses(logits, labels[piece])
        correct = logits.argmax(axis=-1) == labels[piece]
        totals = totals + mx.stack([(losses * counted).sum(), (correct & counted).sum(), counted.sum()])
    return totals
