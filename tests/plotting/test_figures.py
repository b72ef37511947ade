"""Learning curves and attention weights: what is drawn, in letters of any script; `plot` and `attention`."""

import json
import subprocess
import sys

import mlx.core as mx
import numpy as np
import pytest
import tokenizers
from click.testing import CliRunner
from support.paths import ROOT
from support.texts import CONTROLS, EMOJI, FORMS, SCRIPTS, SPACES
from support.tiny_models import config, random_model, stack
from support.tiny_pieces import byte_level

import mlx_transformer as mt
from mlx_transformer.cli import main
from mlx_transformer.cli.commands import attention
from mlx_transformer.config.tokenizer import TokenizerConfig
from mlx_transformer.plotting import learning_curves
from mlx_transformer.tokenization.hf_vocabulary import HFVocabulary
from mlx_transformer.tokenization.tokenizer import Tokenizer
from mlx_transformer.tokenization.vocabulary import ByteVocabulary, WordVocabulary

pytest.importorskip("matplotlib")
from matplotlib.backends.backend_agg import FigureCanvasAgg

from mlx_transformer.plotting import figures
from mlx_transformer.plotting import fonts as fonts_module

STEPS = [
    {"event": "step", "step": 20, "loss": 6.0, "learning_rate": 0.1, "tokens_per_second": 9},
    {"event": "step", "step": 40, "loss": 3.0, "learning_rate": 0.2, "tokens_per_second": 9},
]
FIRST = {"event": "step", "step": 1, "loss": 9.0}
VALIDATIONS = [
    {"event": "validation", "step": 20, "loss": 5.0, "token_accuracy": 0.5, "best": True},
    {"event": "validation", "step": 30, "loss": 4.0, "token_accuracy": 0.7, "best": True},
    {"event": "validation", "step": 40, "loss": 4.5, "token_accuracy": 0.6, "best": False},
]
SCORED = [entry | {"bleu": entry["step"] / 2, "chrf": entry["step"]} for entry in VALIDATIONS]
START, STOPPED = {"event": "start", "step": 0, "config": {}}, {"event": "stopped", "step": 40}
LOG = [START, *STEPS, *VALIDATIONS, STOPPED]
BEGINNINGS = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}


@pytest.fixture
def run(tmp_path):
    """Makes the folder of a run with a log."""

    def make(name="run", entries=LOG, end=""):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        text = "".join(f"{json.dumps(entry)}\n" for entry in entries) + end
        (folder / "log.jsonl").write_text(text, encoding="utf-8")
        return folder

    return make


@pytest.fixture
def only_matplotlibs_font(monkeypatch):
    """As where no font is installed but the one that comes with matplotlib."""
    monkeypatch.setattr(fonts_module, "installed_fonts", lambda: [fonts_module.DEFAULT_FONT])


@pytest.fixture
def invoke():
    """Runs the command line in this process."""

    def call(*arguments, status=0):
        result = CliRunner().invoke(main, [str(argument) for argument in arguments])
        assert result.exit_code == status, result.output
        return result

    return call


def error_line(result):
    assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1
    return result.stderr


def titles(figure):
    return [axes.get_title(loc="left") for axes in figure.axes]


def curves(axes):
    """The points of each line."""
    return [list(zip(*line.get_data(), strict=True)) for line in axes.lines]


