"""The command generate: options, languages, tasks, lines and JSON."""

import dataclasses
import io
import json
import re
import sys

import pytest
from support import echo_model
from support.command_line import error_line

import mlx_transformer as mt
from mlx_transformer.cli import options
from mlx_transformer.storage.text_files import iterate_lines


def is_join(event, function):
    return event == "c_call" and function.__name__ == "join"


def test_max_tokens_lowers_the_models_min_tokens():
    defaults = mt.SearchConfig(min_tokens=30, max_tokens=60)
    assert options.search_config(defaults, {"max_tokens": 20, "min_tokens": None}).min_tokens == 20
    with pytest.raises(ValueError, match="min_tokens must not exceed max_tokens: 25 > 20; lower min_tokens"):
        options.search_config(defaults, {"max_tokens": 20, "min_tokens": 25})


class TestOptions:
    @pytest.mark.parametrize(
        "given, message",
        [
            (["--alignment-layer", "1"], "--alignment-layer has no effect on its own: give --alignments as well"),
            (
                ["--sentence-language", "fr", "--no-split-sentences"],
                "--sentence-language has no effect on its own: give --split-sentences",
            ),
            (["--seed", "1"], "--seed has no effect on its own: give --temperature as well"),
            (["--alternatives"], "give --num-hypotheses 2 or more as well"),
            (["--stream", "--json"], "--stream writes plain text as it is generated: leave out --json"),
            (["--stream", "--beam-size", "0"], "leave out --beam-size 0"),
            (["--stream", "--num-hypotheses", "2"], "leave out --num-hypotheses 2"),
            (["--split-sentences", "--target-prefix", "a"], "leave out --target-prefix"),
            (["--split-sentences", "--num-hypotheses", "-3"], "leave out --num-hypotheses"),
        ],
    )
    def test_options_without_effect_are_usage_errors(self, echo, given, message):
        assert message in " ".join(echo("generate", "one", *given, status=2).stderr.split())

    def test_columns(self, echo):
        options = ("generate", "--scores", "--alignments", "one two", "three")
        assert echo(*options).stdout == "-0.5000\tONE TWO\t0-0 1-1\n-0.5000\tTHREE\t0-0\n"
        row = json.loads(echo(*options[:-1], "--json").stdout)
        assert row["alignment"] == [[0, 0], [1, 1]] and row["token_scores"] == [-0.5] * 7

    def test_streamed_text_equals_generated_text(self, echo):
        assert echo("generate", "--stream", "--target-prefix", ">", stdin=b"one\n\ntwo").stdout == ">ONE\n>\n>TWO\n"

    def test_target_prefix_per_line(self, echo):
        stdin = b'{"text": "one", "target_prefix": "A "}\n"two"\n'
        rows = echo("generate", "--json", "--target-prefix", "B ", stdin=stdin).stdout.splitlines()
        assert [json.loads(row)["text"] for row in rows] == ["A ONE", "B TWO"]

    def test_sampling_draws_exactly_num_hypotheses(self):
        defaults = mt.SearchConfig(beam_size=4)
        drawn = options.search_config(defaults, {"temperature": 0.5, "num_hypotheses": None})
        assert (drawn.beam_size, drawn.num_hypotheses) == (1, 1)
        others = options.search_config(defaults, {"alternatives": True, "num_hypotheses": 3})
        assert (others.beam_size, others.num_hypotheses) == (3, 3)


