"""Augmentation of parallel text: further pairs made from those of a corpus, which teach what it lacks.

Every function takes a pair and a random generator and returns a new pair, or None where it does not apply.
"""

import random
import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from mlx_transformer.config.training import Corpora
from mlx_transformer.data.parallel_corpus import ParallelCorpora, SentencePair

MAX_JOINED = 4  # sentences on one line
POOL_SIZE = 1000  # earlier pairs that may be joined
SURNAME_SHARE = 0.5  # of names that could be replaced
FINAL_PUNCTUATION = ".!?…。！？؟।"
DIGITS = re.compile("[0-9]+")
# Digits of ordinals, decades, fractions and names of things, in which other digits would be wrong: 1st, 2e, 1990s, B2.
DIGITS_IN_WORDS = re.compile(r"[^\W\d_](?<!\dh)\d|\d(?!h(?:\b|\d))[^\W\d_]|\d/\d")
TIME = re.compile(r"\d\s?[:h]\s?\d")
# The lookbehinds keep a search linear in the length of the text.
NAME = re.compile(r"(?<![\w@./-])[^\W\d_]\w+(?![\w@/-]|\.\w)")
ADDRESS = re.compile(r"(?<![\w@/.+-])(?:[\w.+-]+@[\w-]+(?:\.[\w-]+)+|(?:https?://|www\.)[\w./-]*\w|@\w+)")
CONSONANTS = "BCDFGJKLMNPQRSTVWXZ"  # before which no word is elided; made-up names begin with one
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

    def __init__(self, corpora: Corpora, rates: Rates, seed: int, **options: Any) -> None:
        """Parse corpus specs; see `ParallelCorpora` for other options and errors."""
        super().__init__(corpora, **options)
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
    source, target = pair.source.rstrip(), pair.target.rstrip()
    if not (source.endswith(tuple(FINAL_PUNCTUATION)) and target.endswith(tuple(FINAL_PUNCTUATION))):
        return None
    source, target = (text.rstrip(FINAL_PUNCTUATION).rstrip() for text in (source, target))
    return pair._replace(source=source, target=target) if source and target else None


def copy_numbers(pair: SentencePair, generator: random.Random) -> SentencePair | None:
    """Return a pair with other digits in the numbers of both sides; None if the sides have other numbers.

    Runs of digits are replaced by runs of the same length, so that separators and decimals stay as each language
    writes them. 0 and 1 stay, because of singular and plural; years become years, and times other times of the day.
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
    """Return another run of digits of the same length and kind; 0 and 1 stay."""
    if _is_zero_or_one(run):
        return run
    kind, digits = _number_kind(run, is_time), run
    while digits == run or _is_zero_or_one(digits) or _number_kind(digits, is_time) != kind:
        digits = "".join(generator.choices("0123456789", k=len(run)))
    return digits


def _is_zero_or_one(digits: str) -> bool:
    return digits.lstrip("0") in ("", "1")


def _number_kind(digits: str, is_time: bool) -> tuple[bool, bool, int]:
    """Return whether digits begin with 0, whether they may be a year, and if they may be hours or only minutes."""
    is_year = len(digits) == 4 and "1100" <= digits < "2100"
    time_part = (digits >= "24") + (digits >= "60") if is_time and len(digits) == 2 else 0
    return digits[0] == "0", is_year, time_part


def copy_names(pair: SentencePair, generator: random.Random) -> SentencePair | None:
    """Return a pair with a made-up name or other addresses on both sides; None without a name or address on both.

    A name is a capitalised word that each side has once, at the beginning of at most one of them. The made-up name
    replaces it, or follows it as a surname where it may not: the word before `Alice` may be elided (`d'Alice`).
    """
    addresses = [ADDRESS.findall(text) for text in (pair.source, pair.target)]
    if addresses[0] and sorted(addresses[0]) == sorted(addresses[1]):
        new = {address: _other_address(address, generator) for address in dict.fromkeys(addresses[0])}
        source, target = (ADDRESS.sub(lambda match: new[match[0]], text) for text in (pair.source, pair.target))
        return pair._replace(source=source, target=target)
    sources, targets = _names(pair.source), _names(pair.target)
    common = [name for name in sources if name in targets and sources[name].start() + targets[name].start()]
    if not common:
        return None
    name, made_up = generator.choice(common), _made_up_name(generator)
    if name[0] not in CONSONANTS or generator.random() < SURNAME_SHARE:
        made_up = f"{name} {made_up}"
    source, target = (
        text[: match.start()] + made_up + text[match.end() :]
        for text, match in ((pair.source, sources[name]), (pair.target, targets[name]))
    )
    return pair._replace(source=source, target=target)


def _names(text: str) -> dict[str, re.Match[str]]:
    """Return the capitalised words that a text has once."""
    matches = [match for match in NAME.finditer(text) if match[0][0].isupper() and not match[0].isupper()]
    counts = Counter(match[0] for match in matches)
    return {match[0]: match for match in matches if counts[match[0]] == 1}


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