class TestLogs:
    def test_a_curve_is_of_one_event_in_order_without_what_is_no_number(self):
        values = [(30, 1.0), (10, 2), (20, float("nan")), (40, None), (50, "1"), (None, 3.0), ([1], 4.0), (60, 5.0)]
        log = [{"event": "step", "step": step, "loss": value} for step, value in values]
        log += [{"event": "other", "step": 5, "loss": 1.0}, {"event": "step", "step": 7}, {}]
        assert learning_curves.curve(log, "step", "loss") == [(10, 2), (30, 1.0), (60, 5.0)]

    def test_of_a_step_that_was_done_twice_the_last_counts(self):
        log = [{"event": "step", "step": step, "loss": loss} for step, loss in [(1, 9.0), (2, 8.0), (2, 7.0)]]
        assert learning_curves.curve(log, "step", "loss") == [(1, 9.0), (2, 7.0)]

    def test_the_best_is_the_last_that_was_kept(self):
        assert learning_curves.best_point(LOG, "loss") == (30, 4.0)
        assert learning_curves.best_point(LOG, "bleu") is None
        assert learning_curves.best_point(STEPS, "loss") is None

    @pytest.mark.parametrize("end", ['{"event": "st', '{"event": "step", "step": 60, "loss": 1.0}', "7\n"])
    def test_the_last_line_may_be_half_written(self, run, end):
        expected = [(20, 6.0), (40, 3.0)] + [(60, 1.0)] * end.endswith("}")
        assert learning_curves.curve(learning_curves.read_log(run(end=end)), "step", "loss") == expected

    def test_a_folder_without_a_log_is_refused(self, tmp_path):
        for folder in (tmp_path, tmp_path / "none"):
            with pytest.raises(FileNotFoundError, match=f"there is no {folder}/log.jsonl; give the --output"):
                learning_curves.read_log(folder)

    @pytest.mark.parametrize("entries", [[], [START], [{"event": "step", "step": 1}]])
    def test_a_log_without_losses_is_refused(self, run, entries):
        with pytest.raises(ValueError, match=r"run/log.jsonl has none yet; wait"):
            learning_curves.read_log(run(entries=entries))

    def test_runs_are_called_by_their_folders_unless_two_are_called_alike(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert learning_curves.run_names(["a/x", "b/y/", "."]) == ["x", "y", tmp_path.name]
        assert learning_curves.run_names(["a/x", "b/x"]) == ["a/x", "b/x"]


class TestLearningCurves:
    def test_what_the_log_holds_is_drawn_and_the_best_has_a_star(self, run):
        figure = figures.learning_curves([run(entries=[START, FIRST, *STEPS, *SCORED])])
        assert titles(figure) == ["loss, nats a token", "BLEU", "chrF", "learning rate"]
        loss, bleu, chrf, rate = figure.axes
        assert curves(loss) == [[(1, 9), (20, 6), (40, 3)], [(20, 5), (30, 4), (40, 4.5)], [(30, 4)]]
        assert curves(bleu) == [[(20, 10), (30, 15), (40, 20)], [(30, 15)]]
        assert curves(chrf) == [[(20, 20), (30, 30), (40, 40)], [(30, 30)]]
        assert curves(rate) == [[(20, 0.1), (40, 0.2)]]
        assert [line.get_marker() for line in loss.lines] == ["None", "o", "*"]
        assert {axes.get_xlim() for axes in figure.axes} == {loss.get_xlim()}

    def test_what_no_run_has_gets_no_panel(self, run):
        assert titles(figures.learning_curves([run()])) == ["loss, nats a token", "learning rate"]
        figure = figures.learning_curves([run("validated", VALIDATIONS)])
        assert titles(figure) == ["loss, nats a token"]

    def test_what_one_run_has_not_is_drawn_for_the_other(self, run):
        figure = figures.learning_curves([run("plain"), run("scored", SCORED)])
        bleu = figure.axes[titles(figure).index("BLEU")]
        assert [points for points in curves(bleu) if points] == [[(20, 10), (30, 15), (40, 20)], [(30, 15)]]

    def test_runs_differ_in_colour_or_line_and_the_legend_tells(self, run):
        folders = [run(f"run {number}") for number in range(16)]
        figure = figures.learning_curves(folders)
        (legend,) = figure.legends
        names = [f"run {number}" for number in range(16)]
        assert [text.get_text() for text in legend.get_texts()] == [
            *names,
            "training",
            "validation",
            "best validation",
        ]
        drawn = [
            (line.get_color(), line.get_linestyle()) for line in figure.axes[0].lines if len(line.get_xdata()) == 3
        ]
        assert len(set(drawn)) == 16
        assert [(line.get_color(), line.get_linestyle()) for line in legend.get_lines()[:16]] == drawn

    def test_a_name_is_shown_as_it_is(self, run, tmp_path):
        names = ["_run", "$x^2$", "50%_#1", "x" * 50]
        figure = figures.learning_curves([run(name) for name in names])
        (legend,) = figure.legends
        texts = legend.get_texts()
        assert [text.get_text() for text in texts[:4]] == names
        assert not any(text.get_parse_math() for text in texts)
        figures.save(figure, tmp_path / "curves.png")

    @pytest.mark.parametrize(
        ("losses", "scale"),
        [([9.0, 1.5], "log"), ([900.0, 0.1], "log"), ([9.0, 1e-4], "log"), ([3.0, 2.9], "linear"), ([9, 0], "linear")],
    )
    def test_losses_far_apart_are_on_a_logarithmic_scale_with_ticks(self, run, losses, scale, tmp_path):
        entries = [{"event": "step", "step": step, "loss": loss} for step, loss in enumerate(losses)]
        figure = figures.learning_curves([run(entries=entries)])
        figures.save(figure, tmp_path / "curves.svg")
        (axes,) = figure.axes
        low, high = axes.get_ylim()
        assert axes.get_yscale() == scale
        assert 2 <= sum(low <= tick <= high for tick in axes.get_yticks()) <= 10


class TestLettering:
    def test_pieces_as_a_reader_knows_them(self):
        words = WordVocabulary({"\u2581the": 0, " a": 1, "\uffed,": 2, "<0xE4>": 3, "<0x41>": 4, "</s>": 5}, 0)
        assert fonts_module.piece_labels(words, range(6)) == ["\u2423the", "\u2423a", "\u25a0,", "<0xE4>", "A", "</s>"]
        assert fonts_module.piece_labels(ByteVocabulary({"</s>": 1}), [1, 75, 35, 231]) == [
            "</s>",
            "H",
            "\u2423",
            "<0xE4>",
        ]

    def test_bytes_spelled_as_letters_are_undone(self):
        vocabulary = HFVocabulary(tokenizers.Tokenizer.from_str(byte_level()))
        ids = vocabulary.encode(" the été")
        assert "".join(fonts_module.piece_labels(vocabulary, [0, *ids])) == "<s>\u2423the\u2423été"
        assert "Ġ" in "".join(map(vocabulary.id_to_token, ids))

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("abc", "abc"),
            ("ab中", "ab U+4E2D"),
            ("中文a", "U+4E2D U+6587 a"),
            ("a\u200db", "ab"),
            ("a\ufe0f", "a"),
            ("\u200d", "U+200D"),
            ("a\n", "a U+000A"),
            ("\u3000", "U+3000"),
            ("", ""),
        ],
    )
    def test_what_no_font_has_is_shown_by_code_or_if_invisible_not_at_all(self, text, expected):
        assert fonts_module.visible_text(text, set("abc")) == expected

    def test_known_joiners_are_kept_where_they_shape_letters_and_told_where_they_stand_alone(self):
        assert fonts_module.visible_text("می\u200cخ", set("می\u200cخ")) == "می\u200cخ"
        assert fonts_module.visible_text("\u200c", {"\u200c"}) == "U+200C"

    def test_what_no_installed_font_has_is_told_once(self, only_matplotlibs_font, caplog):
        texts, families = fonts_module.render_labels(["中", "中文字", "語", "a\n"], longest=60)
        assert texts == ["U+4E2D", "U+4E2D U+6587 U+5B57", "U+8A9E", "a U+000A"]
        assert families == ["DejaVu Sans"]
        (message,) = caplog.messages
        assert message.startswith("No installed font has U+4E2D, U+5B57, U+6587 and 1 more characters, shown by code:")
        assert "fontlist-*.json" in message

    def test_nothing_is_told_where_nothing_is_missing(self, caplog):
        texts, families = fonts_module.render_labels(["très", "мир", "a\u200d", "b\n"], longest=9)
        assert texts == ["très", "мир", "a\u200d", "b U+000A"] and families == ["DejaVu Sans"]
        assert caplog.messages == []

    def test_a_font_is_found_that_has_what_the_first_lacks(self, caplog):
        letter = "\u1d81"  # in STIXGeneral, which matplotlib brings, too
        texts, (first, second) = fonts_module.render_labels([f"a{letter}"], longest=9)
        assert texts == [f"a{letter}"] and first == fonts_module.DEFAULT_FONT
        assert fonts_module.covered_characters(first, {letter}) == set() and fonts_module.covered_characters(
            second, {letter}
        ) == {letter}
        assert caplog.messages == []

    def test_few_fonts_are_taken(self, monkeypatch):
        fonts = {"DejaVu Sans": "a", "One": "中", "Two": "文字", "Three": "中文", "Four": "字"}
        monkeypatch.setattr(fonts_module, "installed_fonts", lambda: list(fonts))
        monkeypatch.setattr(fonts_module, "covered_characters", lambda name, letters: letters & set(fonts[name]))
        assert fonts_module.render_labels(["a中文字"], longest=9) == (["a中文字"], ["DejaVu Sans", "Two", "One"])

    def test_a_font_without_letters_of_its_own_is_not_taken(self):
        texts, families = fonts_module.render_labels(["\u0378"], longest=9)  # not assigned
        assert (texts, families) == (["U+0378"], ["DejaVu Sans"])
        assert "Last Resort High-Efficiency" not in fonts_module.installed_fonts()

    def test_a_font_that_is_gone_has_nothing(self):
        assert fonts_module.covered_characters("No Such Font", {"a"}) == set()

    def test_long_texts_are_cut(self):
        assert fonts_module.render_labels(["x" * 9, "x" * 10], longest=9).texts == ["x" * 9, "x" * 8 + "…"]

    def test_wide_letters_count_twice(self):
        assert (fonts_module.text_width("abc"), fonts_module.text_width("中文"), fonts_module.text_width("")) == (
            3,
            4,
            0,
        )


