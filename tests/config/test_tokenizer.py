"""Validation of TokenizerConfig."""

import pytest

from mlx_transformer.config.tokenizer import TokenizerConfig


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pad_id": 1}, "pad_id must differ from eos_id, .* both are 1; set pad_id to a token that no text contains"),
        ({"languages": {}, "source_language": "before"}, "must know some languages: languages is empty"),
        ({"languages": {}, "target_language": "first"}, "must know some languages: languages is empty"),
        ({"default_source_language": "xx"}, "default_source_language must be one of .*: got 'xx'"),
        ({"default_target_language": "xx"}, "default_target_language must be one of .*: got 'xx'"),
        ({"source_language": "first"}, "source_language must be"),
        ({"languages": {"a": "b"}}, "languages must be dict"),
        ({"languages": {"a": True}}, "languages must be dict"),
        ({"languages": {"a": -1}}, "must not be below 0: got -1"),
        ({"skip_ids": (0, -1)}, "must not be below 0: got -1"),
        ({"pad_id": -1}, "must not be below 0: got -1"),
        ({"after_source": (-2,)}, "must not be below 0: got -2"),
        ({"after_source": [1]}, "after_source must be tuple"),
        ({"source_vocab_size": 0}, "source_vocab_size must be more than 0"),
    ],
)
def test_invalid_config_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        TokenizerConfig(**{"languages": {"fra_Latn": 6, "deu_Latn": 7}} | fields)