class TestLanguagesAndTasks:
    def test_languages_of_all_lines(self, echo):
        arguments = ("generate", "--source-language", "en", "--target-language", "fr")
        assert echo(*arguments, stdin=b"one\ntwo\n").stdout == "en>fr ONE\nen>fr TWO\n"

    def test_json_lines_set_their_own_languages(self, echo):
        stdin = (
            b'{"text": "one", "source_language": "de", "id": 3}\n"two"\n{"text": "three", "target_language": "it"}\n'
        )
        result = echo("generate", "--json", "--source-language", "en", "--target-language", "fr", stdin=stdin)
        rows = [json.loads(line) for line in result.stdout.splitlines()]
        assert [row["text"] for row in rows] == ["de>fr ONE", "en>fr TWO", "en>it THREE"]
        assert rows[0]["id"] == 3 and "source_language" not in rows[0]

    def test_a_language_is_a_code(self, echo):
        result = echo("generate", "--json", stdin=b'{"text": "one", "source_language": 5}\n', status=1)
        assert 'Line 1 must have a string as "source_language", not 5.' in json.loads(result.stdout)["error"]

    def test_a_prefix(self, echo):
        assert echo("generate", "--source-prefix", "now: ", "one").stdout == "now: ONE\n"

    def test_a_task_has_its_prefix_and_its_search(self, echo):
        assert echo("generate", "--task", "shout", "one").stdout == "hey: ONE\nhey: ONE!\n"
        assert echo("generate", "--task", "shout", "--source-prefix", "", "--beam-size", "1", "one").stdout == "ONE\n"

    def test_an_unknown_task(self, echo):
        result = echo("generate", "--task", "sing", "one", status=2)
        assert "--task must be one of shout, not 'sing'; or give --source-prefix." in error_line(result)

    def test_evaluate_accepts_languages_and_tasks(self, echo, tmp_path):
        (tmp_path / "test.tsv").write_text("one\ten>fr hey: ONE\ntwo\tno\n")
        languages = ("--source-language", "en", "--target-language", "fr", "--task", "shout")
        assert json.loads(echo("evaluate", tmp_path / "test.tsv", *languages, "--json").stdout)["exact_match"] == 0.5


