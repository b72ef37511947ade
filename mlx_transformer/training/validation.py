"""Validation: loss and accuracy by teacher forcing, and translations beside their references."""

import math
from collections.abc import Iterable
from itertools import islice
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_transformer.config.training import TrainingConfig
from mlx_transformer.data.batch_sampler import batches
from mlx_transformer.data.dataset import Corpus
from mlx_transformer.data.parallel_corpus import Corpora, Pair
from mlx_transformer.inference.generation import generate
from mlx_transformer.metrics import corpus_scores, exact_match, has_sacrebleu
from mlx_transformer.model.transformer import Transformer
from mlx_transformer.tokenization.tokenizer import Tokenizer
from mlx_transformer.training.losses import pieces, token_losses


class Validator:
    """The pairs that a run is validated on."""

    def __init__(self, corpora: Corpora, corpus: Corpus, tokenizer: Tokenizer, config: TrainingConfig) -> None:
        self.corpus, self.tokenizer, self.config = corpus, tokenizer, config
        self.sources, self.references = group(corpora, config.bleu_sentences)

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


def group(pairs: Iterable[Pair], count: int) -> tuple[list[Pair], list[list[str]]]:
    """The first distinct sources, and all references of each."""
    references: dict[tuple, dict[str, None]] = {}
    first: dict[tuple, Pair] = {}
    for pair in pairs if count else ():
        key = pair.source, pair.source_language, pair.target_language
        if key in first or len(first) < count:
            first.setdefault(key, pair)
            references.setdefault(key, {})[pair.target] = None
    return list(first.values()), [list(texts) for texts in references.values()]


def validate(model: Transformer, corpus: Corpus, batch_tokens: int) -> dict[str, float]:
    """Loss without label smoothing (nats a token) and share of tokens predicted right, by teacher forcing."""
    measure = model.compiled(_measures)
    totals = mx.zeros(3)
    for batch in batches(corpus, batch_tokens):
        totals = totals + measure(mx.array(batch.source), mx.array(batch.target))
        mx.async_eval(totals)
    loss, correct, tokens = np.array(totals).tolist()
    return {"loss": loss / tokens, "token_accuracy": correct / tokens}


def _measures(model: Transformer, source: mx.array, target: mx.array) -> mx.array:
    """Sum of losses, number of tokens predicted right, number of tokens."""
    hidden, wanted = model.hidden(source, target[:, :-1]).flatten(0, 1), target[:, 1:].flatten()
    real = wanted != model.config.pad_id
    totals = mx.zeros(3)
    for piece in pieces(len(wanted), model.config.target_vocab_size):
        logits, counted = model.logits(mx.depends([hidden[piece]], [totals])[0]), real[piece]
        losses = token_losses(logits, wanted[piece])
        correct = logits.argmax(axis=-1) == wanted[piece]
        totals = totals + mx.stack([(losses * counted).sum(), (correct & counted).sum(), counted.sum()])
    return totals
