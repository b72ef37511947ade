"""A stand-in for a model, to test the command line without one: its hypotheses are the sources in capitals."""

import dataclasses
import itertools
import sys
from types import SimpleNamespace

import mlx_transformer as mt
from mlx_transformer.config import SearchConfig, TaskConfig
from mlx_transformer.languages import TokenizerConfig

LONGEST = 100


@dataclasses.dataclass
class EchoHypothesis:
    ids: list
    score: float
    finish_reason: str
    text: str
    truncated: bool


class EchoModel:
    config = SimpleNamespace(encoder=SimpleNamespace(max_length=LONGEST))
    search_defaults = SearchConfig()
    tasks = {"shout": TaskConfig("shout", "hey: ", SearchConfig(beam_size=2, num_hypotheses=2))}


class EchoTokenizer:
    """Characters are tokens."""

    config = TokenizerConfig()

    def encode(self, text, source_language=None, target_language=None):
        return [ord(character) for character in text]

    def tokens(self, ids):
        return [chr(i) for i in ids]


def load(path=None, dtype=None, revision=None, allow_overflow=False):
    return EchoModel(), None if path == "no-tokenizer" else EchoTokenizer()


def generate_hypotheses(
    model,
    tokenizer,
    lines,
    search=None,
    *,
    source_language=None,
    target_language=None,
    source_prefix=None,
    batch_tokens=4096,
):
    codes = (itertools.repeat(c) if c is None or isinstance(c, str) else c for c in (source_language, target_language))
    for line, origin, goal in zip(lines, *codes, strict=False):
        if line == "bug":
            raise KeyError("a bug")
        if line.startswith("RuntimeError: "):
            raise RuntimeError(line.removeprefix("RuntimeError: "))
        told = f"{origin}>{goal} " if origin or goal else ""
        text = told + (source_prefix or "") + line[:LONGEST].upper()
        cut = len(line) > LONGEST
        count = search.num_hypotheses if line else 1
        yield [
            EchoHypothesis([ord(c) for c in text], -0.5 - i if line else 0.0, "stop", text + "!" * i, cut)
            for i in range(count)
        ]


def install(setitem=dict.__setitem__):
    # By item, since reading the attribute would import what it stands for.
    setitem(vars(mt), "load", load)
    setitem(vars(mt), "generate_hypotheses", generate_hypotheses)


if __name__ == "__main__":
    from mlx_transformer.cli import main

    install()
    main(sys.argv[1:])