class TestLines:
    def test_one_output_line_per_input_line_with_blank_lines(self, echo):
        assert echo("generate", stdin=b"one\n\n  \ntwo\n\n").stdout_bytes == b"ONE\n\n  \nTWO\n\n"

    def test_last_line_without_a_line_feed(self, echo):
        assert echo("generate", stdin=b"one\ntwo").stdout_bytes == b"ONE\nTWO\n"

    def test_empty_input_gives_no_output(self, echo):
        assert echo("generate").stdout_bytes == b""

    def test_only_line_feeds_separate_lines(self, echo):
        line = "a\u2028b\x0bc\x85d\x1ee\rf"
        assert echo("generate", stdin=f"{line}\nx\n".encode()).stdout_bytes.decode() == f"{line.upper()}\nX\n"

    def test_files_from_windows(self, echo):
        assert echo("generate", stdin=b"\xef\xbb\xbfone\r\n\r\ntwo\r\n").stdout_bytes == b"ONE\n\nTWO\n"

    def test_input_windows_join_seamlessly(self, echo, monkeypatch):
        monkeypatch.setattr("mlx_transformer.storage.text_files.READ_BYTES", 3)
        stdin = "".join(f"line {i}\n" * (i % 3) for i in range(50)).encode()
        assert echo("generate", stdin=stdin).stdout_bytes == stdin.upper()

    def test_byte_order_mark_alone_is_not_a_line(self, echo, monkeypatch):
        monkeypatch.setattr("mlx_transformer.storage.text_files.READ_BYTES", 2)
        assert echo("generate", stdin=b"\xef\xbb\xbf").stdout == ""
        assert echo("generate", stdin=b"\xef\xbb\xbfone").stdout == "ONE\n"

    def test_a_byte_order_mark_is_stripped_from_the_first_line_of_a_stream_only(self):
        mark = b"\xef\xbb\xbf"
        assert list(iterate_lines(io.BytesIO(mark + b"a\n" + mark + b"b"), "text")) == [[b"a"], [mark + b"b"]]

    def test_a_long_line_is_joined_once(self):
        class Pieces(io.BytesIO):
            """A line that arrives in pieces of eight bytes."""

            def read1(self, size):
                return super().read1(8)

        line, joins = b"x" * (1 << 16), []
        sys.setprofile(lambda frame, event, function: joins.append(event) if is_join(event, function) else None)
        try:
            lines = list(iterate_lines(Pieces(line), "text"))
        finally:
            sys.setprofile(None)
        assert lines == [[line]] and len(joins) == 1

    def test_texts_of_the_command_line(self, echo):
        assert echo("generate", "one", "", "two\nlines").stdout == "ONE\n\nTWO LINES\n"

    def test_input_and_output_files(self, echo, tmp_path):
        (tmp_path / "in").write_text("one\ntwo\n")
        assert echo("generate", "-i", tmp_path / "in", "-o", tmp_path / "out").stdout == ""
        assert (tmp_path / "out").read_text() == "ONE\nTWO\n"

    def test_empty_input_gives_an_empty_file(self, echo, tmp_path):
        echo("generate", "-o", tmp_path / "out")
        assert (tmp_path / "out").read_text() == ""

    def test_dash_means_standard_input_and_output(self, echo, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert echo("generate", "-i", "-", "-o", "-", stdin=b"one\n").stdout == "ONE\n"
        assert list(tmp_path.iterdir()) == []

    def test_scores_and_several_hypotheses(self, echo):
        result = echo("generate", "--scores", "--num-hypotheses", "2", stdin=b"one\n\n")
        assert result.stdout == "-0.5000\tONE\n-1.5000\tONE!\n0.0000\t\n\n"

    def test_truncated_source_is_reported(self, echo):
        result = echo("generate", stdin=b"short\n" + b"x" * 101)
        assert result.stderr.startswith("Warning: Line 2 is longer") and result.stderr.count("\n") == 1
        assert result.stdout == "SHORT\n" + "X" * 100 + "\n"

    def test_strict_rejects_truncated_sources(self, echo):
        result = echo("generate", "--strict", stdin=b"short\n" + b"x" * 101 + b"\nfine", status=1)
        assert "Line 2 is longer than the model can read" in error_line(result) and result.stdout == "SHORT\n\nFINE\n"

    @pytest.mark.parametrize("options", [(), ("--stream",), ("--scores",)])
    def test_bad_lines_have_empty_results_and_errors(self, echo, options):
        result = echo("generate", *options, stdin=b"one\nValueError: reason\nbad \xff\ntwo\n", status=1)
        lines = [line.split("\t")[-1] for line in result.stdout.splitlines()]
        assert lines == ["ONE", "", "", "TWO"]
        first, second = result.stderr.splitlines()
        assert first == "Error: Line 2: reason"
        assert second.startswith("Error: Line 3 must be valid UTF-8: byte 5 is 0xff.")

    def test_line_that_exceeds_memory_does_not_end_a_stream(self, echo):
        result = echo("generate", "--stream", stdin=b"one\nRuntimeError: out of memory\ntwo\n", status=1)
        assert result.stdout.splitlines() == ["ONE", "", "TWO"]
        assert result.stderr == "Error: Line 2: It does not fit in memory: shorten or split it.\n"

    def test_bad_line_has_as_many_empty_results_as_others_have_hypotheses(self, echo):
        result = echo("generate", "--num-hypotheses", "2", stdin=b"one\nValueError: reason\ntwo\n", status=1)
        assert result.stdout.splitlines() == ["ONE", "ONE!", "", "", "TWO", "TWO!"]

    def test_bad_line_is_replaced_in_the_output_file(self, echo, tmp_path):
        echo("generate", "-o", tmp_path / "out", stdin=b"one\nValueError: reason\ntwo\n", status=1)
        assert (tmp_path / "out").read_text() == "ONE\n\nTWO\n" and len(list(tmp_path.iterdir())) == 1

    def test_beam_size_grows_with_num_hypotheses(self):
        config = options.search_config(mt.SearchConfig(), {"num_hypotheses": 3, "early_stopping": "never"})
        assert (config.beam_size, config.num_hypotheses, config.early_stopping) == (3, 3, "never")

    def test_a_greedy_search_of_a_model_with_several_hypotheses(self):
        defaults = mt.SearchConfig(beam_size=4, num_hypotheses=4)
        assert options.search_config(defaults, {"beam_size": 1}).num_hypotheses == 1


class TestJson:
    def test_objects_and_strings(self, echo):
        result = echo("generate", "--json", stdin=b'{"id": 7, "text": "h\xc3\xa9"}\n"a\\nb"\n\n')
        rows = [json.loads(line) for line in result.stdout.splitlines()]
        assert rows[0] == {
            "id": 7,
            "text": "HÉ",
            "score": -0.5,
            "tokens": ["H", "É"],
            "finish_reason": "stop",
            "truncated": False,
            "too_short": False,
        }
        assert [row["text"] for row in rows] == ["HÉ", "A\nB", ""]

    def test_several_hypotheses_share_one_json_line(self, echo):
        (line,) = echo("generate", "--json", "--num-hypotheses", "2", "one").stdout.splitlines()
        assert [row["text"] for row in json.loads(line)["hypotheses"]] == ["ONE", "ONE!"]

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("{", "Line 2 must be JSON, one value per line: .* column 2"),
            ("[1]", "Line 2 must be a JSON string or an object .* not \\[1\\]"),
            ('{"id": 1}', "Line 2 must be a JSON string or an object"),
            ('{"text": 1}', "Line 2 must be a JSON string or an object"),
            ('{"text": "", "beam": 1}', "may have the names .*, not beam"),
            (json.dumps({"text": "", "b" * 9000: 1}), r"may have the names .{1,120}, not b+\.\.\.\."),
            ('"\\ud800"', "Line 2 must be Unicode text"),
            ("[" * 200_000, "Line 2 must be JSON, .* nested too deeply"),
            ('{"text": "", "id": NaN}', "Line 2 .* finite numbers"),
            ('{"text": "", "id": [-Infinity]}', "Line 2 .* finite numbers"),
            ('{"text": "", "id": 1e999}', "Line 2 .* finite numbers"),
            ('{"text": "", "id": ' + "9" * 5000 + "}", "Line 2 .* numbers of at most 4300 digits"),
        ],
    )
    def test_bad_line_has_an_error_in_its_place(self, echo, line, message):
        result = echo("generate", "--json", stdin=f'"good"\n{line}\n"fine"\n'.encode(), status=1)
        good, bad, fine = map(json.loads, result.stdout.splitlines())
        assert error_line(result) == f'Error: 1 of the results has an "error": {bad["error"]}\n'
        assert (good["text"], fine["text"]) == ("GOOD", "FINE")
        assert bad.keys() - {"id"} == {"error"} and re.search(message, bad["error"])

    def test_bad_object_keeps_its_id(self, echo):
        lines = '{"id": 7, "text": 5}\n{"id": [1], "text": "a", "beam": 2}\n{"text": "ValueError: reason", "id": "x"}\n'
        result = echo("generate", "--json", stdin=lines.encode(), status=1)
        rows = [json.loads(line) for line in result.stdout.splitlines()]
        assert [row.pop("id") for row in rows] == [7, [1], "x"] and all(list(row) == ["error"] for row in rows)


