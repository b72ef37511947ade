"""A translator without a model: it writes words in capitals, in their order or backwards, and aligns them."""

import re

from mlx_transformer.decoding.hypothesis import Hypothesis
from mlx_transformer.documents.translator import Translator
from mlx_transformer.inference.alignment import WORD

KEPT = re.compile(r"(\{c?\w*\}|%(?:\(\w+\))?[sd])")


def capitals(text):
    parts = KEPT.split(text)
    parts[::2] = map(str.upper, parts[::2])
    return "".join(parts)


def make_fake(*, backwards=False, aligned=True, drop="", missing=(), language=None, seen=None):
    """A translator that can lose the text `drop`, and lack alignments; it appends the texts that it reads to `seen`."""

    def search(texts, wants_alignment):
        for text in texts:
            if seen is not None:
                seen.append(text)
            words = WORD.findall(capitals(text))
            target = " ".join(reversed(words)) if backwards else capitals(text)
            count = len(words)
            pairs = [(i, count - 1 - i if backwards else i) for i in range(count)]
            target = " ".join(target.replace(drop, "").split()) if drop else target
            yield Hypothesis(
                ids=[],
                score=0.0,
                finish_reason="stop",
                text=target,
                alignment=(pairs if aligned else []) if wants_alignment else None,
                missing_terms=tuple(missing),
            )

    return Translator(search, language)
