"""Generation settings of transformers are translated into SearchConfig and tasks."""

import re
from dataclasses import replace

import pytest
from click.testing import CliRunner
from support import configs
from support.bart_files import BART_CONFIG, bart_tensors, write_checkpoint

import mlx_transformer as mt
from mlx_transformer import cli
from mlx_transformer.config.search import SearchConfig
from mlx_transformer.weights import convert
from mlx_transformer.weights.generation_config import search_config, unsupported_settings

MODEL = replace(configs.MODEL, pad_id=1, eos_id=0, decoder=replace(configs.STACK, max_length=300))


@pytest.mark.parametrize(
    "generation, expected",
    [
        ({}, {}),
        ({"num_beams": 5, "max_length": 200}, {"beam_size": 5, "max_tokens": 199}),
        ({"max_length": 200, "max_new_tokens": 7}, {"max_tokens": 7}),
        ({"min_length": 4}, {"min_tokens": 4}),
        ({"min_length": 4, "min_new_tokens": 6}, {"min_tokens": 7}),
        ({"bad_words_ids": [[3], [4, 5], [0]]}, {"suppress_ids": (3,), "bad_words": ((4, 5),)}),
        (
            {"bad_words_ids": [[3], [2]], "forced_bos_token_id": 3, "suppress_tokens": [9]},
            {"suppress_ids": (2, 9), "bad_words": ((3,),), "forced_bos_id": 3},
        ),
        ({"forced_eos_token_id": [7], "renormalize_logits": True}, {"forced_eos_id": 7, "renormalize": True}),
        ({"suppress_tokens": [-1, 5, 400]}, {"suppress_ids": (5,)}),  # transformers ignores ids outside the vocabulary
        ({"early_stopping": "never", "length_penalty": 2.0}, {"early_stopping": "never", "length_penalty": 2.0}),
        ({"num_beams": 4, "num_return_sequences": 3}, {"beam_size": 4, "num_hypotheses": 3}),
        ({"num_return_sequences": 3}, {}),
        ({"encoder_no_repeat_ngram_size": 3}, {"source_no_repeat_ngram_size": 3}),
        (
            {"no_repeat_ngram_size": 3, "repetition_penalty": 1.2},
            {"no_repeat_ngram_size": 3, "repetition_penalty": 1.2},
        ),
        ({"forced_bos_token_id": None, "num_beams": None}, {}),
    ],
    ids=str,
)
def test_generation_settings_become_a_search_config(generation, expected):
    assert search_config(generation, MODEL) == SearchConfig(**expected)


def test_generation_config_takes_precedence_and_unsupported_settings_are_warned_about(tmp_path, caplog):
    generation = {"num_beams": 3, "decoder_start_token_id": 5, "num_beam_groups": 3, "do_sample": True}
    source = write_checkpoint(tmp_path / "model", bart_tensors(), generation=generation)
    model, _ = convert.load(source)
    assert model.search_defaults == SearchConfig(beam_size=3)
    assert model.config.start_id == 5
    assert "settings are ignored: 'do_sample', 'num_beam_groups'.\n" in caplog.text


def test_warnings_escape_names_of_settings(tmp_path, caplog):
    convert.load(write_checkpoint(tmp_path / "model", bart_tensors(), generation={"a\n\x1b[2J": 1}))
    assert r"settings are ignored: 'a\n\x1b[2J'." in caplog.text


def test_warnings_about_an_old_config_name_only_generation_settings(tmp_path, caplog):
    convert.load(write_checkpoint(tmp_path / "plain", bart_tensors()))
    assert not caplog.text
    convert.load(write_checkpoint(tmp_path / "odd", bart_tensors(), BART_CONFIG | {"diversity_penalty": 0.5}))
    assert "settings are ignored: 'diversity_penalty'.\n" in caplog.text


UNSUPPORTED = [
    {"sequence_bias": [[[3], -2.0]]},
    {"forced_decoder_ids": [[1, 5]]},
    {"begin_suppress_tokens": [5]},
    {"diversity_penalty": 0.5},
    {"num_beam_groups": 2},
    {"encoder_repetition_penalty": 1.2},
    {"exponential_decay_length_penalty": [5, 1.1]},
    {"stop_strings": ["."]},
    {"guidance_scale": 1.5},
    {"penalty_alpha": 0.6},
    {"force_words_ids": [[5]]},
    {"constraints": [5]},
    {"max_time": 2.0},
    {"remove_invalid_values": True},
    {"token_healing": True},
    {"watermarking_config": {"bias": 2.0}},
    {"do_sample": True},
    {"of_years_to_come": 1},
    {"forced_eos_token_id": [2, 5]},
    {"decoder_start_token_id": [2, 5]},
]


def test_unsupported_settings_are_named():
    assert [unsupported_settings(generation) for generation in UNSUPPORTED] == list(map(list, UNSUPPORTED))


def test_neutral_settings_are_not_warned_about():
    neutral = {"encoder_repetition_penalty": 1.0, "num_beam_groups": 1, "guidance_scale": 1, "sequence_bias": {}}
    neutral |= {"diversity_penalty": 0.0, "remove_invalid_values": False, "stop_strings": [], "eos_token_id": [2]}
    assert unsupported_settings(neutral | {"top_k": 50, "num_beams": 4, "transformers_version": "4.28.0"}) == []


