"""Attention maps: panels, labels, cell sizes and limits."""

import mlx.core as mx
import numpy as np
import pytest
from support.texts import CONTROLS, EMOJI, FORMS, SCRIPTS, SPACES

import mlx_transformer as mt

pytest.importorskip("matplotlib")
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from support.plots import (
    BEGINNINGS,
    SOURCE,
    TARGET,
    drawn,
    panels,
    word_model,
)

from mlx_transformer.config.model import AverageAttentionConfig
from mlx_transformer.plotting import attention_maps, figures
from mlx_transformer.plotting import fonts as fonts_module

NO_LANGUAGES = {"source_language": None, "target_language": None, "source_prefix": None}


class TestAttention:
    def test_defaults_are_the_last_layer_and_the_mean_of_heads(self):
        model, tokenizer, source, target = word_model()
        weights = mt.attention_ids(model, mx.array([source]), mx.array([target[:-1]]))
        found = panels(attention_maps.attention_figure(model, tokenizer, source, target))
        assert list(found) == [
            f"{name}\nlayer 2 of 2 (index 1)\nmean of 2 heads"
            for name in ("encoder self-attention", "cross-attention", "decoder self-attention")
        ]
        for axes, layers in zip(found.values(), (weights.encoder, weights.cross, weights.decoder), strict=True):
            expected = np.array(layers[1][0]).mean(axis=0)
            shown = drawn(axes)
            assert np.allclose(np.nan_to_num(shown), expected, atol=1e-6)
            assert np.isnan(shown).sum() == (3 if layers is weights.decoder else 0)  # what lies ahead of three queries

    def test_each_layer_and_head_has_a_panel(self):
        model, tokenizer, source, target = word_model()
        weights = mt.attention_ids(model, mx.array([source]), mx.array([target[:-1]]))
        figure = attention_maps.attention_figure(
            model, tokenizer, source, target, ["cross"], layers=[1, 0], heads=[1, 0]
        )
        found = panels(figure)
        assert list(found) == [
            f"cross-attention\nlayer {i + 1} of 2 (index {i})\nhead {j + 1} of 2 (index {j})"
            for i in (1, 0)
            for j in (1, 0)
        ]
        for axes, (i, j) in zip(found.values(), [(1, 1), (1, 0), (0, 1), (0, 0)], strict=True):
            assert np.allclose(drawn(axes), np.array(weights.cross[i][0, j]), atol=1e-6)

    def test_bytes_of_a_character_share_a_row_and_a_column(self):
        """é has two bytes, € three."""
        source, target = ["<0xC3>", "<0xA9>", "a"], ["<s>", "<0xE2>", "<0x82>", "<0xAC>", "b"]
        model, tokenizer, source_ids, target_ids = word_model(source, target)
        weights = mt.attention_ids(model, mx.array([source_ids]), mx.array([target_ids[:-1]]))
        figure = attention_maps.attention_figure(model, tokenizer, source_ids, target_ids)
        _, cross, decoder = panels(figure).values()
        expected = np.array(weights.cross[1][0]).mean(axis=0)
        expected = np.stack([expected[:3].mean(axis=0), expected[3]])
        assert np.allclose(drawn(cross), np.stack([expected[:, :2].sum(axis=1), expected[:, 2]], axis=1), atol=1e-6)
        assert [text.get_text() for text in cross.get_xticklabels()] == ["é", "a"]
        assert [text.get_text() for text in cross.get_yticklabels()] == ["€", "b"]
        assert [text.get_text() for text in decoder.get_xticklabels()] == ["<s>", "€"]
        assert np.allclose(drawn(decoder).sum(axis=1), 1, atol=1e-6)

    def test_few_panels_stand_side_by_side(self):
        figure = attention_maps.attention_figure(*word_model())
        tops = {round(axes.get_position().y1, 6) for axes in panels(figure).values()}
        assert len(tops) == 1

    def test_rows_are_queries_and_columns_are_keys(self):
        figure = attention_maps.attention_figure(*word_model())
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

    def test_pieces_are_not_parsed_as_math(self):
        (axes,) = panels(attention_maps.attention_figure(*word_model(["$x^2$", "$"]), kinds=["encoder"])).values()
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
    def test_cells_are_equal_squares_and_panels_do_not_overlap(self, source, target):
        figure = attention_maps.attention_figure(*word_model(source, target), layers=[0, 1], heads=[0, 1])
        found = list(panels(figure).values())
        boxes = [axes.get_position().transformed(figure.transFigure - figure.dpi_scale_trans) for axes in found]
        shapes = [drawn(axes).shape for axes in found]
        sizes = [(box.height / rows, box.width / columns) for box, (rows, columns) in zip(boxes, shapes, strict=True)]
        assert len(sizes) == 12 and np.ptp(sizes) < 1e-9 and sizes[0][0] == pytest.approx(0.2)
        renderer = FigureCanvasAgg(figure).get_renderer()
        places = [axes.get_tightbbox(renderer) for axes in figure.axes]  # with letters
        assert not any(one.overlaps(other) for i, one in enumerate(places) for other in places[:i])
        assert min(place.y0 for place in places) > 0 and max(place.y1 for place in places) < figure.bbox.y1

    def test_titles_of_a_row_stand_level(self):
        figure = attention_maps.attention_figure(*word_model(["a", "b"], ["<s>", "Donaudampfschiff", "le", "la"]))
        figure.draw_without_rendering()
        labels = [label for axes in panels(figure).values() for label in axes.get_children() if isinstance(label, Text)]
        boxes = {label.get_text(): label.get_window_extent() for label in labels if "layer" in label.get_text()}
        assert len(boxes) == 3 and np.ptp([box.y0 for box in boxes.values()]) < 0.5
        highest = max(axes.xaxis.label.get_window_extent().y1 for axes in panels(figure).values())
        assert 0 < min(box.y0 for box in boxes.values()) - highest < 0.2 * figures.DPI

    def test_a_text_in_capitals_is_explained(self):
        model, tokenizer = mt.load()
        texts = [
            [text.get_text() for text in mt.plot_attention(model, tokenizer, source, kinds="cross").findobj(Text)]
            for source in ("I AM TIRED TODAY.", "I am tired today.")
        ]
        assert [attention_maps.RECASED in shown for shown in texts] == [True, False]

    def test_many_cells_shrink(self):
        figure = attention_maps.attention_figure(*word_model(["the"] * 150), kinds=["encoder"])
        assert 22 < max(figure.get_size_inches()) <= 24

    def test_too_large_figures_are_rejected(self):
        with pytest.raises(ValueError, match=r"room for 625 cells.*needs 8\d\d and 4\d\d: choose fewer"):
            attention_maps.attention_figure(*word_model(["the"] * 400), kinds=["encoder"], layers=[0, 1])

    @pytest.mark.parametrize(
        ("choice", "message"),
        [
            ({"layers": [2]}, "A layer of encoder self-attention must be from 0 to 1, not 2."),
            ({"layers": [-1]}, "A layer of encoder self-attention must be from 0 to 1, not -1."),
            ({"kinds": ["cross"], "heads": [0, 2]}, "A head of cross-attention must be from 0 to 1, not 2."),
            ({"kinds": ["crosswise"]}, "A kind of attention must be one of encoder, cross, decoder, not 'crosswise'."),
        ],
    )
    def test_unknown_kinds_layers_and_heads_are_rejected(self, choice, message):
        with pytest.raises(ValueError, match=f"^{message}$"):
            attention_maps.attention_figure(*word_model(), **choice)

    def test_texts_are_drawn_by_a_public_function(self):
        model, tokenizer, source, target = word_model()
        texts = " ".join(SOURCE[:-1]), " ".join(TARGET[1:-1])
        ids = attention_maps.encode_pair(model, tokenizer, *texts, model.search_defaults, **NO_LANGUAGES)
        expected = panels(attention_maps.attention_figure(model, tokenizer, ids.source, ids.target, ["cross"], [0]))
        for kinds in ("cross", ["cross"]):
            figure = mt.plot_attention(model, tokenizer, *texts, kinds=kinds, layers=[0])
            assert (
                list(panels(figure)) == list(expected) == ["cross-attention\nlayer 1 of 2 (index 0)\nmean of 2 heads"]
            )
            (axes,), (same,) = panels(figure).values(), expected.values()
            assert np.array_equal(drawn(axes), drawn(same))
        assert (
            len(drawn(*panels(mt.plot_attention(model, tokenizer, texts[0], kinds="decoder", max_tokens=3)).values()))
            == 3
        )
        with pytest.raises(TypeError, match=r"^plot_attention\(\) .*'kind'. Similar ones are kinds"):
            mt.plot_attention(model, tokenizer, *texts, kind="cross")

    @pytest.mark.parametrize("fonts", ["all", "one"])
    @pytest.mark.parametrize("ending", BEGINNINGS)
    @pytest.mark.slow
    def test_any_text_is_drawn_without_warnings(self, tmp_path, monkeypatch, caplog, fonts, ending):
        if fonts == "one":
            monkeypatch.setattr(fonts_module, "installed_fonts", lambda: [fonts_module.DEFAULT_FONT])
        texts = [*SCRIPTS, *EMOJI, *FORMS, *CONTROLS, *SPACES, "$x^2$", "\\alpha", "$"]
        source = [text[i : i + 6] for text in texts for i in range(0, min(len(text), 24), 6)]
        path = tmp_path / f"attention.{ending}"
        figure = attention_maps.attention_figure(*word_model(source[:190], layers=1), kinds=["cross"])
        figures.save(figure, path)
        assert path.read_bytes().startswith(BEGINNINGS[ending])
        assert all(message.startswith("No installed font covers") for message in caplog.messages)
        assert len(caplog.messages) <= 1


@pytest.mark.parametrize(
    "options",
    [
        {"decoder_self_attention": "ssru"},
        {"decoder_self_attention": "average", "average_attention": AverageAttentionConfig()},
    ],
)
def test_a_decoder_without_self_attention_has_no_panels_of_it(options):
    model, tokenizer, source, target = word_model(**options)
    found = panels(attention_maps.attention_figure(model, tokenizer, source, target))
    assert [name.partition("\n")[0] for name in found] == ["encoder self-attention", "cross-attention"]
    message = "decoder has no self-attention, so it has no attention weights of kind 'decoder': choose"
    with pytest.raises(ValueError, match=message):
        attention_maps.attention_figure(model, tokenizer, source, target, ["cross", "decoder"])
