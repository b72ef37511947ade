"""A stand-in for a model, to test the command line without one: its hypotheses are the sources in capitals."""

import dataclasses
import sys

import mlx_transformer as mt
from mlx_transformer.config import SearchConfig

LONGEST = 100


@dataclasses.dataclass
class EchoHypothesis:
    ids: list
    score: float
    finish_reason: str
    text: str
    truncated: bool


class EchoModel:
    search_defaults = SearchConfig()


class EchoTokenizer:
    def tokens(self, ids):
        return [chr(i) for i in ids]


def load(path=None, dtype=None):
    return EchoModel(), None if path == "no-tokenizer" else EchoTokenizer()


def generate_hypotheses(model, tokenizer, lines, search=None, *, batch_tokens=4096):
    for line in lines:
        if line == "bug":
            raise KeyError("a bug")
        if line.startswith("RuntimeError: "):
            raise RuntimeError(line.removeprefix("RuntimeError: "))
        text = line[:LONGEST].upper()
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