@pytest.mark.parametrize(
    "eos_id, expected", [(5, (5,)), ([5], (5,)), ([6, 5, 6, 4], (6, 5, 4)), ([1, 6, 5], (6, 5)), (None, (2,))], ids=str
)
def test_end_tokens_of_the_generation_config_take_precedence(tmp_path, eos_id, expected, caplog):
    generation = {"eos_token_id": eos_id, "bad_words_ids": [[6], [5], [9]]}
    model, _ = convert.load(write_checkpoint(tmp_path / "model", bart_tensors(), generation=generation))
    assert model.config.eos_ids == expected
    assert set(model.search_defaults.suppress_ids) == {5, 6, 9} - set(expected)
    assert ("The end token 1 is ignored: it is the padding token" in caplog.text) == (eos_id == [1, 6, 5])


def test_the_first_of_several_start_tokens_is_used(tmp_path, caplog):
    several = {"eos_token_id": [4, 5], "decoder_start_token_id": [7, 3]}
    model, _ = convert.load(write_checkpoint(tmp_path / "model", bart_tensors(), BART_CONFIG | several))
    assert (model.config.eos_ids, model.config.start_id) == ((4, 5), 7)
    assert "settings are ignored: 'decoder_start_token_id'.\n" in caplog.text


def test_tasks_of_an_old_config(tmp_path):
    tasks = {
        "summarization": {"prefix": "summarize: ", "num_beams": 2, "max_length": 7, "no_repeat_ngram_size": 3},
        "translation_en_to_de": {"prefix": "translate English to German: ", "early_stopping": True},
        "damaged": 5,
    }
    source = write_checkpoint(tmp_path / "tasks", bart_tensors(), BART_CONFIG | {"task_specific_params": tasks})
    convert.convert(source, tmp_path / "ours")
    for path in (source, tmp_path / "ours"):
        model = mt.load_model(path)
        assert list(model.tasks) == ["summarization", "translation_en_to_de"]
        first, second = model.tasks.values()
        assert first.source_prefix == "summarize: "
        assert first.search == SearchConfig(beam_size=2, max_tokens=6, no_repeat_ngram_size=3)
        assert second.search == SearchConfig(beam_size=4, max_tokens=8, early_stopping=True)
    facts = CliRunner().invoke(cli.main, ["info", str(tmp_path / "ours")]).output
    assert "summarization: sources begin with 'summarize: '" in facts


@pytest.mark.parametrize(
    "settings, min_tokens, max_tokens",
    [({"min_length": 9, "max_length": 9}, 8, 8), ({"min_new_tokens": 8, "max_new_tokens": 8}, 8, 8)],
)
def test_equal_minimum_and_maximum_lengths(settings, min_tokens, max_tokens):
    search = search_config(settings, MODEL)
    assert (search.min_tokens, search.max_tokens) == (min_tokens, max_tokens)


def test_invalid_generation_settings():
    assert search_config({"bad_words_ids": [[], [5]]}, MODEL).suppress_ids == (5,)
    with pytest.raises(ValueError, match="beam_size must be at most 1024, not 100000"):
        search_config({"num_beams": 100000}, MODEL)
    for settings, message in (
        ({"max_length": "long"}, "generation setting max_length must be int, not 'long'"),
        ({"min_length": 2.5}, "generation setting min_length must be int, not 2.5"),
        ({"bad_words_ids": [3]}, r"generation setting bad_words_ids must be list\[list\[int\]\], not \[3\]"),
        ({"suppress_tokens": 3}, r"generation setting suppress_tokens must be list\[int\], not 3"),
    ):
        with pytest.raises(ValueError, match=message):
            search_config(settings, MODEL)


@pytest.mark.parametrize(
    "generation, expected, warning",
    [
        (
            {"forced_eos_token_id": 0, "suppress_tokens": [0]},
            {"suppress_ids": (0,)},
            "forced_eos_token_id 0 .* suppress",
        ),
        ({"forced_bos_token_id": 1}, {}, "forced_bos_token_id 1 is ignored: it is the padding token"),
        ({"forced_bos_token_id": 0}, {}, "forced_bos_token_id 0 is ignored: it ends every target at once"),
        ({"forced_bos_token_id": 400}, {}, "forced_bos_token_id 400 is ignored: the vocabulary has no such token"),
        ({"min_length": 20, "max_length": 10}, {"min_tokens": 9, "max_tokens": 9}, "20 exceeds the maximum .* to 9"),
        ({"max_length": 1}, {}, "maximum length .* is ignored: it leaves no token to generate"),
        ({"min_length": 700}, {"min_tokens": 300}, "minimum length 700 exceeds the maximum and is lowered to 300"),
    ],
    ids=str,
)
def test_contradictory_settings_are_left_out_with_a_warning(generation, expected, warning, caplog):
    assert search_config(generation, MODEL) == SearchConfig(**expected)
    assert re.search(warning, caplog.text)


def test_a_checkpoint_whose_padding_ends_targets_needs_another_padding_token(tmp_path):
    source = write_checkpoint(tmp_path / "model", bart_tensors(), BART_CONFIG | {"pad_token_id": 2, "eos_token_id": 2})
    with pytest.raises(ValueError, match="pad_id must differ from eos_id, .* both are 2; set pad_id to a token that"):
        convert.load(source)
    assert convert.load(source, settings={"pad_id": 3})[0].config.pad_id == 3


def test_a_task_without_a_prefix_has_that_of_the_model(tmp_path):
    settings = BART_CONFIG | {"prefix": " ", "task_specific_params": {"one": {}, "two": {"prefix": "two: "}}}
    tasks = convert.load(write_checkpoint(tmp_path / "tasks", bart_tensors(), settings))[0].tasks
    assert [task.source_prefix for task in tasks.values()] == [" ", "two: "]
