"""Augmentation of parallel text: further pairs made from those of a corpus, which teach what it lacks.

Every function takes a pair and a random generator and returns a new pair, or None where it does not apply.
"""

import random
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from mlx_transformer.data.parallel_corpus import ParallelCorpora, SentencePair

MAX_JOINED = 4  # sentences on one line
POOL_SIZE = 1000  # earlier pairs that may be joined
FINAL_PUNCTUATION = re.compile(r"\s*[.!?…]+$")
DIGITS = re.compile(r"\d+")
# Digits of ordinals, decades and names of things, in which other digits would be wrong: 1st, 2e, 1990s, B2.
DIGITS_IN_WORDS = re.compile(r"[^\W\d_]\d|\d(?!h\b)[^\W\d_]")
TIME = re.compile(r"\d\s?[:h]\s?(?=\d)|\d\s?[h:]\s?\d")
NAME = re.compile(r"(?<![\w@./-])[^\W\d_a-zß-öø-ÿ]\w+(?![\w@/-]|\.\w)")
ADDRESS = re.compile(r"(?<![\w@/])(?:[\w.+-]+@[\w-]+(?:\.[\w-]+)+|(?:https?://|www\.)[\w./-]*\w|@\w+)")
SYLLABLES = tuple(f"{onset}{vowel}" for onset in "b d f g k l m n p r s t v z br kr st th".split() for vowel in "aeiou")
ENDINGS = ("n", "r", "s", "l", "ck", "rd", "nd", "tt", "vic", "sen", "ski", "")
DOMAINS = ("com", "org", "net", "fr", "de", "co.uk", "io", "eu")

Rule = Callable[[SentencePair, random.Random], SentencePair | None]


class Rates(NamedTuple):
    """For each kind of augmentation, the share of pairs of which a copy is added; see TrainingConfig."""

    join_sentences: float = 0.0
    uppercase: float = 0.0
    lowercase: float = 0.0
    drop_final_punctuation: float = 0.0
    copy_numbers: float = 0.0
    copy_names: float = 0.0


class AugmentedCorpora(ParallelCorpora):
    """Parallel corpora with the copies that augmentation adds; the same in each iteration."""

    def __init__(self, specs: Sequence[str], rates: Rates, seed: int, **options: Any) -> None:
        """Parse corpus specs; see `ParallelCorpora` for other options and errors."""
        super().__init__(specs, **options)
        self.rates, self.seed = rates, seed

    def __iter__(self) -> Iterator[SentencePair]:
        return augment(super().__iter__(), self.rates, self.seed)


def augment(pairs: Iterable[SentencePair], rates: Rates, seed: int) -> Iterator[SentencePair]:
    """Yield each pair, followed by the copies that are made from it; the same for the same pairs and seed."""
    generator = random.Random(seed)
    pools: dict[tuple[str | None, str | None], deque[SentencePair]] = {}
    for pair in pairs:
        yield pair
        pool = pools.setdefault(pair[2:], deque(maxlen=POOL_SIZE))
        variants = [pair]
        for name, rule in RULES.items():
            if generator.random() < rates._asdict()[name] and (variant := rule(pair, generator)) is not None:
                variants.append(variant)
        if generator.random() < rates.join_sentences and pool:
            variants.append(join_sentences(pair, pool, generator))
        pool.append(pair)
        for variant in list(variants):
            if generator.random() < rates.drop_final_punctuation:
                if (shorter := drop_final_punctuation(variant, generator)) is not None:
                    variants.append(shorter)
        yield from variants[1:]


def join_sentences(pair: SentencePair, others: deque[SentencePair], generator: random.Random) -> SentencePair:
    """Return a pair with one to three others after it, on one line."""
    count = generator.randint(1, min(MAX_JOINED - 1, len(others)))
    joined = [pair, *generator.sample(others, count)]
    return pair._replace(
        source=" ".join(part.source.strip() for part in joined), target=" ".join(part.target.strip() for part in joined)
    )


def uppercase(pair: SentencePair, generator: random.Random) -> SentencePair | None:
    """Return a pair in capitals; None if it is in capitals already."""
    upper = pair._replace(source=pair.source.upper(), target=pair.target.upper())
    return upper if upper.source != pair.source else None


def lowercase(pair: SentencePair, generator: random.Random) -> SentencePair | None:
    """Return a pair with a source in lower case and the same target, as people type and wish to read it."""
    lower = pair._replace(source=pair.source.lower())
    return lower if lower.source != pair.source else None