SOURCE = ["the", "cat", "sat", "</s>"]
TARGET = ["<s>", "le", "chat", "</s>"]


def word_model(source=SOURCE, target=TARGET, layers=2):
    """A random model, its tokenizer and the ids of a source and a target, whose words may be anything."""
    words = dict.fromkeys(["<pad>", "</s>", "<s>", *source, *target])
    tokenizer = Tokenizer(WordVocabulary({word: i for i, word in enumerate(words)}, 0))
    shape = stack(num_layers=layers, max_length=500)
    sizes = {"source_vocab_size": len(words), "target_vocab_size": len(words)}
    model = random_model(config(encoder=shape, decoder=shape, **sizes))
    return model, tokenizer, *([tokenizer.source.token_to_id(word) for word in side] for side in (source, target))


def drawn(axes):
    """The weights of a panel, first row on top, nan where they are hidden."""
    (mesh,) = axes.collections
    top, bottom = axes.get_ylim()[::-1]
    array = np.ma.filled(mesh.get_array().astype(float), np.nan)
    return array.reshape(round(bottom - top), -1) if top < bottom else None


def panels(figure):
    """Title -> panel; the last axes are the colour bar."""
    return {axes.get_title(loc="left"): axes for axes in figure.axes[:-1]}


class TestAttention:
    def test_last_layers_and_all_heads_are_what_is_drawn_by_default(self):
        model, tokenizer, source, target = word_model()
        weights = mt.attention(model, mx.array([source]), mx.array([target[:-1]]))
        found = panels(figures.attention_figure(model, tokenizer, source, target))
        assert list(found) == [
            f"{name}\nlayer 1, mean of heads"
            for name in ("encoder self-attention", "cross-attention", "decoder self-attention")
        ]
        for axes, layers in zip(found.values(), (weights.encoder, weights.cross, weights.decoder), strict=True):
            expected = np.array(layers[1][0]).mean(axis=0)
            shown = drawn(axes)
            assert np.allclose(np.nan_to_num(shown), expected, atol=1e-6)
            assert np.isnan(shown).sum() == (3 if layers is weights.decoder else 0)  # what lies ahead of three queries

    def test_layers_and_heads_have_panels_of_their_own(self):
        model, tokenizer, source, target = word_model()
        weights = mt.attention(model, mx.array([source]), mx.array([target[:-1]]))
        figure = figures.attention_figure(model, tokenizer, source, target, ["cross"], layers=[1, 0], heads=[1, 0])
        found = panels(figure)
        assert list(found) == [f"cross-attention\nlayer {i}, head {j}" for i in (1, 0) for j in (1, 0)]
        for axes, (i, j) in zip(found.values(), [(1, 1), (1, 0), (0, 1), (0, 0)], strict=True):
            assert np.allclose(drawn(axes), np.array(weights.cross[i][0, j]), atol=1e-6)

    def test_rows_are_queries_and_columns_keys(self):
        figure = figures.attention_figure(*word_model())
        labels = {
            "encoder": ("source", SOURCE, "source", SOURCE),
            "cross": ("target", TARGET[1:], "source", SOURCE),
            "decoder": ("target", TARGET[1:], "target so far", TARGET[:-1]),
        }
        for axes, kind in zip(panels(figure).values(), labels, strict=True):
            found = [
                (axis.get_label_text(), [text.get_text() for text in axis.get_ticklabels()])
                for axis in (axes.yaxis, axes.xaxis)
            ]
            assert (*found[0], *found[1]) == labels[kind]

    def test_pieces_are_no_mathematics(self):
        (axes,) = panels(figures.attention_figure(*word_model(["$x^2$", "$"]), kinds=["encoder"])).values()
        assert not any(text.get_parse_math() for text in [*axes.get_xticklabels(), *axes.get_yticklabels()])

    @pytest.mark.parametrize(
        ("source", "target"),
        [
            (["Hi"], ["<s>", "Oh"]),
            (SOURCE, TARGET),
            (["the"] * 14, ["<s>", "Donaudampfschifffahrtsgesellschaft", "le"]),
            (["WWWWWWWWWW", "mmmmmmmmmmm"], ["<s>", "中文中文中文中文", "U"]),
        ],
        ids=["short", "usual", "uneven", "wide"],
    )
    def test_all_cells_are_squares_of_one_size_and_panels_lie_apart(self, source, target):
        figure = figures.attention_figure(*word_model(source, target), layers=[0, 1], heads=[0, 1])
        found = list(panels(figure).values())
        boxes = [axes.get_position().transformed(figure.transFigure - figure.dpi_scale_trans) for axes in found]
        shapes = [drawn(axes).shape for axes in found]
        sizes = [(box.height / rows, box.width / columns) for box, (rows, columns) in zip(boxes, shapes, strict=True)]
        assert len(sizes) == 12 and np.ptp(sizes) < 1e-9 and sizes[0][0] == pytest.approx(0.2)
        renderer = FigureCanvasAgg(figure).get_renderer()
        places = [axes.get_tightbbox(renderer) for axes in figure.axes]  # with letters
        assert not any(one.overlaps(other) for i, one in enumerate(places) for other in places[:i])
        assert min(place.y0 for place in places) > 0 and max(place.y1 for place in places) < figure.bbox.y1

    def test_cells_shrink_where_there_are_many(self):
        figure = figures.attention_figure(*word_model(["the"] * 150), kinds=["encoder"])
        assert max(figure.get_size_inches()) == pytest.approx(24)

    def test_what_does_not_fit_is_refused(self):
        with pytest.raises(ValueError, match=r"room for 625 tokens.*it would need 8\d\d and 4\d\d; choose fewer"):
            figures.attention_figure(*word_model(["the"] * 400), kinds=["encoder"], layers=[0, 1])

    @pytest.mark.parametrize(
        ("choice", "told"),
        [
            ({"layers": [2]}, "A layer of encoder self-attention must be one of 0 to 1: 2 is none."),
            ({"layers": [-1]}, "A layer of encoder self-attention must be one of 0 to 1: -1 is none."),
            ({"kinds": ["cross"], "heads": [0, 2]}, "A head of cross-attention must be one of 0 to 1: 2 is none."),
            ({"kinds": ["crosswise"]}, "Kinds of attention are encoder, cross, decoder: 'crosswise' is none."),
        ],
    )
    def test_what_the_model_does_not_have_is_refused(self, choice, told):
        with pytest.raises(ValueError, match=f"^{told}$"):
            figures.attention_figure(*word_model(), **choice)

    @pytest.mark.parametrize("fonts", ["all", "one"])
    @pytest.mark.parametrize("ending", BEGINNINGS)
    def test_any_text_is_drawn_without_a_warning(self, tmp_path, monkeypatch, caplog, fonts, ending):
        if fonts == "one":
            monkeypatch.setattr(fonts_module, "installed_fonts", lambda: [fonts_module.DEFAULT_FONT])
        texts = [*SCRIPTS, *EMOJI, *FORMS, *CONTROLS, *SPACES, "$x^2$", "\\alpha", "$"]
        source = [text[i : i + 6] for text in texts for i in range(0, min(len(text), 24), 6)]
        path = tmp_path / f"attention.{ending}"
        figure = figures.attention_figure(*word_model(source[:190], layers=1), kinds=["cross"])
        figures.save(figure, path)
        assert path.read_bytes().startswith(BEGINNINGS[ending])
        assert all(message.startswith("No installed font has") for message in caplog.messages)
        assert len(caplog.messages) <= 1


