"""Attention weights of texts: those of their token ids, with the tokens."""

import mlx.core as mx
import pytest

import mlx_transformer as mt

TEXT, TARGET = "I am very tired today.", "Je suis fatigué."


@pytest.fixture(scope="module")
def bundled():
    return mt.load()


def test_weights_and_tokens_of_two_texts(bundled):
    model, tokenizer = bundled
    source, target = tokenizer.encode(TEXT), [tokenizer.start_id, *tokenizer.encode_target(TARGET)]
    attention = mt.attention(model, tokenizer, TEXT, TARGET)
    assert attention.source_tokens == tokenizer.tokens(source) and attention.target_tokens == tokenizer.tokens(target)
    expected = mt.attention_ids(model, mx.array([source]), mx.array([target[:-1]]))
    for kind, layers in expected._asdict().items():
        ours = attention._asdict()[kind]
        assert len(ours) == len(layers) and all(map(mx.array_equal, ours, (layer[0] for layer in layers)))


def test_without_a_target_the_model_generates_one(bundled):
    model, tokenizer = bundled
    (best, *_) = next(mt.generate_hypotheses(model, tokenizer, TEXT))
    assert mt.attention(model, tokenizer, TEXT).target_tokens == tokenizer.tokens([2, *best.ids, best.end_id])
    assert len(mt.attention(model, tokenizer, TEXT, max_tokens=2).target_tokens) == 3
    assert mt.attention(model, tokenizer, TEXT, source_prefix="Now ").source_tokens == tokenizer.tokens(
        tokenizer.encode("Now " + TEXT)
    )


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (("",), {}, ValueError, "source must be a text that is not blank, not ''"),
        ((["I sleep."],), {}, ValueError, r"source must be a text that is not blank, not \['I sleep.'\]"),
        (("I sleep.", ["Je dors."]), {}, ValueError, "^Pair 1: The target must be a string"),
        (("I sleep.",), {"target_language": "xx"}, ValueError, "xx"),
        (("I sleep.",), {"beamsize": 2}, TypeError, r"^attention\(\) .* Similar ones are beam_size"),
    ],
)
def test_bad_arguments_are_refused(bundled, arguments, options, error, message):
    with pytest.raises(error, match=message):
        mt.attention(*bundled, *arguments, **options)


def test_a_truncated_source_is_a_warning(bundled, caplog):
    model, tokenizer = bundled
    attention = mt.attention(model, tokenizer, "word " * 200, TARGET)
    assert len(attention.source_tokens) == model.config.encoder.max_length
    assert [record.getMessage() for record in caplog.records] == [
        "The source or the target is longer than the model can read and was cut."
    ]
    mt.plot_attention(model, tokenizer, "word " * 200, TARGET)
    assert len(caplog.records) == 2
