"""Classes with the names and the pickled state of torchtext's, to write files as programs with torchtext do."""

import sys
from collections import Counter, defaultdict
from types import ModuleType

import pytest

torch = pytest.importorskip("torch")


def default_index():
    return 0


def make_module(name):
    module = sys.modules.setdefault(name, ModuleType(name))
    parent, _, child = name.rpartition(".")
    if parent:
        setattr(make_module(parent), child, module)
    return module


def publish(kind, module, name):
    """Give a class the name and the module that its pickles shall have."""
    kind.__module__, kind.__qualname__, kind.__name__ = module, name, name
    setattr(make_module(module), name, kind)
    return kind


class LegacyVocab:
    """torchtext.vocab.Vocab up to version 0.8."""

    def __init__(self, tokens):
        self.freqs = Counter({token: 10 + i // 2 for i, token in enumerate([*tokens, "rare", "words"])})
        self.itos = list(tokens)
        self.stoi = defaultdict(default_index, {token: i for i, token in enumerate(tokens)})
        self.vectors = None


class Field:
    """torchtext.data.Field, with the attributes that matter."""

    def __init__(self, tokens, lower=False, init_token="<sos>", eos_token="<eos>"):
        self.sequential, self.use_vocab, self.lower = True, True, lower
        self.init_token, self.eos_token, self.pad_token, self.unk_token = init_token, eos_token, "<pad>", "<unk>"
        self.tokenizer_args = ("spacy", "de")
        self.tokenize, self.preprocessing = default_index, None
        self.vocab = LegacyVocab(tokens)


class NativeVocab:
    """The C++ vocabulary of version 0.9 and later, whose pickled state this is."""

    def __init__(self, tokens):
        self.itos_ = list(tokens)

    def __getstate__(self):
        return "0.0.2", [0], self.itos_, []

    def __setstate__(self, state):
        self.itos_ = state[2]


class ModuleVocab(torch.nn.Module):
    """torchtext.vocab.Vocab of version 0.9 and later."""

    def __init__(self, tokens):
        super().__init__()
        self.vocab = NativeVocab(tokens)


class Lang:
    """The vocabulary of a tutorial, which counts its words."""

    def __init__(self, tokens):
        self.name = "deu"
        self.word2index = {token: i for i, token in enumerate(tokens) if i >= 4}
        self.word2count = {token: 1 for token in tokens}
        self.index2word = dict(enumerate(tokens))
        self.n_words = len(tokens)


class Example:
    """A pair of a data set that is pickled with its vocabularies."""

    def __init__(self, words):
        self.src = self.trg = words


publish(LegacyVocab, "torchtext.vocab", "Vocab")
publish(Field, "torchtext.data.field", "Field")
publish(NativeVocab, "torchtext._torchtext", "Vocab")
MODULE_VOCAB = "torchtext.vocab.vocab"
publish(ModuleVocab, MODULE_VOCAB, "Vocab")