def drop_final_punctuation(pair: SentencePair, generator: random.Random) -> SentencePair | None:
    """Return a pair without the final punctuation of both sides; None if one has none."""
    source, target = (FINAL_PUNCTUATION.sub("", text) for text in (pair.source, pair.target))
    if not source or not target or source == pair.source or target == pair.target:
        return None
    return pair._replace(source=source, target=target)


def copy_numbers(pair: SentencePair, generator: random.Random) -> SentencePair | None:
    """Return a pair with other digits in the numbers of both sides; None if the sides have other numbers.

    Runs of digits are replaced by runs of the same length, so that separators and decimals stay as each language
    writes them. 0 and 1 stay, because of singular and plural, and so do times within a day.
    """
    runs = [DIGITS.findall(text) for text in (pair.source, pair.target)]
    if not runs[0] or sorted(runs[0]) != sorted(runs[1]):
        return None
    if any(DIGITS_IN_WORDS.search(text) for text in (pair.source, pair.target)):
        return None
    is_time = any(TIME.search(text) for text in (pair.source, pair.target))
    new = {run: _other_digits(run, is_time, generator) for run in dict.fromkeys(runs[0])}
    source, target = (DIGITS.sub(lambda match: new[match[0]], text) for text in (pair.source, pair.target))
    return pair._replace(source=source, target=target) if source != pair.source else None


def _other_digits(run: str, is_time: bool, generator: random.Random) -> str:
    """Return another run of digits of the same length; 0, 1 and the like stay."""
    if int(run) < 2:
        return run
    low, high = (0, 10 ** (len(run) - 1)) if run[0] == "0" else (10 ** (len(run) - 1), 10 ** len(run))
    if is_time and len(run) == 2 and run[0] != "0":
        low, high = (low, 24) if int(run) < 24 else (24, 60)
    while (number := generator.randrange(max(low, 2), high)) == int(run):
        pass
    return f"{number:0{len(run)}}"


def copy_names(pair: SentencePair, generator: random.Random) -> SentencePair | None:
    """Return a pair with made-up surnames after the names of both sides, or with other addresses; None without these.

    A name is a capitalised word on both sides, at the beginning of at most one of them. A surname behind it leaves
    grammar as it is: gender, and the elision before it.
    """
    addresses = [ADDRESS.findall(text) for text in (pair.source, pair.target)]
    if addresses[0] and sorted(addresses[0]) == sorted(addresses[1]):
        new = {address: _other_address(address, generator) for address in dict.fromkeys(addresses[0])}
        source, target = (ADDRESS.sub(lambda match: new[match[0]], text) for text in (pair.source, pair.target))
        return pair._replace(source=source, target=target)
    names = [_names(text) for text in (pair.source, pair.target)]
    if not (common := [name for name in names[0] if name in names[1] and (names[0][name] or names[1][name])]):
        return None
    name, surname = generator.choice(common), _made_up_name(generator)
    source, target = (
        re.sub(rf"(?<![\w-]){re.escape(name)}(?![\w-])", f"{name} {surname}", text, count=1)
        for text in (pair.source, pair.target)
    )
    return pair._replace(source=source, target=target)


def _names(text: str) -> dict[str, bool]:
    """Return the capitalised words of a text that occur once, and whether they stand after its beginning."""
    words = [match for match in NAME.finditer(text) if not match[0].isupper()]
    counts = [match[0] for match in words]
    return {match[0]: match.start() > 0 for match in words if counts.count(match[0]) == 1}


def _made_up_name(generator: random.Random) -> str:
    syllables = "".join(generator.choices(SYLLABLES, k=generator.randint(1, 3)))
    return (syllables + generator.choice(ENDINGS)).capitalize()


def _other_address(address: str, generator: random.Random) -> str:
    """Return a made-up address of the same kind: e-mail, web or a handle."""
    first, second = (_made_up_name(generator).lower() for _ in range(2))
    if address.startswith("@"):
        return f"@{first}{second}"
    domain = f"{second}.{generator.choice(DOMAINS)}"
    if "@" in address:
        return f"{first}@{domain}"
    scheme = re.match(r"https?://(?:www\.)?|www\.", address)
    return f"{scheme[0] if scheme else ''}{domain}" + (f"/{first}" if "/" in address.split("://")[-1] else "")


RULES: dict[str, Rule] = {
    "uppercase": uppercase,
    "lowercase": lowercase,
    "copy_numbers": copy_numbers,
    "copy_names": copy_names,
}
