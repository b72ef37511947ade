"""Learning curves: reading logs and drawing curves."""

import pytest

pytest.importorskip("matplotlib")

from support.plots import (
    FIRST,
    LOG,
    SCORED,
    START,
    STEPS,
    VALIDATIONS,
    curves,
    titles,
)

import mlx_transformer as mt
from mlx_transformer.plotting import figures, learning_curves


class TestLogs:
    def test_curve_sorts_one_event_and_drops_non_numbers(self):
        values = [(30, 1.0), (10, 2), (20, float("nan")), (40, None), (50, "1"), (None, 3.0), ([1], 4.0), (60, 5.0)]
        log = [{"event": "step", "step": step, "loss": value} for step, value in values]
        log += [{"event": "other", "step": 5, "loss": 1.0}, {"event": "step", "step": 7}, {}]
        assert learning_curves.curve(log, "step", "loss") == [(10, 2), (30, 1.0), (60, 5.0)]

    def test_repeated_steps_keep_the_last_value(self):
        log = [{"event": "step", "step": step, "loss": loss} for step, loss in [(1, 9.0), (2, 8.0), (2, 7.0)]]
        assert learning_curves.curve(log, "step", "loss") == [(1, 9.0), (2, 7.0)]

    def test_best_point_is_the_last_best_validation(self):
        assert learning_curves.best_point(LOG, "loss") == (30, 4.0)
        assert learning_curves.best_point(LOG, "bleu") is None
        assert learning_curves.best_point(STEPS, "loss") is None

    @pytest.mark.parametrize("end", ['{"event": "st', '{"event": "step", "step": 60, "loss": 1.0}', "7\n"])
    def test_incomplete_last_line_is_ignored(self, run, end):
        expected = [(20, 6.0), (40, 3.0)] + [(60, 1.0)] * end.endswith("}")
        assert learning_curves.curve(learning_curves.read_log(run(end=end)), "step", "loss") == expected

    @pytest.mark.parametrize(
        "line",
        [
            "[" * 100_000,
            '{"event": "step", "step": 60, "loss": 1' + "0" * 400 + "}",
            '{"event": "step", "step": [1], "loss": 1}',
            '{"step": null}',
            '{"event": "start", "config": 5}',
        ],
    )
    def test_odd_lines_are_ignored(self, run, line):
        folder = run(end=line + "\n")
        assert learning_curves.curve(learning_curves.read_log(folder), "step", "loss") == [(20, 6.0), (40, 3.0)]
        learning_curves.plot_learning_curves([folder])

    def test_folder_without_a_log_is_rejected(self, tmp_path):
        for folder in (tmp_path, tmp_path / "none"):
            with pytest.raises(FileNotFoundError, match=f"there is no {folder}/log.jsonl: give the folder"):
                learning_curves.read_log(folder)

    @pytest.mark.parametrize("entries", [[], [START], [{"event": "step", "step": 1}]])
    def test_log_without_losses_is_rejected(self, run, entries):
        with pytest.raises(ValueError, match=r"run/log.jsonl has none yet: wait"):
            learning_curves.read_log(run(entries=entries))

    def test_run_names_are_folder_names_or_paths(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert learning_curves.run_names(["a/x", "b/y/", "."]) == ["x", "y", tmp_path.name]
        assert learning_curves.run_names(["a/x", "b/x"]) == ["a/x", "b/x"]


class TestLearningCurves:
    def test_every_logged_metric_is_drawn_with_a_star_at_the_best(self, run):
        figure = learning_curves.plot_learning_curves([run(entries=[START, FIRST, *STEPS, *SCORED])])
        assert titles(figure) == ["loss (nats per token)", "BLEU", "chrF", "learning rate"]
        loss, bleu, chrf, rate = figure.axes
        assert curves(loss) == [[(1, 9), (20, 6), (40, 3)], [(20, 5), (30, 4), (40, 4.5)], [(30, 4)]]
        assert curves(bleu) == [[(20, 10), (30, 15), (40, 20)], [(30, 15)]]
        assert curves(chrf) == [[(20, 20), (30, 30), (40, 40)], [(30, 30)]]
        assert curves(rate) == [[(20, 0.1), (40, 0.2)]]
        assert [line.get_marker() for line in loss.lines] == ["None", "o", "*"]
        assert {axes.get_xlim() for axes in figure.axes} == {loss.get_xlim()}

    def test_metrics_without_values_get_no_panel(self, run):
        assert titles(learning_curves.plot_learning_curves([run()])) == ["loss (nats per token)", "learning rate"]
        figure = learning_curves.plot_learning_curves([run("validated", VALIDATIONS)])
        assert titles(figure) == ["loss (nats per token)"]

    def test_a_metric_of_one_run_only_is_drawn(self, run):
        figure = learning_curves.plot_learning_curves([run("plain"), run("scored", SCORED)])
        bleu = figure.axes[titles(figure).index("BLEU")]
        assert [points for points in curves(bleu) if points] == [[(20, 10), (30, 15), (40, 20)], [(30, 15)]]

    def test_runs_differ_in_colour_or_line_style(self, run):
        folders = [run(f"run {number}") for number in range(16)]
        figure = learning_curves.plot_learning_curves(folders)
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

    def test_training_losses_with_label_smoothing_are_named_so(self, run):
        start = START | {"config": {"label_smoothing": 0.1}}
        (legend,) = learning_curves.plot_learning_curves([run("a"), run("b", [start, *LOG])]).legends
        assert [text.get_text() for text in legend.get_texts()][2] == "training, with label smoothing"

    @pytest.mark.parametrize("scores", [(20, 100.0), (97.9, 99.99), (100.0, 100.0), (99.5, 100.00000000000004)])
    def test_scores_have_no_ticks_above_100(self, run, scores):
        log = [*STEPS, *(entry | {"bleu": score} for entry, score in zip(VALIDATIONS, scores, strict=False))]
        (axes,) = [
            axes
            for axes in learning_curves.plot_learning_curves(run(entries=log)).axes
            if axes.get_title("left") == "BLEU"
        ]
        ticks, (bottom, top) = axes.get_yticks(), axes.get_ylim()
        assert len(ticks) > 2 and bottom <= min(ticks) and max(ticks) == 100 and top > max(scores)

    def test_axes_are_not_zoomed_to_noise(self, run):
        entries = [{"event": "validation", "step": i, "loss": 2 + i / 100, "bleu": 1 + i / 10} for i in range(3)]
        loss, bleu = learning_curves.plot_learning_curves([run(entries=entries)]).axes
        assert loss.get_ylim() == pytest.approx((1.76, 2.26)) and bleu.get_ylim() == pytest.approx((0, 3.6))
        small = [{"event": "validation", "step": i, "loss": loss} for i, loss in enumerate((0.3, 0.2, 0.05))]
        (loss,) = learning_curves.plot_learning_curves([run("small", small)]).axes
        assert loss.get_yscale() == "log" and loss.get_ylim()[0] > 0.03
        wide = [{"event": "validation", "step": i, "loss": 2.0 + i} for i in range(3)]
        (loss,) = learning_curves.plot_learning_curves([run("wide", wide)]).axes
        assert loss.get_ylim()[0] > 1.5 and loss.get_ylim()[1] < 4.5

    def test_run_names_are_shown_verbatim(self, run, tmp_path):
        names = ["_run", "$x^2$", "50%_#1", "x" * 50]
        figure = learning_curves.plot_learning_curves([run(name) for name in names])
        (legend,) = figure.legends
        texts = legend.get_texts()
        assert [text.get_text() for text in texts[:4]] == names
        assert not any(text.get_parse_math() for text in texts)
        figures.save(figure, tmp_path / "curves.png")

    @pytest.mark.parametrize(
        ("losses", "scale"),
        [([9.0, 1.5], "log"), ([900.0, 0.1], "log"), ([9.0, 1e-4], "log"), ([3.0, 2.9], "linear"), ([9, 0], "linear")],
    )
    def test_wide_loss_ranges_use_a_logarithmic_scale(self, run, losses, scale, tmp_path):
        entries = [{"event": "step", "step": step, "loss": loss} for step, loss in enumerate(losses)]
        figure = learning_curves.plot_learning_curves([run(entries=entries)])
        figures.save(figure, tmp_path / "curves.svg")
        (axes,) = figure.axes
        low, high = axes.get_ylim()
        assert axes.get_yscale() == scale
        assert 2 <= sum(low <= tick <= high for tick in axes.get_yticks()) <= 10

    def test_a_single_run_is_drawn_by_a_public_function(self, run):
        folder = run()
        for runs in (folder, str(folder), [folder]):
            assert titles(mt.plot_learning_curves(runs)) == ["loss (nats per token)", "learning rate"]