class TestSave:
    @pytest.mark.parametrize("ending", ["png", "svg", "pdf", "PNG"])
    def test_the_ending_says_how(self, run, tmp_path, ending):
        path = tmp_path / f"curves.{ending}"
        figures.save(figures.learning_curves([run()]), path)
        assert path.read_bytes().startswith(BEGINNINGS[ending.lower()])

    def test_letters_of_svg_are_shapes_that_look_the_same_everywhere(self, tmp_path):
        path = tmp_path / "attention.svg"
        figures.save(figures.attention_figure(*word_model()), path)
        assert "<text" not in path.read_text() and "<path" in path.read_text()

    @pytest.mark.parametrize("name", ["curves", "curves.doc", ".png"])
    def test_another_ending_is_refused(self, name, tmp_path):
        with pytest.raises(ValueError, match=rf"must end in one of .png, .svg, .pdf: .*{name} does not"):
            figures.save(figures.Figure(), tmp_path / name)
        assert list(tmp_path.iterdir()) == []

    def test_a_failure_leaves_what_was_there(self, tmp_path, monkeypatch):
        def fail(figure, path, **options):
            path.write_bytes(b"half")
            raise OSError("No space left on device")

        path = tmp_path / "curves.png"
        path.write_bytes(b"before")
        monkeypatch.setattr(figures.Figure, "savefig", fail)
        with pytest.raises(OSError, match="No space left"):
            figures.save(figures.Figure(), path)
        assert path.read_bytes() == b"before" and list(tmp_path.iterdir()) == [path]

    def test_pyplot_is_not_needed(self):
        program = "import sys, mlx_transformer.plotting.figures; sys.exit('matplotlib.pyplot' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0


