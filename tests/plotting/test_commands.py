"""The commands plot and attention."""

import json
import subprocess
import sys

import pytest
from support.paths import ROOT

import mlx_transformer as mt
from mlx_transformer.cli.commands import attention
from mlx_transformer.config.tokenizer import TokenizerConfig
from mlx_transformer.tokenization.tokenizer import Tokenizer

pytest.importorskip("matplotlib")

from support.plots import (
    BEGINNINGS,
    SCORED,
    START,
    STEPS,
    error_line,
    word_model,
)

from mlx_transformer.plotting import attention_maps, figures


class TestPlot:
    def test_plot_writes_a_picture_to_the_current_folder(self, invoke, run, tmp_path, monkeypatch):
        runs = [run("one"), run("two", [*STEPS, *SCORED])]
        monkeypatch.chdir(tmp_path)
        result = invoke("plot", *runs)
        assert result.stdout == "Picture: curves.png\n" and result.stderr == ""
        assert (tmp_path / "curves.png").read_bytes().startswith(BEGINNINGS["png"])

    def test_plot_output_option(self, invoke, run, tmp_path):
        path = tmp_path / "losses.svg"
        assert invoke("plot", run(), "--output", path).stdout == f"Picture: {path}\n"
        assert path.read_bytes().startswith(BEGINNINGS["svg"])

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["none"], "there is no none/log.jsonl: give the folder that `train --output` named."),
            (["run", "none"], "there is no none/log.jsonl"),
            (["empty"], "empty/log.jsonl has none yet: wait"),
            (["run", "--output", "curves.doc"], "must end in one of .png, .svg, .pdf, not curves.doc."),
            (
                ["run", "--output", "none/curves.png"],
                "--output must be in an existing folder, but there is no none: create it.",
            ),
        ],
    )
    def test_errors_are_one_line(self, invoke, run, tmp_path, monkeypatch, arguments, message):
        run(), run("empty", [START])
        monkeypatch.chdir(tmp_path)
        assert message in error_line(invoke("plot", *arguments, status=1))

    def test_plot_without_a_run_is_a_usage_error(self, invoke):
        assert "RUN..." in invoke("plot", status=2).stderr


