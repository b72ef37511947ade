"""Commands with a small model: generate, convert and info."""

import dataclasses
import json
import shutil
from pathlib import Path

import mlx.core as mx
import pytest
from click.testing import CliRunner
from mlx.utils import tree_map
from support.command_line import error_line
from support.shortlist_files import shortlist_bytes

import mlx_transformer as mt
from mlx_transformer.cli import main

LINES = ["a short line", "", "the third of March, 1987", "a short line", "one line that is a good deal longer"] * 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    mx.random.seed(2)
    tokenizer = mt.Tokenizer.train(LINES, LINES, 300)
    stack = mt.StackConfig(num_layers=1, num_heads=1, mlp_dims=16, max_length=40)
    size = tokenizer.source_vocab_size
    model = mt.Transformer(mt.ModelConfig(size, size, dims=16, encoder=stack, decoder=stack))
    # Larger weights than training starts from, so that different sources have different targets.
    model.update(tree_map(lambda array: array + 0.5 * mx.random.normal(array.shape), model.parameters()))
    folder = tmp_path_factory.mktemp("model") / "tiny"
    mt.save(folder, model, tokenizer)
    return folder


@pytest.fixture(scope="module")
def uncompiled():
    """What is tested here does not depend on compilation, which takes seconds."""
    mx.disable_compile()
    yield
    mx.enable_compile()