@pytest.mark.parametrize("terms", ["--glossary", "--protect"])
def test_terms_give_one_text_per_line(echo, tmp_path, terms):
    (tmp_path / "glossary.tsv").write_text("a\tb\n")
    value = tmp_path / "glossary.tsv" if terms == "--glossary" else "urls"
    streamed = echo("generate", "a", terms, value, "--stream", status=2).stderr
    assert f"as it is generated: leave out {terms}. See" in streamed
    several = echo("generate", "a", terms, value, "--num-hypotheses", "2", status=2).stderr
    assert f"{terms} gives one text per line: leave out --num-hypotheses. See" in several
    assert echo("generate", "a", "--protect", "none", "--stream").stdout == echo("generate", "a", "--stream").stdout


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\tb\nc\n", ", line 2 must be a term, a tab and its target, not 'c'."),
        ("a\tb\tc\n", ", line 1 must be a term, a tab and its target, not 'a\\tb\\tc'."),
        ("#a\n", ", line 1 must be a term, a tab and its target, not '#a'."),
        ("# only comments\n\n", " must have a term on one of its lines: SOURCE, a tab and TARGET."),
        ("\tb\n", ", line 1 must be a term, a tab and its target, not '\\tb'."),
        ("a\tb\n\na\tc\n", ", line 3 has another target for 'a': leave out one of them."),
    ],
)
def test_lines_of_a_glossary_are_terms(echo, tmp_path, text, message):
    path = tmp_path / "glossary.tsv"
    path.write_text(text)
    assert echo("generate", "a", "--glossary", path, status=1).stderr == f"Error: {path}{message}\n"
    path.write_bytes(b"# a comment\r\na\tb\r\n\r\n a \t b \n# a\tc\n")
    assert echo("generate", "z", "--glossary", path).stderr == ""


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_missing_terms_give_one_warning(echo, monkeypatch, options):
    """The first of many lines are named."""

    def generate(model, tokenizer, lines, **arguments):
        for (hypothesis,) in echo_model.generate_hypotheses(model, tokenizer, lines, **arguments):
            yield [dataclasses.replace(hypothesis, missing_terms=("%d",) if "%" in hypothesis.text else ())]

    monkeypatch.setattr(mt, "generate_hypotheses", generate)
    warning = "Warning: results lack terms that --json names as missing_terms:"
    result = echo("generate", *options, stdin=b'"a"\n"b %"\n"c %"\n')
    assert result.stderr == f"{warning} Line 2, Line 3.\n"
    result = echo("generate", *options, stdin=b'"%"\n' * 25)
    assert result.stderr.startswith(f"{warning} Line 1, ") and result.stderr.endswith(" Line 20 and 5 more.\n")


