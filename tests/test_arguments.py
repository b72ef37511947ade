"""Arguments of a wrong type are named where an app calls the library."""

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

import mlx_transformer as mt
from mlx_transformer.arguments import check_arguments


@pytest.fixture(scope="module")
def bundled():
    return mt.load()


# Call of the model and its tokenizer -> the beginning of its error.
CALLS = {
    "generate: model must be Transformer, not a Tokenizer": lambda m, t: mt.generate(t, m, "Hi"),
    "stream_generate: model must be Transformer, not a Tokenizer": lambda m, t: list(mt.stream_generate(t, m, "Hi")),
    "score: model must be Transformer, not 'bundled'": lambda m, t: mt.score("bundled", t, ["Hi"], ["Hi"]),
    "embed: tokenizer must be Tokenizer, not None": lambda m, t: mt.embed(m, None, ["Hi"]),
    "generate: split_sentences must be bool or None, not 'yes'": lambda m, t: mt.generate(
        m, t, "a", split_sentences="yes"
    ),
    "generate: batch_tokens must be int, not '9'": lambda m, t: mt.generate(m, t, "a", batch_tokens="9"),
    "generate: source_prefix must be str or None, not 5": lambda m, t: mt.generate(m, t, "a", source_prefix=5),
    "translate_document: data must be bytes, not 'text'": lambda m, t: mt.translate_document(m, t, "text", "a.txt"),
    "translate_file: source must be str or PathLike, not None": lambda m, t: mt.translate_file(m, t, None, "b.txt"),
    "train: config must be TrainingConfig, not 'pairs.tsv'": lambda m, t: mt.train("pairs.tsv"),
    "load: model must be str or Path or None, not 5": lambda m, t: mt.load(5),
    "save: folder must be str or Path, not a Transformer": lambda m, t: mt.save(m, "folder"),
    "convert: quantize must be int or None, not '8'": lambda m, t: mt.convert("bundled", "x", quantize="8"),
    "add_adapter: config must be AdapterConfig, not {'rank': 2}": lambda m, t: mt.add_adapter(m, {"rank": 2}),
}


@pytest.mark.parametrize("message", CALLS)
def test_an_argument_of_a_wrong_type_is_named(bundled, message):
    function, _, start = message.partition(": ")
    with pytest.raises(TypeError) as error:
        CALLS[message](*bundled)
    assert str(error.value) == f"{start}: see help(mlx_transformer.{function})."


def test_protected_kinds_are_texts(bundled):
    for protect in (5, [5]):
        with pytest.raises(TypeError, match="protect must be kinds of text"):
            mt.generate(*bundled, "Hi", protect=protect)


def test_values_that_stand_for_others_are_accepted():
    @check_arguments
    def function(number: int, share: float, path: str | Path, *rest: int, flag: bool | None = None, **more: object):
        """Return the arguments."""
        return number, share, path, rest, flag, more

    assert function(np.int64(1), 2, Path("a"), "any", flag=None, x=mx) == (1, 2, Path("a"), ("any",), None, {"x": mx})
    assert function.__doc__ == "Return the arguments." and function.__name__ == "function"
    for arguments in ((1.5, 2, "a"), (1, "2", "a"), (1, 2, 3)):
        with pytest.raises(TypeError, match="see help"):
            function(*arguments)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'path'"):
        function(1, 2)
