"""The built-in task `dates`: generated pairs of a date written out in English and its ISO 8601 form."""

import random
import zlib
from collections.abc import Callable
from datetime import date, timedelta

FIRST_YEAR, LAST_YEAR = 1900, 2099
SIZES = {"train": 20000, "valid": 1000, "test": 1000}

MONTHS = "January February March April May June July August September October November December".split()
WEEKDAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
UNITS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
TENS = "zero ten twenty thirty forty fifty sixty seventy eighty ninety".split()
IRREGULAR_ORDINALS = {
    "one": "first",
    "two": "second",
    "three": "third",
    "five": "fifth",
    "eight": "eighth",
    "nine": "ninth",
    "twelve": "twelfth",
    "twenty": "twentieth",
    "thirty": "thirtieth",
}

# Every template gives the year in full and an unambiguous month, so each text stands for one date.
TEMPLATES = (
    "{day} {month} {year}",
    "{day} {mon} {year}",
    "{day} {month}, {year}",
    "{day}-{mon}-{year}",
    "{day:02} {mon}. {year}",
    "{nth} {month} {year}",
    "{nth} of {month} {year}",
    "{nth} of {month}, {year}",
    "the {nth} of {month}, {year}",
    "{nth} {mon} {year}",
    "{month} {day}, {year}",
    "{month} {day} {year}",
    "{month} {nth}, {year}",
    "{month} the {nth}, {year}",
    "{mon} {day}, {year}",
    "{mon}. {day}, {year}",
    "{mon}-{day:02}-{year}",
    "{year} {month} {day}",
    "{year}, {month} {nth}",
    "{year}-{mon}-{day:02}",
    "{year}/{number:02}/{day:02}",
    "{year}.{number}.{day}",
    "{weekday}, {day} {month} {year}",
    "{weekday}, {month} {nth}, {year}",
    "{weekday} the {nth} of {month} {year}",
    "{wkd} {day} {mon} {year}",
    "{wkd}, {mon} {day}, {year}",
    "the {ordinal} of {month}, {year}",
    "the {ordinal} of {month} {spoken}",
    "{month} the {ordinal}, {spoken}",
    "{month} {nth}, {spoken}",
    "{day} {month} {spoken}",
    "{ordinal} {month} {year}",
    "{weekday}, the {ordinal} of {month} {spoken}",
    "in {year}, on the {nth} of {month}",
    "on {month} {day} in {year}",
)
LETTER_CASES: tuple[Callable[[str], str], ...] = (str, str, str, str.lower, str.upper)


def date_pairs(split: str = "train", *, size: int | None = None, seed: int = 0) -> list[tuple[str, str]]:
    """Return pairs of a date in a random format and its ISO form; the splits are disjoint, and no date occurs twice.

    Args:
        split: "train", "valid" or "test"; a hash of the date assigns it to a split, independent of the seed.
        size: Number of pairs; by default 20000 for train, 1000 for valid and test.
        seed: Seed for the choice of dates and formats.

    Raises:
        ValueError: If the split does not exist or has fewer dates than `size`.
    """
    if split not in SIZES:
        raise ValueError(f"split must be one of {', '.join(SIZES)}, not {split!r}.")
    size = SIZES[split] if size is None else size
    start, end = date(FIRST_YEAR, 1, 1), date(LAST_YEAR, 12, 31)
    days = (start + timedelta(i) for i in range((end - start).days + 1))
    split_days = [day for day in days if split_of(day) == split]
    if not 1 <= size <= len(split_days):
        raise ValueError(f"size must be from 1 to {len(split_days)} for the {split} split of dates, not {size}.")
    rng = random.Random(f"{split} {seed}")
    return [(format_date(day, rng), day.isoformat()) for day in rng.sample(split_days, size)]


def split_of(day: date) -> str:
    """Return the split of a date: valid for one date in twenty, test for one in twenty, otherwise train."""
    return {0: "valid", 1: "test"}.get(zlib.crc32(day.isoformat().encode()) % 20, "train")


def format_date(day: date, rng: random.Random) -> str:
    """Write a date in a random format, such as "Tuesday, the third of March nineteen eighty-seven" or "3-Mar-1987"."""
    month, weekday = MONTHS[day.month - 1], WEEKDAYS[day.weekday()]
    text = rng.choice(TEMPLATES).format(
        day=day.day,
        nth=f"{day.day}{ordinal_suffix(day.day)}",
        ordinal=ordinal_words(day.day),
        number=day.month,
        month=month,
        mon=month[:3],
        year=day.year,
        spoken=spoken_year(day.year, rng),
        weekday=weekday,
        wkd=weekday[:3],
    )
    return rng.choice(LETTER_CASES)(text)


def cardinal_words(number: int) -> str:
    """Return a number from 1 to 99 in words: 87 is "eighty-seven"."""
    if number < 20:
        return UNITS[number]
    tens, unit = divmod(number, 10)
    return f"{TENS[tens]}-{UNITS[unit]}" if unit else TENS[tens]


def ordinal_words(number: int) -> str:
    """Return an ordinal from 1 to 39 in words: 23 is "twenty-third"."""
    tens, hyphen, unit = cardinal_words(number).rpartition("-")
    return tens + hyphen + IRREGULAR_ORDINALS.get(unit, f"{unit}th")


def ordinal_suffix(number: int) -> str:
    """Return the suffix of an ordinal in figures: 1st, 2nd, 3rd, 11th."""
    return "th" if 10 < number % 100 < 14 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")


def spoken_year(year: int, rng: random.Random) -> str:
    """Return a year as spoken: "nineteen oh five", "two thousand and five", "twenty fifteen"."""
    century, rest = divmod(year, 100)
    if century == 20 and (rest < 10 or rng.random() < 0.3):
        return f"two thousand and {cardinal_words(rest)}" if rest else "two thousand"
    if not rest:
        return f"{cardinal_words(century)} hundred"
    return f"{cardinal_words(century)} {'oh ' if rest < 10 else ''}{cardinal_words(rest)}"
