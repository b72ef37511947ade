"""A fake model to test the command line: its hypotheses are the sources in capitals."""

import dataclasses
import math
import sys
from types import SimpleNamespace

import mlx_transformer as mt
from mlx_transformer.config.search import SearchConfig, TaskConfig
from mlx_transformer.config.tokenizer import TokenizerConfig
from mlx_transformer.inference.source_lines import make_source_lines
from mlx_transformer.tokenization.texts import TextError

LONGEST = 100


@dataclasses.dataclass
class EchoHypothesis:
    ids: list
    score: float
    finish_reason: str
    text: str
    truncated: bool
    token_scores: list | None = None
    alignment: list | None = None
    error: str | None = None
    too_short: bool = False
    missing_terms: tuple = ()


class EchoModel:
    config = SimpleNamespace(encoder=SimpleNamespace(max_length=LONGEST), require_decoder=lambda: None)
    search_defaults = SearchConfig()
    tasks = {"shout": TaskConfig("shout", "hey: ", SearchConfig(beam_size=2, num_hypotheses=2))}


class EchoTokenizer:
    """Characters are tokens."""

    config = TokenizerConfig(languages={"en": 9}, source_language="before", target_language="start")

    def encode(self, text, source_language=None, target_language=None):
        return [ord(character) for character in text]

    def decoder_starts(self, count, target_language=None):
        return [(0, None)] * count

    def tokens(self, ids):
        return [chr(i) for i in ids]


def load(path=None, dtype=None, revision=None, allow_overflow=False, adapter=None):
    return EchoModel(), EchoTokenizer()


def generate_hypotheses(
    model,
    tokenizer,
    lines,
    search=None,
    *,
    source_language=None,
    target_language=None,
    source_prefix=None,
    target_prefix=None,
    batch_tokens=4096,
    glossary=None,
    protect=(),
    shortlist=None,
    alignment=None,
    scores=True,
    token_scores=False,
    first_line=0,
    return_errors=False,
):
    for source in make_source_lines(lines, source_language, target_language, target_prefix):
        line, languages = source.text, (source.source_language, source.target_language)
        if line == "bug":
            raise KeyError("a bug")
        if line.startswith("RuntimeError: "):
            raise RuntimeError(line.removeprefix("RuntimeError: "))
        if line.startswith("ValueError: "):
            yield [EchoHypothesis([], -math.inf, "error", "", False, error=line.removeprefix("ValueError: "))]
            continue
        codes = "{}>{} ".format(*languages) if any(languages) else ""
        text = (source.target_prefix or "") + codes + (source_prefix or "") + line[:LONGEST].upper()
        cut = len(line) > LONGEST
        count = search.num_hypotheses if line else 1
        more = {
            "too_short": line == "short",
            "token_scores": [-0.5] * len(text) if token_scores else None,
            "alignment": [(i, i) for i in range(len(line.split()))] if alignment else None,
        }
        yield [
            EchoHypothesis([ord(c) for c in text], -0.5 - i if line else 0.0, "stop", text + "!" * i, cut, **more)
            for i in range(count)
        ]


def stream_generate(model, tokenizer, text, search=None, *, target_prefix=None, line=0, **others):
    (best,) = next(generate_hypotheses(model, tokenizer, [text], search, target_prefix=target_prefix, **others))
    if best.error:
        raise TextError(best.error)
    yield from best.text


def score(
    model,
    tokenizer,
    sources,
    targets,
    *,
    source_language=None,
    target_language=None,
    source_prefix=None,
    alignment=None,
    batch_tokens=4096,
    return_errors=False,
):
    """Score minus the number of letters; words are aligned in order."""
    for source, target in zip(sources, targets, strict=True):
        told = f"{source_language}>{target_language}" if source_language or target_language else ""
        scores = [-1.0] * len(told + (source_prefix or "") + source + target)
        both = range(min(len(source.split()), len(target.split())))
        pairs = None if alignment is None else [(i, i) for i in both]
        if source.startswith("ValueError: "):
            yield mt.Score(-math.inf, [], [], error=source.removeprefix("ValueError: "))
            continue
        cut = max(len(source), len(target)) > LONGEST
        yield mt.Score(sum(scores), [ord(c) for c in target], scores, cut, pairs)


def install(setitem=dict.__setitem__):
    # By item, since reading the attribute would import what it stands for.
    setitem(vars(mt), "load", load)
    setitem(vars(mt), "generate_hypotheses", generate_hypotheses)
    setitem(vars(mt), "stream_generate", stream_generate)
    setitem(vars(mt), "score", score)


if __name__ == "__main__":
    from mlx_transformer.cli import main

    install()
    main(sys.argv[1:])
