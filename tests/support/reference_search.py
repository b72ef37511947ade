"""Reference search: the beam search of transformers as plain loops over one sentence, without cache or batch."""

import itertools

import mlx.core as mx
import numpy as np
from support.tiny_models import padded

from mlx_transformer.decoding.beam_search import generate_ids
from mlx_transformer.decoding.inputs import max_target_tokens

CLOSE = 1e-4  # where two candidates are nearer than this, either may win


class Teacher:
    """Log-probabilities after a prefix, computed in one pass without a cache, and memoised.

    Args:
        model: The model that is searched.
        forward: Lists of source and of target ids -> logits, (rows, target_length, vocab); the model's own if None.
    """

    def __init__(self, model, forward=None):
        self.model = model
        self.forward = forward or (lambda *ids: model(*(mx.array(rows, mx.int32) for rows in ids)).astype(mx.float32))
        self.memo = {}

    def __call__(self, source, prefixes):
        """Return log-probabilities, (prefixes, vocab), after prefixes of equal length."""
        missing = [prefix for prefix in prefixes if (*source, None, *prefix) not in self.memo]
        if missing:
            target = [[self.model.config.start_id, *prefix] for prefix in missing]
            rows = np.array(self.forward([source] * len(missing), target)[:, -1], np.float64)
            rows -= np.log(np.exp(rows).sum(axis=1, keepdims=True))
            self.memo.update({(*source, None, *prefix): row for prefix, row in zip(missing, rows, strict=True)})
        return np.array([self.memo[(*source, None, *prefix)] for prefix in prefixes])


def reference_search(teacher, source, search, limit, prefix=()):
    """Search one sentence with the rules of transformers: [(score, ids with end token)].

    The ids begin with the prefix, which counts in no score, length or limit. Also returns the smallest gap between
    candidates that the search had to choose from.
    """
    eos_ids = list(teacher.model.config.eos_ids)
    beams = search.beam_size
    min_tokens = max(search.min_tokens, int(search.min_length_ratio * len(source)))
    active, finished, nearest = [(0.0, tuple(prefix))], [], np.inf
    for length in range(1, limit + 1):
        logprobs = teacher(source, [ids for _, ids in active])
        logprobs[:, [teacher.model.config.pad_id, *search.suppress_ids]] = -np.inf
        if length < min(min_tokens, limit):
            logprobs[:, eos_ids] = -np.inf
        if length == 1 and not prefix and search.forced_bos_id is not None:
            logprobs[:] = -np.inf
            logprobs[:, search.forced_bos_id] = 0
        candidates = [
            (score + row[token], (*ids, token))
            for (score, ids), row in zip(active, logprobs, strict=True)
            for token in np.flatnonzero(row > -np.inf).tolist()
        ]
        count = (1 + len(eos_ids)) * beams
        candidates = sorted(candidates, reverse=True)[: count + 1]
        nearest = min([nearest, *(a[0] - b[0] for a, b in itertools.pairwise(candidates))])
        candidates = candidates[:count]
        ends = [ids[-1] in eos_ids or length == limit for _, ids in candidates]
        finished += [
            (score / length**search.length_penalty, ids)
            for (score, ids), end in zip(candidates[:beams], ends[:beams], strict=True)
            if end
        ]
        finished = sorted(finished, reverse=True)[:beams]
        active = [candidate for candidate, end in zip(candidates, ends, strict=True) if not end][:beams]
        if not active:
            break
        if len(finished) == beams:
            if search.early_stopping is True or beams == 1:
                break
            reached = limit if search.early_stopping == "never" and search.length_penalty > 0 else length
            attainable = active[0][0] / reached**search.length_penalty
            nearest = min(nearest, abs(attainable - finished[-1][0]))
            if attainable <= finished[-1][0]:
                break
    nearest = min([nearest, *(a[0] - b[0] for a, b in itertools.pairwise(finished))])
    return finished[: search.num_hypotheses], nearest


def with_end(hypothesis):
    return (*hypothesis.ids, *([] if hypothesis.end_id is None else [hypothesis.end_id]))


def check_equals_reference(teacher, sources, search, tolerance, limits=None, prefixes=None):
    """Compare a batch with the reference search of each sentence; returns the lengths of the best hypotheses.

    Prefixes are as the search should see them, a forced first token included.
    """
    model = teacher.model
    prefixes = prefixes or [[]] * len(sources)
    found = generate_ids(model, padded(sources, model.config), search, limits, prefix_ids=prefixes)
    limits = limits or [max_target_tokens(model, len(source), search) for source in sources]
    lengths = []
    for source, hypotheses, limit, prefix in zip(sources, found, limits, prefixes, strict=True):
        limit = min(limit, model.config.decoder.max_length - len(prefix))
        expected, nearest = reference_search(teacher, source, search, limit, prefix)
        ids = [with_end(h) for h in hypotheses]
        # At most one of a thousand sentences may differ, where candidates are that near: here none of some hundred.
        assert ids == [ids for _, ids in expected], f"the nearest candidates differed by {nearest}"
        np.testing.assert_allclose(
            [h.score for h in hypotheses], [score for score, _ in expected], atol=tolerance(CLOSE)
        )
        lengths.append(len(ids[0]))
    return lengths
