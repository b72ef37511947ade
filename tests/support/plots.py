"""Logs, models and helpers for tests of figures."""

import numpy as np
from support.tiny_models import config, random_model, stack

from mlx_transformer.tokenization.tokenizer import Tokenizer
from mlx_transformer.tokenization.vocabulary import WordVocabulary

STEPS = [
    {"event": "step", "step": 20, "loss": 6.0, "learning_rate": 0.1, "tokens_per_second": 9},
    {"event": "step", "step": 40, "loss": 3.0, "learning_rate": 0.2, "tokens_per_second": 9},
]
FIRST = {"event": "step", "step": 1, "loss": 9.0}
VALIDATIONS = [
    {"event": "validation", "step": 20, "loss": 5.0, "token_accuracy": 0.5, "best": True},
    {"event": "validation", "step": 30, "loss": 4.0, "token_accuracy": 0.7, "best": True},
    {"event": "validation", "step": 40, "loss": 4.5, "token_accuracy": 0.6, "best": False},
]
SCORED = [entry | {"bleu": entry["step"] / 2, "chrf": entry["step"]} for entry in VALIDATIONS]
START, STOPPED = {"event": "start", "step": 0, "config": {}}, {"event": "stopped", "step": 40}
LOG = [START, *STEPS, *VALIDATIONS, STOPPED]
BEGINNINGS = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}


def error_line(result):
    assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1
    return result.stderr


def titles(figure):
    return [axes.get_title(loc="left") for axes in figure.axes]


def curves(axes):
    """The points of each line."""
    return [list(zip(*line.get_data(), strict=True)) for line in axes.lines]


SOURCE = ["the", "cat", "sat", "</s>"]
TARGET = ["<s>", "le", "chat", "</s>"]


def word_model(source=SOURCE, target=TARGET, layers=2, **changes):
    """A random model, its tokenizer and the ids of a source and a target, whose words may be anything."""
    words = dict.fromkeys(["<pad>", "</s>", "<s>", *source, *target])
    tokenizer = Tokenizer(WordVocabulary({word: i for i, word in enumerate(words)}, 0))
    shape = stack(num_layers=layers, max_length=500)
    sizes = {"source_vocab_size": len(words), "target_vocab_size": len(words)}
    model = random_model(config(encoder=shape, decoder=shape, **sizes, **changes))
    return model, tokenizer, *([tokenizer.source.token_to_id(word) for word in side] for side in (source, target))


def drawn(axes):
    """The weights of a panel, first row on top, nan where they are hidden."""
    (mesh,) = axes.collections
    top, bottom = axes.get_ylim()[::-1]
    array = np.ma.filled(mesh.get_array().astype(float), np.nan)
    return array.reshape(round(bottom - top), -1) if top < bottom else None


def panels(figure):
    """Title -> panel; the last axes are the colour bar."""
    return {axes.get_title(loc="left"): axes for axes in figure.axes[:-1]}