class TestWithoutMatplotlib:
    @pytest.mark.parametrize("arguments", [["plot", "run"], ["attention", "Hi", "--output", "a.png"]])
    def test_the_remedy_is_told(self, invoke, monkeypatch, arguments):
        for name in [name for name in sys.modules if name.startswith(("matplotlib", "mlx_transformer.plotting"))]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        monkeypatch.delattr(mt, "plotting")
        told = error_line(invoke(*arguments, status=1))
        assert "Pictures need matplotlib, which is not installed: pip install 'mlx_transformer[train]'." in told


class TestPlot:
    def test_runs_become_a_picture_in_this_folder(self, invoke, run, tmp_path, monkeypatch):
        runs = [run("one"), run("two", [*STEPS, *SCORED])]
        monkeypatch.chdir(tmp_path)
        result = invoke("plot", *runs)
        assert result.stdout == "Picture: curves.png\n" and result.stderr == ""
        assert (tmp_path / "curves.png").read_bytes().startswith(BEGINNINGS["png"])

    def test_output_says_where(self, invoke, run, tmp_path):
        path = tmp_path / "losses.svg"
        assert invoke("plot", run(), "--output", path).stdout == f"Picture: {path}\n"
        assert path.read_bytes().startswith(BEGINNINGS["svg"])

    @pytest.mark.parametrize(
        ("arguments", "told"),
        [
            (["none"], "there is no none/log.jsonl; give the --output of a training."),
            (["run", "none"], "there is no none/log.jsonl"),
            (["empty"], "empty/log.jsonl has none yet; wait"),
            (["run", "--output", "curves.doc"], "must end in one of .png, .svg, .pdf: curves.doc does not."),
            (["run", "--output", "none/curves.png"], "--output needs an existing folder: none is none."),
        ],
    )
    def test_what_cannot_be_drawn_is_one_line(self, invoke, run, tmp_path, monkeypatch, arguments, told):
        run(), run("empty", [START])
        monkeypatch.chdir(tmp_path)
        assert told in error_line(invoke("plot", *arguments, status=1))

    def test_without_a_run_it_is_misuse(self, invoke):
        assert "RUN..." in invoke("plot", status=2).stderr