class TestAttentionCommand:
    TEXT = "I am very tired today."

    @pytest.fixture
    def seen(self, monkeypatch):
        """The arguments of `attention_figure`, which draws nothing."""
        calls = []
        monkeypatch.setattr(
            attention_maps, "attention_figure", lambda *given, recased: calls.append(given) or figures.Figure()
        )
        return calls

    def test_attention_writes_a_picture(self, invoke, tmp_path):
        path = tmp_path / "attention.svg"
        result = invoke("attention", self.TEXT, "--output", path)
        assert result.stdout == f"Picture: {path}\n" and result.stderr == ""
        assert path.read_bytes().startswith(BEGINNINGS["svg"])

    def test_source_and_generated_target_are_drawn(self, invoke, seen, tmp_path):
        invoke("attention", self.TEXT, "--output", tmp_path / "a.png")
        ((_, tokenizer, source, target, *choice),) = seen
        model = mt.load_model()
        ((best, *_),) = mt.generate_hypotheses(model, tokenizer, [self.TEXT])
        assert source == tokenizer.encode(self.TEXT)
        assert target == [tokenizer.start_id, *best.ids, tokenizer.eos_id]
        assert choice == [(), (), ()]

    def test_given_target_and_selected_panels(self, invoke, seen, tmp_path):
        choice = ["--kind", "cross", "--kind", "encoder", "--layer", "0", "--head", "3", "--head", "1"]
        invoke("attention", self.TEXT, "--target", "Je dors.", "--output", tmp_path / "a.png", *choice)
        ((_, tokenizer, source, target, *choice),) = seen
        assert target == [tokenizer.start_id, *tokenizer.encode_target("Je dors.")]
        assert choice == [("cross", "encoder"), (0,), (3, 1)]

    @pytest.mark.parametrize("target", [[], ["--target", "Je dors."]])
    def test_source_prefix_is_part_of_the_source(self, invoke, seen, tmp_path, target):
        invoke("attention", "I sleep.", *target, "--source-prefix", "Now ", "--output", tmp_path / "a.png")
        ((_, tokenizer, source, *_),) = seen
        assert source == tokenizer.encode("Now I sleep.")

    @pytest.mark.parametrize("target", [[], ["--target", "le chat"]], ids=["found", "given"])
    @pytest.mark.parametrize(("role", "place"), [("start", 0), ("first", 1)])
    def test_language_tokens_are_part_of_the_sequences(self, invoke, seen, tmp_path, monkeypatch, target, role, place):
        model, plain, source, _ = word_model(["the", "__en__", "__fr__", "</s>"])
        codes = {"en": source[1], "fr": source[2]}
        how = TokenizerConfig(languages=codes, source_language="before", target_language=role)
        tokenizer = Tokenizer(plain.source, config=how)
        monkeypatch.setattr(attention, "load_with_tokenizer", lambda *_: (model, tokenizer))
        languages = ["--source-language", "en", "--target-language", "fr"]
        invoke("attention", "the", *target, *languages, "--output", tmp_path / "a.png")
        ((_, _, read, written, *_),) = seen
        assert read == [codes["en"], *source[:1], tokenizer.eos_id] and written[place] == codes["fr"]

    @pytest.mark.parametrize(
        ("target", "name"), [([], "TEXT"), (["--target", "Je dors."], "TEXT or --target")], ids=["found", "given"]
    )
    def test_long_texts_are_truncated_with_a_warning(self, invoke, seen, tmp_path, target, name):
        result = invoke("attention", "word " * 200, *target, "--output", tmp_path / "a.png")
        assert result.stderr == f"Warning: {name} is longer than the model can read and was cut.\n"
        ((model, tokenizer, source, *_),) = seen
        assert len(source) == model.config.encoder.max_length and source[-1] == tokenizer.eos_id

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["Hi", "--layer", "9"], "A layer of encoder self-attention must be from 0 to 5, not 9."),
            (["Hi", "--kind", "cross", "--head", "4"], "A head of cross-attention must be from 0 to 3, not 4."),
            (["Hi", "--model", "none", "--output", "a.doc"], "must end in one of .png, .svg, .pdf, not a.doc."),
            (["Hi", "--model", "none", "--output", "none/a.png"], "--output must be in an existing folder"),
            (["Hi", "--task", "x"], "--task must be left out"),
            ([" "], "TEXT must not be blank."),
        ],
    )
    def test_errors_are_one_line(self, invoke, tmp_path, monkeypatch, arguments, message):
        monkeypatch.chdir(tmp_path)
        given = arguments if "--output" in arguments else [*arguments, "--output", "a.png"]
        status = 2 if message.startswith("--task") else 1
        assert message in error_line(invoke("attention", *given, status=status))
        assert list(tmp_path.iterdir()) == []

    def test_kinds_of_the_option_match_the_figure(self):
        (option,) = [option for option in attention.command.params if option.name == "kinds"]
        assert set(option.type.choices) == attention_maps.ATTENTION_KINDS.keys()

    def test_uncovered_characters_are_reported_in_one_line(self, tmp_path):
        program = (
            "import sys; from mlx_transformer.plotting import fonts; from mlx_transformer.cli import main;"
            "fonts.installed = lambda: [fonts.FONT]; main(sys.argv[1:])"
        )
        folder = tmp_path / "中文"
        folder.mkdir()
        (folder / "log.jsonl").write_text(json.dumps(STEPS[0]) + "\n")
        arguments = ["plot", str(folder), "--output", str(tmp_path / "a.png")]
        done = subprocess.run([sys.executable, "-c", program, *arguments], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0 and done.stderr.count("\n") == 1
        assert done.stderr.startswith("Warning: No installed font covers U+4E2D, U+6587, shown as code points:")