def test_no_name_of_a_corpus_is_a_glossary(echo):
    assert "dates: No such file" in echo("generate", "a", "--glossary", "dates", status=1).stderr


def test_a_glossary_gives_one_text_where_the_model_gives_several(echo, tmp_path, monkeypatch):
    (tmp_path / "glossary.tsv").write_text("z\tb\n")
    several = dataclasses.replace(echo_model.EchoModel.search_defaults, beam_size=2, num_hypotheses=2)
    monkeypatch.setattr(echo_model.EchoModel, "search_defaults", several)
    assert echo("generate", "a").stdout.count("\n") == 2
    assert echo("generate", "a", "--glossary", tmp_path / "glossary.tsv").stdout.count("\n") == 1


def test_texts_that_look_alike_are_written_once(echo, monkeypatch):
    """Hypotheses may differ in their tokens, or in spaces that look alike, such as narrow no-break ones."""
    texts = ["Oui !", "Oui\u202f!", "Oui\xa0 !", "Non !", "Oui !"]
    best = echo_model.EchoHypothesis([0], -1.0, "stop", "", False)
    sizes = []

    def search_texts(model, tokenizer, lines, *, search, **options):
        sizes.append(search.num_hypotheses)
        yield from (row for _ in lines)

    row = [dataclasses.replace(best, text=text) for text in texts]
    monkeypatch.setattr(mt, "generate_hypotheses", search_texts)
    assert echo("generate", "--num-hypotheses", "2", "--beam-size", "5", "a").stdout == "Oui !\nNon !\n"
    assert echo("generate", "--num-hypotheses", "5", "a").stdout == "Oui !\nNon !\n\n\n\n"
    samples = echo("generate", "--num-hypotheses", "5", "--temperature", "1", "a").stdout
    assert samples.splitlines() == texts
    assert sizes == [5, 5, 5]
