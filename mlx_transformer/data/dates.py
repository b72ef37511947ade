"""The built-in task `dates`: dates as people write them in English, to ISO 8601; made from a seed, no download."""

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
IRREGULAR = {
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

# Every form says the year in full and which number is the month, so each has one reading.
FORMS = (
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
CASES: tuple[Callable[[str], str], ...] = (str, str, str, str.lower, str.upper)


def date_pairs(split: str = "train", *, size: int | None = None, seed: int = 0) -> list[tuple[str, str]]:
    """Write dates of one split in random forms, each with its ISO form; no date is in two splits, nor twice in one.

    Args:
        split: "train", "valid" or "test"; a fixed hash of the date decides, whatever the seed.
        size: Number of pairs; by default 20000, 1000 and 1000.
        seed: Chooses the dates and their forms.

    Raises:
        ValueError: If there is no such split, or it has fewer dates than `size`.
    """
    if split not in SIZES:
        raise ValueError(f"A split of dates must be one of {', '.join(SIZES)}: got {split!r}.")
    size = SIZES[split] if size is None else size
    start, end = date(FIRST_YEAR, 1, 1), date(LAST_YEAR, 12, 31)
    days = (start + timedelta(i) for i in range((end - start).days + 1))
    members = [day for day in days if split_of(day) == split]
    if not 1 <= size <= len(members):
        raise ValueError(f"The {split} split of dates gives 1 to {len(members)} pairs: got size {size}.")
    rng = random.Random(f"{split} {seed}")
    return [(format_date(day, rng), day.isoformat()) for day in rng.sample(members, size)]


def split_of(day: date) -> str:
    """Give the split of a date: one in twenty is for validation, one in twenty for the test."""
    return {0: "valid", 1: "test"}.get(zlib.crc32(day.isoformat().encode()) % 20, "train")


def format_date(day: date, rng: random.Random) -> str:
    """Write a date in a random form: "Tuesday, the third of March nineteen eighty-seven", "3-Mar-1987"."""
    month, weekday = MONTHS[day.month - 1], WEEKDAYS[day.weekday()]
    text = rng.choice(FORMS).format(
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
    return rng.choice(CASES)(text)


def cardinal_words(number: int) -> str:
    """Spell 1 to 99: 87 is "eighty-seven"."""
    if number < 20:
        return UNITS[number]
    tens, unit = divmod(number, 10)
    return f"{TENS[tens]}-{UNITS[unit]}" if unit else TENS[tens]


def ordinal_words(number: int) -> str:
    """Spell the place 1 to 39: 23 is "twenty-third"."""
    head, hyphen, last = cardinal_words(number).rpartition("-")
    return head + hyphen + IRREGULAR.get(last, f"{last}th")


def ordinal_suffix(number: int) -> str:
    """Give the ending of the place in figures: 1st, 2nd, 3rd, 11th."""
    return "th" if 10 < number % 100 < 14 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")


def spoken_year(year: int, rng: random.Random) -> str:
    """Say a year as read aloud: "nineteen oh five", "two thousand and five", "twenty fifteen"."""
    century, rest = divmod(year, 100)
    if century == 20 and (rest < 10 or rng.random() < 0.3):
        return f"two thousand and {cardinal_words(rest)}" if rest else "two thousand"
    if not rest:
        return f"{cardinal_words(century)} hundred"
    return f"{cardinal_words(century)} {'oh ' if rest < 10 else ''}{cardinal_words(rest)}"
