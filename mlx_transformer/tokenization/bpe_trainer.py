"""Training of subwords: BPE with byte fallback, so that any text in any script survives the round trip."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers

SPECIAL_TOKENS = ("<pad>", "</s>", "<s>")
BYTE_TOKENS = tuple(f"<0x{byte:02X}>" for byte in range(256))
FIXED_TOKENS = SPECIAL_TOKENS + BYTE_TOKENS

# Words with the space before them, digits one by one, runs of marks, runs of white space. An apostrophe stays with the
# letters before it (l'|eau, qu'|il). No match spans letters and marks, so no piece can read "<pad>" or "<0x41>".
SPLIT_PATTERN = r" ?\p{L}[\p{L}\p{M}]*(?:['’](?=\p{L}))?| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

# A character outside the most frequent that make up this share of the text is spelled in bytes.
CHARACTER_COVERAGE = 0.99999


def check_vocab_size(vocab_size: int, num_languages: int = 0) -> None:
    """Refuse a size that leaves no room for text; ValueError, which says what is needed."""
    least = len(FIXED_TOKENS) + num_languages + 2
    if vocab_size < least:
        raise ValueError(f"vocab_size must be at least {least}: got {vocab_size}; 4000 is usual.")


def language_token(code: str) -> str:
    """The piece that stands for a language, as in Johnson et al. 2017; text never yields it, nor any fixed token."""
    return f"<2{code}>"


def train_bpe(texts: Iterable[str], vocab_size: int, languages: Sequence[str] = ()) -> tokenizers.Tokenizer:
    """Learn merges over the frequent characters, then set the fixed tokens and those of languages before them.

    Args:
        texts: The texts, which are read twice.
        vocab_size: Most pieces.
        languages: Codes of languages.

    Raises:
        ValueError: If `vocab_size` is too small, or a text is no Unicode, or there is none.

    Source: Sennrich et al. 2016, "Neural Machine Translation of Rare Words with Subword Units".
    """
    check_vocab_size(vocab_size, len(languages))
    own = (*FIXED_TOKENS, *map(language_token, languages))
    room = vocab_size - len(own)
    alphabet = _choose_alphabet(texts, limit=(room + 1) // 2)
    trainer = trainers.BpeTrainer(
        vocab_size=room,
        min_frequency=2,
        show_progress=False,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
    )
    learner = _make_tokenizer(models.BPE())
    learner.train_from_iterator(texts, trainer)
    merges = [tuple(merge) for merge in json.loads(learner.to_str())["model"]["merges"]]
    # A dict keeps first places: two merges may spell the same piece.
    pieces = dict.fromkeys([*own, *alphabet, *(left + right for left, right in merges)])
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    return _make_tokenizer(models.BPE(vocabulary, merges, byte_fallback=True))


def _make_tokenizer(model: models.Model) -> tokenizers.Tokenizer:
    """A space is set before the text, so its first word is spelled as any other, and cut off again after decoding."""
    pipeline = tokenizers.Tokenizer(model)
    pipeline.normalizer = normalizers.Prepend(" ")
    pipeline.pre_tokenizer = pre_tokenizers.Split(Regex(SPLIT_PATTERN), "isolated")
    pipeline.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return pipeline


def _choose_alphabet(texts: Iterable[str], limit: int) -> list[str]:
    """Choose the space and the most frequent characters, sorted; ties go to the lower code point."""
    counts: Counter[str] = Counter()
    for text in texts:
        check_unicode(text)
        counts.update(text)
    uncovered = counts.total()
    if not uncovered:
        raise ValueError("A tokenizer must be trained on text: got no characters; check the training files.")
    spared = uncovered * (1 - CHARACTER_COVERAGE)
    chosen = {" "}
    for character, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if uncovered <= spared or len(chosen) >= limit:
            break
        chosen.add(character)
        uncovered -= count
    return sorted(chosen)


def check_unicode(text: str) -> None:
    """Refuse a text that has no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"Text must be valid Unicode: {text[:40]!r} has a lone surrogate at position {error.start}; "
            "decode it from bytes as UTF-8."
        ) from error