class TestAttentionCommand:
    TEXT = "I am very tired today."

    @pytest.fixture
    def seen(self, monkeypatch):
        """The arguments of `attention_figure`, which draws nothing."""
        calls = []
        monkeypatch.setattr(figures, "attention_figure", lambda *given: calls.append(given) or figures.Figure())
        return calls

    def test_the_picture_is_written(self, invoke, tmp_path):
        path = tmp_path / "attention.svg"
        result = invoke("attention", self.TEXT, "--output", path)
        assert result.stdout == f"Picture: {path}\n" and result.stderr == ""
        assert path.read_bytes().startswith(BEGINNINGS["svg"])

    def test_a_text_and_what_the_model_makes_of_it(self, invoke, seen, tmp_path):
        invoke("attention", self.TEXT, "--output", tmp_path / "a.png")
        ((_, tokenizer, source, target, *choice),) = seen
        model, _ = mt.load()
        ((best, *_),) = mt.generate_hypotheses(model, tokenizer, [self.TEXT])
        assert source == tokenizer.encode(self.TEXT)
        assert target == [tokenizer.start_id, *best.ids, tokenizer.eos_id]
        assert choice == [(), (), ()]

    def test_a_target_may_be_given_and_panels_chosen(self, invoke, seen, tmp_path):
        choice = ["--kind", "cross", "--kind", "encoder", "--layer", "0", "--head", "3", "--head", "1"]
        invoke("attention", self.TEXT, "--target", "Je dors.", "--output", tmp_path / "a.png", *choice)
        ((_, tokenizer, source, target, *choice),) = seen
        assert target == [tokenizer.start_id, *tokenizer.encode_target("Je dors.")]
        assert choice == [("cross", "encoder"), (0,), (3, 1)]

    @pytest.mark.parametrize("target", [[], ["--target", "Je dors."]])
    def test_a_source_prefix_is_read_by_the_model(self, invoke, seen, tmp_path, target):
        invoke("attention", "I sleep.", *target, "--source-prefix", "Now ", "--output", tmp_path / "a.png")
        ((_, tokenizer, source, *_),) = seen
        assert source == tokenizer.encode("Now I sleep.")

    @pytest.mark.parametrize("target", [[], ["--target", "le chat"]], ids=["found", "given"])
    @pytest.mark.parametrize(("role", "place"), [("start", 0), ("first", 1)])
    def test_languages_are_read_by_the_model(self, invoke, seen, tmp_path, monkeypatch, target, role, place):
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
    def test_what_is_too_long_is_cut_and_told(self, invoke, seen, tmp_path, target, name):
        result = invoke("attention", "word " * 200, *target, "--output", tmp_path / "a.png")
        assert result.stderr == f"Warning: {name} is longer than the model can read and was cut.\n"
        ((model, tokenizer, source, *_),) = seen
        assert len(source) == model.config.encoder.max_length and source[-1] == tokenizer.eos_id

    @pytest.mark.parametrize(
        ("arguments", "told"),
        [
            (["Hi", "--layer", "9"], "A layer of encoder self-attention must be one of 0 to 2: 9 is none."),
            (["Hi", "--kind", "cross", "--head", "4"], "A head of cross-attention must be one of 0 to 3: 4 is none."),
            (["Hi", "--model", "none", "--output", "a.doc"], "must end in one of .png, .svg, .pdf: a.doc does not."),
            (["Hi", "--model", "none", "--output", "none/a.png"], "--output needs an existing folder"),
            (["Hi", "--task", "x"], "--task must be left out"),
            ([" "], "TEXT must have a letter to look at: it is blank."),
        ],
    )
    def test_what_cannot_be_drawn_is_one_line(self, invoke, tmp_path, monkeypatch, arguments, told):
        monkeypatch.chdir(tmp_path)
        given = arguments if "--output" in arguments else [*arguments, "--output", "a.png"]
        assert told in error_line(invoke("attention", *given, status=1))
        assert list(tmp_path.iterdir()) == []

    def test_kinds_are_those_that_can_be_drawn(self):
        (option,) = [option for option in attention.command.params if option.name == "kinds"]
        assert set(option.type.choices) == figures.ATTENTION_KINDS.keys()

    def test_what_no_font_has_is_told_in_one_line(self, tmp_path):
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
        assert done.stderr.startswith("No installed font has U+4E2D, U+6587, shown by code:")