@pytest.mark.usefixtures("uncompiled")
class TestWithAModel:
    """The same commands with a real, tiny, untrained model."""

    @pytest.mark.parametrize("options", [(), ("--stream",), ("--beam-size", 3)])
    def test_shortlist_limits_the_tokens_of_a_batch(self, folder, tmp_path, options):
        model, tokenizer = mt.load(folder)
        path = tmp_path / "lex.bin"
        path.write_bytes(shortlist_bytes([[tokenizer.source_vocab_size - 1]], num_first=10))
        arguments = ("generate", "--model", folder, "--max-tokens", 9, *options, LINES[0])
        limited = self.invoke(*arguments, "--shortlist", path).stdout
        search = dataclasses.replace(
            model.search_defaults, beam_size=3 if "--beam-size" in options else 1, max_tokens=9
        )
        expected = mt.generate(model, tokenizer, LINES[0], search, shortlist=mt.read_shortlist(path))
        assert limited == f"{expected}\n" != self.invoke(*arguments).stdout

    def test_a_document_is_translated_with_a_shortlist(self, folder, tmp_path):
        model, tokenizer = mt.load(folder)
        path, source, target = tmp_path / "lex.bin", tmp_path / "a.txt", tmp_path / "b.txt"
        path.write_bytes(shortlist_bytes([[tokenizer.source_vocab_size - 1]], num_first=10))
        source.write_text(LINES[0])
        arguments = ("translate-file", "--force", "--model", folder, "--max-tokens", 9, source, target)
        self.invoke(*arguments, "--shortlist", path)
        limited = target.read_text()
        assert limited == mt.generate(model, tokenizer, LINES[0], max_tokens=9, shortlist=mt.read_shortlist(path))
        self.invoke(*arguments)
        assert target.read_text() != limited
        result = self.invoke(*arguments, "--shortlist", tmp_path / "none.bin", status=1)
        assert "none.bin" in error_line(result)

    def test_info_names_an_ssru(self, folder, tmp_path):
        model, tokenizer = mt.load(folder)
        mt.save(
            tmp_path / "ssru",
            mt.Transformer(dataclasses.replace(model.config, decoder_self_attention="ssru")),
            tokenizer,
        )
        shown = " ".join(self.invoke("info", tmp_path / "ssru").stdout.split())
        assert shown.count("sinusoidal positions up to 40, SSRU instead of self-attention") == 1
        assert "SSRU" not in self.invoke("info", folder).stdout

    def test_info_names_the_depth_of_deep_feed_forward_networks(self, folder, tmp_path):
        model, tokenizer = mt.load(folder)
        decoder = dataclasses.replace(model.config.decoder, mlp_layers=3)
        mt.save(tmp_path / "deep", mt.Transformer(dataclasses.replace(model.config, decoder=decoder)), tokenizer)
        shown = " ".join(self.invoke("info", tmp_path / "deep").stdout.split())
        assert shown.count(" in 3 layers, ") == 1
        assert " in 2 layers" not in shown

    def test_a_broken_shortlist_is_one_line(self, folder, tmp_path):
        (tmp_path / "lex.bin").write_bytes(b"der the 0.5")
        result = self.invoke("generate", "--model", folder, "--shortlist", tmp_path / "lex.bin", "a", status=1)
        assert "a shortlist must be a binary one of Marian" in error_line(result)
        result = self.invoke("generate", "--model", folder, "--shortlist", tmp_path / "none.bin", "a", status=1)
        assert "none.bin" in error_line(result)

    @staticmethod
    def invoke(*arguments, stdin=None, status=0):
        result = CliRunner().invoke(main, [str(argument) for argument in arguments], input=stdin)
        assert result.exit_code == status, (result.output, result.exception)
        return result

    def test_results_keep_the_order_of_lines(self, folder):
        options = ("--model", folder, "--max-tokens", "8")
        result = self.invoke("generate", *options, stdin="\n".join(LINES))
        assert result.stdout.count("\n") == len(LINES)
        alone = [self.invoke("generate", *options, line).stdout for line in LINES[:5]] * 3
        assert result.stdout == "".join(alone)
        assert alone[1] == "\n" and alone[0] != alone[2]

    def test_terms_of_a_glossary_and_addresses_are_in_the_text(self, folder, tmp_path):
        (tmp_path / "glossary.tsv").write_text("short\tthird March\nline\tone\n")
        text = "a short line at a@b.example"
        options = ("--model", folder, "--max-tokens", "60", "--beam-size", "4", "--json", "--verbose")
        plain = json.loads(self.invoke("generate", *options, "--protect", "none", text).stdout)
        result = self.invoke("generate", *options, "--glossary", tmp_path / "glossary.tsv", text)
        found = json.loads(result.stdout)
        terms = {"third March", "one", "a@b.example"}
        assert "alignment" not in found and "token_scores" not in found
        assert not any(term in plain["text"] for term in terms) and "missing_terms" not in plain
        missing = set(found.get("missing_terms", ()))
        assert {term for term in terms if term in found["text"]} >= terms - missing
        assert (
            result.stderr.startswith("Warning: results lack terms that --json names as missing_terms: TEXT 1.")
        ) == bool(missing)

    def test_a_glossary_must_hold_pairs(self, folder, tmp_path):
        (tmp_path / "glossary.tsv").write_text("a\tb\nc\n")
        message = self.invoke(
            "generate", "--model", folder, "--glossary", tmp_path / "glossary.tsv", "a", status=1
        ).stderr
        assert "line 2 must be a term, a tab and its target" in message and message.count("\n") == 1
        message = self.invoke("generate", "--model", folder, "--protect", "(", "a", status=2).stderr
        assert message.startswith("Error: --protect must be any of urls, ") and message.count("\n") == 1

    def test_text_as_people_type_it_has_the_output_of_plain_text(self, folder):
        typed = [
            "\ufeffa\u00a0short line",
            "\u200b",
            "a\tshort\u202fline \u2060\r",
            "\ufeff \u00ad",
            "a  sho\u00adrt li\u200dne",
        ]
        plain = ["a short line", "", "a short line", "", "a short line"]
        arguments = ("generate", "-m", folder, "--max-tokens", "4")
        for options in ((), ("--stream",), ("--beam-size", "2", "--num-hypotheses", "2")):
            outputs = [self.invoke(*arguments, *options, stdin="\n".join(lines)).stdout for lines in (typed, plain)]
            assert outputs[0] == outputs[1] and outputs[0].strip()
        lines = [*map(json.dumps, typed), "\u200b"]
        results = self.invoke(*arguments, "--json", stdin="\n".join(lines)).stdout
        texts = [json.loads(result)["text"] for result in results.splitlines()]
        assert texts[0] and texts == [texts[0], "", texts[0], "", texts[0], ""]

    def test_pairs_without_a_visible_character_are_blank(self, folder):
        typed = self.invoke("score", "-m", folder, stdin="\u200b\na\u2009line\t\u200b\n\ufeff\t\u00ad\n")
        assert typed.stdout == self.invoke("score", "-m", folder, stdin="\na line\t\n\t\n").stdout

    def test_json_has_scores_and_tokens(self, folder):
        result = self.invoke("generate", "-m", folder, "--json", "--beam-size", "2", "--max-tokens", "4", "a line")
        row = json.loads(result.stdout)
        assert len(row["tokens"]) <= 4 and row["score"] <= 0 and row["finish_reason"] in ("stop", "length")

    def test_a_source_longer_than_the_model_reads(self, folder):
        stdin = "a line\n" + "long " * 100
        result = self.invoke("generate", "-m", folder, "--max-tokens", "2", stdin=stdin)
        assert "Warning: Line 2 is longer" in result.stderr and result.stdout.count("\n") == 2
        assert "Line 2 is longer" in error_line(
            self.invoke("generate", "-m", folder, "--strict", stdin=stdin, status=1)
        )

    @pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
    def test_dtypes(self, folder, dtype):
        assert self.invoke("generate", "-m", folder, "--dtype", dtype, "--max-tokens", "2", "a line").stdout

    def test_evaluate(self, folder, tmp_path):
        (tmp_path / "test.tsv").write_text("a short line\tanother\na short line\tone more\n")
        figures = json.loads(self.invoke("evaluate", "-m", folder, tmp_path / "test.tsv", "--json").stdout)
        assert figures["sentences"] == 1 and figures["references"] == 2 and figures["exact_match"] == 0

    def test_score(self, folder):
        stdin = "a short line\tthe third\n\t\na line\tanother\n"
        result = self.invoke("score", "-m", folder, "--json", "--alignments", stdin=stdin)
        rows = [json.loads(line) for line in result.stdout.splitlines()]
        assert [row["tokens"][-1] for row in rows] == ["</s>"] * 3 and rows[1]["tokens"] == ["</s>"]
        assert all(row["score"] == pytest.approx(sum(row["token_scores"])) and row["score"] < 0 for row in rows)
        assert {j for _, j in rows[0]["alignment"]} == {0, 1} and rows[1]["alignment"] == []
        layer = ("--alignments", "--alignment-layer", "1")
        message = "A layer of an alignment must be from 0 to 0, not 1."
        assert message in error_line(self.invoke("score", "-m", folder, *layer, stdin=stdin, status=1))

    def test_info(self, folder):
        facts = json.loads(self.invoke("info", folder, "--json").stdout)
        assert facts["config"]["dims"] == 16 and facts["stored_dtype"] == ["float32"] and facts["format_version"] == 2
        assert facts["fused_attention"]["decoder"] == {"head_dims": 16, "step": False, "long": False}
        arrays = json.loads(self.invoke("info", folder, "--json").stdout)["parameters"]
        text = self.invoke("info", folder).stdout
        assert f"{arrays:,} in float32" in text and "head size 16; on Metal not fused" in text

    def test_info_compares_all_files_with_their_checksums(self, folder, tmp_path, monkeypatch):
        copy = tmp_path / "copy"
        shutil.copytree(folder, copy)
        assert "checksums         match\n" in self.invoke("info", copy).stdout
        with (copy / "config.json").open("a") as file:
            file.write("\n")
        assert "checksums         match, except of config.json\n" in self.invoke("info", copy).stdout
        assert json.loads(self.invoke("info", copy, "--json").stdout)["changed_files"] == ["config.json"]
        with (copy / "model.safetensors").open("r+b") as file:
            file.seek(-4, 2)
            file.write(b"1234")
        monkeypatch.setattr("mlx_transformer.checkpoints.model_folder.MAX_BYTES_TO_VERIFY", 0)  # as for a large model
        told = error_line(self.invoke("info", copy, status=1))
        assert "model.safetensors does not match its checksum in SHA256SUMS: copy it again" in told
        for without in (lambda path: path.write_text(""), Path.unlink):
            without(copy / "SHA256SUMS")
            assert "checksums         none: damage to the weights would" in self.invoke("info", copy).stdout

    def test_convert_keeps_files_of_the_user(self, folder, tmp_path, monkeypatch):
        self.invoke("convert", folder, tmp_path / "model")
        (tmp_path / "model" / ".git").mkdir()
        told = error_line(self.invoke("convert", folder, tmp_path / "model", "--force", status=1))
        assert "would be lost (.git): move them to another folder, or choose another name." in told
        (tmp_path / "empty").mkdir()
        monkeypatch.chdir(tmp_path / "empty")
        assert "is the current directory" in error_line(self.invoke("convert", folder, ".", status=1))

    def test_info_escapes_control_characters(self, folder, tmp_path):
        shutil.copytree(folder, tmp_path / "odd")
        config = json.loads((folder / "config.json").read_text())
        search = config["search"]
        config["tasks"] = [{"name": "a\x1b[2J\nb", "source_prefix": "", "search": search}]
        (tmp_path / "odd" / "config.json").write_text(json.dumps(config))
        text = self.invoke("info", tmp_path / "odd").stdout
        assert r"task              a\x1b[2J\nb: sources begin" in text and "\x1b" not in text

    def test_info_counts_the_parameters_of_a_quantised_model(self, tmp_path, monkeypatch):
        stack = mt.StackConfig(num_layers=1, num_heads=2, mlp_dims=64, max_length=8)
        model = mt.Transformer(mt.ModelConfig(64, 64, dims=64, head_dims=64, encoder=stack, decoder=stack))
        mt.save(tmp_path / "model", model, quantize=8)
        monkeypatch.setattr("mlx_transformer.model.precision.dequantize", lambda model: None)  # as on a GPU
        facts = json.loads(self.invoke("info", tmp_path / "model", "--json").stdout)
        assert facts["parameters"] == model.num_parameters and "uint32" in facts["dtype"]
        assert facts["fused_attention"]["encoder"]["head_dims"] == 64

    def test_damaged_folders(self, folder, tmp_path):
        broken = tmp_path / "broken"
        shutil.copytree(folder, broken)
        weights = (folder / "model.safetensors").read_bytes()
        for size in (0, 7, 100, len(weights) // 2, len(weights) - 1):
            (broken / "model.safetensors").write_bytes(weights[:size])
            for command in (("generate", "one", "-m"), ("info",), ("evaluate", "dates", "-m")):
                assert "model.safetensors" in error_line(self.invoke(*command, broken, status=1))
        (broken / "model.safetensors").unlink()
        assert "model.safetensors" in error_line(self.invoke("info", broken, status=1))

    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            ('"format_version": 2', '"format_version": 99', "upgrade"),
            ('"dims"', '"dmis"', "unknown fields: dmis"),
            ('"dims": 16', '"dims": "16"', "dims must be int"),
            ("{", "", "must be JSON"),
        ],
    )
    def test_damaged_configs(self, folder, tmp_path, old, new, message):
        broken = tmp_path / "broken"
        shutil.copytree(folder, broken)
        text = (broken / "config.json").read_text()
        (broken / "config.json").write_text(text.replace(old, new, 1))
        assert message in error_line(self.invoke("generate", "one", "-m", broken, status=1))

    def test_a_missing_folder(self, tmp_path):
        for command in (("generate", "one", "-m"), ("info",), ("evaluate", "dates", "-m")):
            assert str(tmp_path / "absent") in error_line(self.invoke(*command, tmp_path / "absent", status=1))
