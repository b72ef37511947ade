"""Augmentation adds copies that are what they say, the same for the same seed, and nothing where it does not apply."""

import random
import re
import time
from collections import deque

import pytest

from mlx_transformer.data import augmentation
from mlx_transformer.data.augmentation import RULES, AugmentedCorpora, Rates, augment, join_sentences
from mlx_transformer.data.parallel_corpus import ParallelCorpora, SentencePair

ALL = Rates(*(0.5,) * 6)
TEXTS = [
    ("It costs 12.50 euros.", "Ça coûte 12,50 euros."),
    ("We sold 3,000 books in 14 days!", "Nous avons vendu 3 000 livres en 14 jours !"),
    ("I saw Tom yesterday.", "J'ai vu Tom hier."),
    ("Is the train late?", "Le train est-il en retard ?"),
    ("Write to me at a.b@example.com today.", "Écris-moi à a.b@example.com aujourd'hui."),
    ("Yes", "Oui"),
]
PAIRS = [SentencePair(source, target) for source, target in TEXTS * 20]


def apply(rule, source, target, seed=0):
    return RULES[rule](SentencePair(source, target), random.Random(seed))


def test_without_rates_nothing_is_added():
    assert list(augment(PAIRS, Rates(), seed=1)) == PAIRS


def test_every_pair_stays_and_the_seed_decides():
    one, other = (list(augment(PAIRS, ALL, seed)) for seed in (1, 2))
    assert one == list(augment(iter(PAIRS), ALL, 1)) != other
    rest = iter(one)
    assert all(pair in rest for pair in PAIRS)  # in their order
    assert 2 * len(PAIRS) < len(one) < 5 * len(PAIRS)


@pytest.mark.parametrize("name", Rates._fields)
def test_a_rate_is_the_share_of_pairs_with_a_copy(name):
    pairs = [SentencePair("On May 12 I saw Tom.", "Le 12 mai, j'ai vu Tom.")] * 2000
    added = len(list(augment(pairs, Rates(**{name: 0.3}), seed=3))) - len(pairs)
    assert 0.26 < added / len(pairs) < 0.34


def test_joined_lines_are_whole_pairs_in_the_same_order():
    generator, sources = random.Random(0), dict(TEXTS)
    for _ in range(100):
        joined = join_sentences(PAIRS[0], deque(PAIRS[1:6]), generator)
        parts = [source for source in sources if source in joined.source]
        parts.sort(key=joined.source.index)
        assert joined.source == " ".join(parts) and 2 <= len(parts) <= 4 and parts[0] == TEXTS[0][0]
        assert joined.target == " ".join(sources[part] for part in parts)


def test_only_pairs_of_the_same_languages_are_joined():
    codes = [("en", "fr"), ("en", "de"), ("de", "en")]
    pairs = [SentencePair(f"{a} {i}", f"{b} {i}", a, b) for i in range(60) for a, b in codes]
    joined = [pair for pair in augment(pairs, Rates(join_sentences=0.5), 1) if len(pair.source.split()) > 2]
    assert len(joined) > 50
    for pair in joined:
        assert set(re.findall("[a-z]+", pair.source)) == {pair.source_language}
        assert set(re.findall("[a-z]+", pair.target)) == {pair.target_language}


def test_case():
    assert apply("uppercase", "Is it late?", "Est-ce déjà l'été ?")[:2] == ("IS IT LATE?", "EST-CE DÉJÀ L'ÉTÉ ?")
    assert apply("lowercase", "I saw Tom.", "J'ai vu Tom.")[:2] == ("i saw tom.", "J'ai vu Tom.")
    assert apply("uppercase", "OK 12", "D'accord") is None and apply("lowercase", "ok", "D'accord") is None


@pytest.mark.parametrize(
    "source, target, expected",
    [
        ("Are you there?", "Es-tu là ?", ("Are you there", "Es-tu là")),
        ("Hello!", "Bonjour\u202f!", ("Hello", "Bonjour")),
        ("Wait...", "Attends…", ("Wait", "Attends")),
        ("No end", "Pas de fin.", None),
        ("?", "?", None),
        ("Yes. ", "Oui ", None),
        ("他来了。", "Il est venu. ", ("他来了", "Il est venu")),
    ],
)
def test_final_punctuation(source, target, expected):
    shorter = augmentation.drop_final_punctuation(SentencePair(source, target), random.Random(0))
    assert (shorter and shorter[:2]) == expected


@pytest.mark.parametrize(
    "source, target",
    [
        *TEXTS[:2],
        ("The train leaves at 8:30.", "Le train part à 8 h 30."),
        ("Call 555-1234 or 555-9876.", "Appelle le 555-1234 ou le 555-9876."),
        ("1 dog and 25 cats.", "1 chien et 25 chats."),
    ],
)
def test_numbers_change_on_both_sides_and_nothing_else(source, target):
    for seed in range(50):
        new = apply("copy_numbers", source, target, seed)
        assert new.source != source
        for old, text in ((source, new.source), (target, new.target)):
            assert re.sub(r"\d", "0", old) == re.sub(r"\d", "0", text)  # the same format
        digits = [re.findall(r"\d+", text) for text in new[:2]]
        assert sorted(digits[0]) == sorted(digits[1])
        kept = [re.findall(r"(?<![\d.,:-])[01](?![\d.,:-])", text) for text in (source, new.source)]
        assert kept[0] == kept[1]  # singular and plural stay
        if ":" in source:
            hour, minute = map(int, digits[0])
            assert hour < 24 and minute < 60


