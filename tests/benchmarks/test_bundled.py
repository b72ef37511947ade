"""The corpus, the start and the evaluation of the bundled model."""

import random
import re

import mlx.core as mx
import pytest

import mlx_transformer as mt
from benchmarks import bundled, bundled_corpus, bundled_start
from benchmarks.bundled_templates import FIXED, MONTHS, clock, template_pairs
from mlx_transformer.model.fused_projections import split_projections

PAIRS = list(template_pairs(6000, seed=1))


def test_templates_depend_on_the_seed_only():
    assert PAIRS == list(template_pairs(6000, seed=1)) != list(template_pairs(6000, seed=2))
    assert len(set(PAIRS)) > 3500


def test_templates_are_clean_text():
    for source, target in PAIRS:
        for text in (source, target):
            assert text == text.strip() and "  " not in text and not re.search(r"[{}\t\n]|\.\.$", text), text
        assert (source[-1] in ".!?") == (target[-1] in ".!?") and (source[-1] == "?") == (target[-1] == "?")
        assert not re.search(r"\bà le\b|\bde le\b|\bde (?=[aeiouhAEIOU])|\bd'(?=[bcdfgjklmnpqrstv])", target), target
        assert not re.search(r"\ba (?=[aeiou])", source), source


def test_numbers_of_templates_are_those_of_both_languages():
    """Digits agree, except of hours on a clock of twelve and of numbers in words."""
    for source, target in PAIRS:
        if (source, target) in FIXED or re.search(r"[ap]\.m\.|:00", source):
            continue
        numbers = [sorted(re.findall(r"\d+", text)) for text in (source, target)]
        assert numbers[0] == numbers[1], (source, target)
    for source, target in PAIRS:
        months = re.findall(rf"\b(?:{'|'.join(MONTHS)})\b", source)
        assert all(MONTHS[month] in target for month in months), (source, target)


@pytest.mark.parametrize("hour, expected", [(0, "12 a.m."), (12, "12 p.m."), (13, "1 p.m."), (23, "11 p.m.")])
def test_hours_on_a_clock_of_twelve(hour, expected):
    class Choices:
        def randrange(self, *_):
            return hour

        def choice(self, values):
            return values[0]

        def random(self):
            return 0.9

    assert clock(Choices()) == (expected, f"{hour} h")


def test_a_weight_repeats_and_samples():
    pairs = [(str(number), "") for number in range(100)]
    weighted = bundled_corpus.weighted(pairs, 2.25, random.Random(0))
    assert len(weighted) == 225 and all(weighted.count(pair) in (2, 3) for pair in pairs)


@pytest.fixture
def small(tmp_path):
    texts = ["a small house .", "a big dog .", "two dogs in a house ."] * 4
    tokenizer = mt.Tokenizer.train(texts, texts, 290)
    stack = mt.StackConfig(num_layers=1, num_heads=2, mlp_dims=12, norm_first=True, final_norm=True, max_length=40)
    size = tokenizer.source_vocab_size
    mx.random.seed(3)
    model = mt.Transformer(mt.ModelConfig(size, size, dims=16, encoder=stack, decoder=stack))
    mt.save(tmp_path / "small", model, tokenizer)
    return tmp_path / "small"


def test_the_enlarged_model_computes_the_same(small, tmp_path):
    """Added layers and units change nothing, and pieces that both vocabularies have keep their embedding."""
    (tmp_path / "corpus.tsv").write_text("A small house.\tA small house.\nTwo big dogs!\tTwo big dogs!\n" * 20)
    arguments = [str(tmp_path / "corpus.tsv"), str(tmp_path / "new"), "--model", str(small)]
    options = ["--vocab-size", "300", "--encoder-layers", "2", "--mlp-dims", "20"]
    bundled_start.main.main([*arguments, *options], standalone_mode=False)
    (old, old_tokenizer), (new, tokenizer) = (mt.load(folder) for folder in (small, tmp_path / "new"))
    assert (new.config.encoder.num_layers, new.config.decoder.num_layers) == (2, 1)
    assert new.config.encoder.mlp_dims == new.config.decoder.mlp_dims == 20
    common = [
        (old_tokenizer.source.token_to_id(piece), index)
        for index in range(tokenizer.source.size)
        if old_tokenizer.source.token_to_id(piece := tokenizer.source.id_to_token(index)) is not None
    ]
    old_ids, new_ids = mx.array([common[:9]])[0].T
    before = old(old_ids[None], old_ids[None])[:, :, mx.array([pair[0] for pair in common])]
    after = new(new_ids[None], new_ids[None])[:, :, mx.array([pair[1] for pair in common])]
    assert mx.allclose(before, after, atol=1e-4)
    added = split_projections(new.parameters())["encoder.layers.1.self_attention.query_proj.weight"]
    assert mx.abs(added).max() > 0


def test_lines_of_three_sentences_have_joined_references():
    rows = [(f"s{number}", [f"t{number}", f"u{number}"][: 1 + number % 2]) for number in range(900)]
    sources, references = bundled.joined(rows)
    assert len(sources) == 300
    for source, group in zip(sources, references, strict=True):
        numbers = [int(word[1:]) for word in source.split()]
        assert group[0].split() == [f"t{number}" for number in numbers]
        assert len(group) == 1 + max(number % 2 for number in numbers)


def test_types_are_compared_with_float32(small, monkeypatch):
    """Texts and BLEU of the same sentences, in each type."""
    sources, references = ["a small house .", "a big dog ."], [["a small house ."], ["a big dog ."]]
    monkeypatch.setattr(bundled, "kinds_of_input", lambda data: {"all lengths": (sources * 3, references * 3)})
    outputs = {"float32": sources, "float16": [sources[0], "a big"]}
    monkeypatch.setattr(bundled, "translator", lambda folder, beam, dtype: lambda sources: outputs[dtype])
    table = bundled.compare_dtypes(small, str(small), "float16", (1,), 2)
    assert table.splitlines()[2].startswith("| 1 | 2 | 50.0% | 100.00 | ")


def test_copied_numbers_are_counted():
    outputs = list(bundled.NUMBERS)
    assert bundled.count_copied(outputs) == len(outputs)
    assert bundled.count_copied([outputs[0].replace("555", "556"), *outputs[1:]]) == len(outputs) - 1
