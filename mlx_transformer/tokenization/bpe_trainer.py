"""Training of BPE tokenizers with byte fallback, so that text in any script survives the round trip."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers

from mlx_transformer.tokenization.normalization import make_normalizer

SPECIAL_TOKENS = ("<pad>", "</s>", "<s>")
BYTE_TOKENS = tuple(f"<0x{byte:02X}>" for byte in range(256))
FIXED_TOKENS = SPECIAL_TOKENS + BYTE_TOKENS

# Words with the space before them, single digits, runs of punctuation. An apostrophe stays with the letters before it
# (l'|eau, qu'|il). No match mixes letters and punctuation, so no piece can read "<pad>" or "<0x41>".
SPLIT_PATTERN = r" ?\p{L}[\p{L}\p{M}]*(?:'(?=\p{L}))?| ?\p{N}| ?[^\s\p{L}\p{N}]+"

# Share of the text that the alphabet covers; rarer characters are encoded as bytes.
CHARACTER_COVERAGE = 0.99999

# One text of so many is also counted in capitals. A vocabulary of 8,000 then encodes sentences in capitals with 1.4
# times as many pieces as the same sentences in usual case, instead of 3 times, and the latter with 1 % more.
CAPITALS_INTERVAL = 20


def check_vocab_size(vocab_size: int, num_languages: int = 0) -> None:
    """Raise ValueError if the size leaves no room for pieces beside the special, byte and language tokens."""
    min_size = len(FIXED_TOKENS) + num_languages + 2
    if vocab_size < min_size:
        raise ValueError(f"vocab_size must be at least {min_size}: got {vocab_size}; 4000 is usual.")


def language_token(code: str) -> str:
    """Return the token of a language, as in Johnson et al. 2017; encoding a text never produces it."""
    return f"<2{code}>"


def train_bpe(texts: Iterable[str], vocab_size: int, languages: Sequence[str] = ()) -> tokenizers.Tokenizer:
    """Train a BPE tokenizer whose vocabulary begins with the special, byte and language tokens.

    It normalises texts before it encodes them; see `make_normalizer`.

    Args:
        texts: The training texts, in valid Unicode.
        vocab_size: Maximum size of the vocabulary.
        languages: Language codes.

    Raises:
        ValueError: If `vocab_size` is too small, or there is no text.

    Source: Sennrich et al. 2016, "Neural Machine Translation of Rare Words with Subword Units".
    """
    check_vocab_size(vocab_size, len(languages))
    reserved = (*FIXED_TOKENS, *map(language_token, languages))
    num_learned = vocab_size - len(reserved)
    normalizer = _make_normalizer()
    texts = [normalizer.normalize_str(text) for text in texts]
    texts += [text.upper() for text in texts[::CAPITALS_INTERVAL]]
    alphabet = _choose_alphabet(texts, max_size=(num_learned + 1) // 2)
    trainer = trainers.BpeTrainer(
        vocab_size=num_learned,
        min_frequency=2,
        show_progress=False,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
    )
    trained = _make_tokenizer(models.BPE())
    trained.normalizer = None  # the texts are normalised
    trained.train_from_iterator(texts, trainer)
    merges = [tuple(merge) for merge in json.loads(trained.to_str())["model"]["merges"]]
    # Two merges may produce the same piece; the dict keeps its first position.
    pieces = dict.fromkeys([*reserved, *alphabet, *(left + right for left, right in merges)])
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    return _make_tokenizer(models.BPE(vocabulary, merges, byte_fallback=True))


def _make_normalizer() -> normalizers.Normalizer:
    """Prepend a space to the normalised text, so that its first word is encoded like any other."""
    return normalizers.Sequence([make_normalizer(), normalizers.Prepend(" ")])


def _make_tokenizer(model: models.Model) -> tokenizers.Tokenizer:
    """Return a tokenizer that normalises and splits text; its decoder strips the first space."""
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = _make_normalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(SPLIT_PATTERN), "isolated")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return tokenizer


def _choose_alphabet(texts: Iterable[str], max_size: int) -> list[str]:
    """Return the ASCII and the most frequent other characters, sorted; ties keep the lower code point."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    uncovered = counts.total()
    if not uncovered:
        raise ValueError("A tokenizer must be trained on text: got no characters; check the training files.")
    max_uncovered = uncovered * (1 - CHARACTER_COVERAGE)
    alphabet = {" "}
    for character, count in sorted(counts.items(), key=lambda item: (not item[0].isascii(), -item[1], item[0])):
        if uncovered <= max_uncovered or len(alphabet) >= max_size:
            break
        alphabet.add(character)
        uncovered -= count
    return sorted(alphabet)