@pytest.mark.parametrize(
    "source, target",
    [
        ("No number.", "Aucun nombre."),
        ("I have 2 dogs.", "J'ai deux chiens."),
        ("In 1,000 years.", "Dans 1000 ans."),
        ("In the 1990s.", "Dans les années 1990."),
        ("My 21st birthday.", "Mon 21e anniversaire."),
        ("A B2 form and 12 pens.", "Un formulaire B2 et 12 stylos."),
        ("1 dog.", "1 chien."),
        ("Add 3/4 cup.", "Ajoutez 3/4 de tasse."),
        ("٢٥ كتب", "٢٥ livres"),
    ],
)
def test_numbers_that_are_not_copied_stay(source, target):
    assert apply("copy_numbers", source, target) is None


def test_years_stay_years_and_times_times():
    for seed in range(100):
        year = apply("copy_numbers", "Born in 1995.", "Né en 1995.", seed).source[8:12]
        assert 1100 <= int(year) < 2100 and year != "1995"
        new = apply("copy_numbers", "Come at 14:45.", "Viens à 14h45.", seed)
        hour, minute = map(int, re.findall(r"\d+", new.source))
        assert new[:2] == (f"Come at {hour}:{minute}.", f"Viens à {hour}h{minute}.") and hour < 24 <= minute < 60


@pytest.mark.parametrize(
    "text", ["9" * 5000, "." * 50_000 + "x", "a." * 25_000, "a+" * 25_000, "Ab " * 20_000, "www." * 9999]
)
def test_long_lines_take_no_longer_than_others(text):
    start = time.perf_counter()
    for rule in (*RULES.values(), augmentation.drop_final_punctuation):
        rule(SentencePair(text, text), random.Random(0))
    assert time.perf_counter() - start < 1


def test_a_name_is_replaced_or_gets_a_surname():
    results = {apply("copy_names", "I saw Tom.", "J'ai vu Tom.", seed)[:2] for seed in range(40)}
    names = [re.fullmatch(r"I saw (Tom )?([A-Z][a-z]+)\.", source) for source, _ in results]
    assert 5 < sum(match[1] is None for match in names) < 35
    assert all(target == source.replace("I saw", "J'ai vu") for source, target in results)
    path = "See files/Tom/x, Tom."
    assert all("files/Tom/x, " in apply("copy_names", path, path, seed).source for seed in range(20))


def test_names_with_a_vowel_get_a_surname():
    for source, target, name in [
        ("I saw Ali yesterday.", "J'ai vu Ali hier.", "Ali"),
        ("Is that Helen's dog?", "Est-ce le chien d'Helen ?", "Helen"),
        ("It's Alice.", "C'est la tasse d'Alice.", "Alice"),
    ]:
        surnames = set()
        for seed in range(20):
            new = apply("copy_names", source, target, seed)
            (surname,) = re.findall(rf"{name} ([A-Z]\w+)", new.source)
            surnames.add(surname)
            assert new.source == source.replace(name, f"{name} {surname}")
            assert new.target == target.replace(name, f"{name} {surname}")
        assert len(surnames) > 15


@pytest.mark.parametrize("address", ["a.b@example.com", "www.site.org/page", "https://site.org/a/b", "@tom_b"], ids=str)
def test_addresses_become_others_of_their_kind(address):
    new = apply("copy_names", f"Look: {address} is it.", f"Voilà, {address} est là.")
    (made,) = re.findall(r"Look: (\S+) is it\.", new.source)
    assert new.target == f"Voilà, {made} est là." and made != address
    kind = augmentation.ADDRESS
    assert kind.fullmatch(made) and ("@" in made) == ("@" in address) and ("/" in made) == ("/" in address)


@pytest.mark.parametrize(
    "source, target",
    [
        ("Possible.", "Possible."),
        ("I love London.", "J'adore Londres."),
        ("NATO met.", "L'OTAN s'est réunie."),
        ("Tom likes Tom.", "Tom aime Tom."),
        ("no names here", "aucun nom ici"),
    ],
)
def test_what_is_no_name_of_both_sides_stays(source, target):
    assert apply("copy_names", source, target) is None


def test_corpora_are_augmented_in_the_same_way_each_time(tmp_path):
    (tmp_path / "a.tsv").write_text("".join(f"{source}\t{target}\n" for source, target in TEXTS))
    specs = [str(tmp_path / "a.tsv")] * 5
    corpora = AugmentedCorpora(specs, ALL, seed=4)
    once = list(corpora)
    assert once == list(corpora) and len(once) > 40
    assert list(AugmentedCorpora(specs, Rates(), seed=4)) == list(ParallelCorpora(specs))
    assert len(corpora.sample(10)) == 10
