"""The dates task: every text stands for its target date only, and the splits are disjoint."""

import random
import re
from collections import Counter
from datetime import date

import pytest

from mlx_transformer.data.dates import (
    LETTER_CASES,
    MONTHS,
    TEMPLATES,
    WEEKDAYS,
    cardinal_words,
    date_pairs,
    ordinal_words,
    split_of,
    spoken_year,
)

DAYS = {
    form: day
    for day in range(1, 32)
    for form in (ordinal_words(day), f"{day}", f"{day}st", f"{day}nd", f"{day}rd", f"{day}th")
}
YEARS = {f"{year}": year for year in range(1900, 2100)}
for year in range(1900, 2100):
    YEARS |= {spoken_year(year, random.Random(seed)): year for seed in range(20)}
# Longer alternatives first, so that a year is not cut off after its first words.
YEAR_PATTERN = re.compile(rf"(?<!\w)(?:{'|'.join(sorted(YEARS, key=len, reverse=True))})(?!\w|-[a-z])")


def parse_date(text: str) -> tuple[str, str | None]:
    """Parse a date independently of its template: remove weekday, month and year; the day remains."""
    text = text.lower()
    weekday = next(
        (name for name in WEEKDAYS if re.search(rf"\b{name[:3].lower()}({name[3:].lower()})?\b", text)), None
    )
    for name in WEEKDAYS:
        text = re.sub(rf"\b{name[:3].lower()}({name[3:].lower()})?\b", " ", text)
    if figures := re.fullmatch(r"(\d{4})[/.](\d+)[/.](\d+)", text):
        return "{:04}-{:02}-{:02}".format(*map(int, figures.groups())), weekday
    month = next(i for i, name in enumerate(MONTHS, 1) if re.search(rf"\b{name[:3].lower()}", text))
    text = re.sub(rf"\b{MONTHS[month - 1][:3].lower()}[a-z]*", " ", text)
    year = max(YEAR_PATTERN.findall(text), key=len)
    text = re.sub(rf"(?<!\w){year}(?!\w|-[a-z])", " ", text, count=1)
    days = [word for word in re.findall(r"[\w]+(?:-[\w]+)*", text) if word.lstrip("0") in DAYS]
    assert len(days) == 1, text
    return f"{YEARS[year]}-{month:02}-{DAYS[days[0].lstrip('0')]:02}", weekday


def test_every_text_parses_to_its_target():
    for text, target in date_pairs(size=1500, seed=3):
        date_text, weekday = parse_date(text)
        assert date_text == target, text
        assert weekday in (None, WEEKDAYS[date.fromisoformat(target).weekday()]), text


def test_no_text_has_two_targets():
    targets: dict[str, set[str]] = {}
    for seed in range(3):
        for text, target in date_pairs(seed=seed):
            targets.setdefault(text.lower(), set()).add(target)
    assert all(len(dates) == 1 for dates in targets.values())


def test_splits_are_disjoint_for_all_seeds():
    dates = [
        {target for _, target in date_pairs(split, seed=seed)} for seed, split in enumerate(("train", "valid", "test"))
    ]
    assert not dates[0] & dates[1] and not dates[0] & dates[2] and not dates[1] & dates[2]
    assert [len(split) for split in dates] == [20000, 1000, 1000]


def test_valid_dates_hash_to_the_valid_split():
    assert all(split_of(date.fromisoformat(target)) == "valid" for _, target in date_pairs("valid"))


def test_seed_determines_the_pairs():
    assert date_pairs("valid", seed=1) == date_pairs("valid", seed=1)
    assert date_pairs("valid", seed=1) != date_pairs("valid", seed=2)


def test_texts_are_varied_and_short():
    pairs = date_pairs()
    shapes = Counter(re.sub(r"\d+", "0", text) for text, _ in pairs)
    assert len(TEMPLATES) >= 25 and len(set(TEMPLATES)) == len(TEMPLATES)
    assert len(shapes) > 25 * len({*LETTER_CASES})
    assert max(len(text.split()) for text, _ in pairs) <= 9
    years = {target[:4] for _, target in pairs}
    assert {"1900", "1905", "2000", "2005", "2099"} <= years


@pytest.mark.parametrize(
    ("number", "words"), [(1, "first"), (12, "twelfth"), (20, "twentieth"), (23, "twenty-third"), (30, "thirtieth")]
)
def test_ordinals_in_words(number, words):
    assert ordinal_words(number) == words


def test_numbers_and_years_in_words():
    assert (cardinal_words(9), cardinal_words(40), cardinal_words(87)) == ("nine", "forty", "eighty-seven")
    rng = random.Random(0)
    assert {spoken_year(year, rng) for year in (1900, 1905, 1987, 2000, 2005)} == {
        "nineteen hundred",
        "nineteen oh five",
        "nineteen eighty-seven",
        "two thousand",
        "two thousand and five",
    }
    assert {spoken_year(2015, rng) for _ in range(50)} == {"twenty fifteen", "two thousand and fifteen"}


def test_ordinals_in_figures_have_their_suffixes():
    days = {
        re.search(r"(\d+)(st|nd|rd|th)", text)[0].lower()
        for text, _ in date_pairs()
        if re.search(r"\d(st|nd|rd|th)", text)
    }
    assert {"1st", "2nd", "3rd", "4th", "11th", "12th", "13th", "21st", "22nd", "23rd", "30th", "31st"} <= days
    assert len(days) == 31


def test_invalid_split_and_size_raise():
    with pytest.raises(ValueError, match="split must be one of train, valid, test, not 'dev'"):
        date_pairs("dev")
    for size in (0, 10**6):
        with pytest.raises(ValueError, match=f"size must be from 1 to [0-9]+ for the valid split of dates, not {size}"):
            date_pairs("valid", size=size)
