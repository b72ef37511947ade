"""Generation of texts: order, blank lines, laziness, truncation, and independence of batching."""

import dataclasses
import logging
import random
from collections import Counter
from functools import partial

import mlx.core as mx
import pytest

from mlx_transformer.config.alignment import AlignmentConfig
from mlx_transformer.config.model import ModelConfig, StackConfig
from mlx_transformer.config.search import SearchConfig
from mlx_transformer.config.tokenizer import TokenizerConfig
from mlx_transformer.decoding.batch_sizes import POWERS
from mlx_transformer.decoding.beam_search import generate_ids
from mlx_transformer.decoding.inputs import max_target_tokens
from mlx_transformer.inference import engine, generation
from mlx_transformer.inference.batching import SourceLine, encode_sources, encode_truncated
from mlx_transformer.inference.generation import generate, generate_hypotheses, stream_generate
from mlx_transformer.model.transformer import Transformer
from mlx_transformer.tokenization.tokenizer import Tokenizer

WORDS = ["ab", "cde", "fg", "hijk", "l", "mno"]
LIMIT = 40  # source positions: no multiple of 16, so that the last padded length is an odd one
GREEDY = SearchConfig(max_tokens=6)
BEAM = SearchConfig(beam_size=3, num_hypotheses=2, max_tokens=6)


@pytest.fixture(scope="module")
def tokenizer():
    texts = [" ".join(WORDS)] * 3
    return Tokenizer.train(texts, texts, 300)


@pytest.fixture(scope="module")
def model(tokenizer):
    mx.random.seed(7)
    size = tokenizer.source_vocab_size
    encoder = StackConfig(num_layers=1, num_heads=2, mlp_dims=32, max_length=LIMIT)
    decoder = dataclasses.replace(encoder, max_length=12)
    model = Transformer(ModelConfig(size, size, 32, encoder, decoder, tie_output=False), GREEDY)
    # Weights that let the source decide: an untrained model would say the same to every one. The end is not rare.
    model.decoder.layers[0].cross_attention.out_proj.weight *= 8
    model.output.weight[model.config.eos_id] *= 3
    model.eval()
    return model


@pytest.fixture
def uncompiled():
    """Compilation is disabled, because every trace takes seconds on a CPU."""
    mx.disable_compile()
    yield
    mx.enable_compile()


def make_lines(count, longest=12, seed=0):
    """Texts of mixed lengths, neighbours of different length."""
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(1, longest))) for _ in range(count)]


def essence(hypotheses):
    return [(h.ids, h.text, h.finish_reason, h.truncated, pytest.approx(h.score, abs=2e-3)) for h in hypotheses]


def alone(model, tokenizer, lines, search):
    """Search each line separately, without padding."""
    results = []
    for line in lines:
        ids = tokenizer.encode(line)
        (hypotheses,) = generate_ids(
            model, mx.array([ids], mx.int32), search, [max_target_tokens(model, len(ids), search)]
        )
        results.append([dataclasses.replace(h, text=tokenizer.decode(h.ids)) for h in hypotheses])
    return results


@pytest.fixture
def shapes(monkeypatch):
    """Record the shapes of sources that reach the search."""
    seen = Counter()

    def counting(model, source, search, **asked):
        seen[source.shape] += 1
        return generate_ids(model, source, search, **asked)

    monkeypatch.setattr(engine, "generate_ids", counting)
    return seen


def with_lengths(tokenizer, **changes):
    """A copy of a tokenizer that knows other lengths of its training."""
    return Tokenizer(tokenizer.source, tokenizer.target, dataclasses.replace(tokenizer.config, **changes))


class TestLongTexts:
    TEXT = "  Ab cde fg.  Hijk l mno! Ab? "
    SENTENCES = ("Ab cde fg.", "Hijk l mno!", "Ab?")

    def joined(self, model, tokenizer):
        first, second, third = generate(model, tokenizer, list(self.SENTENCES))
        return f"  {first}  {second} {third} "

    def test_texts_longer_than_those_of_the_training_are_split(self, model, tokenizer):
        length = len(tokenizer.encode(self.TEXT))
        whole = generate(model, tokenizer, self.TEXT)
        for limit, expected in ((None, whole), (length, whole), (length - 1, self.joined(model, tokenizer))):
            assert generate(model, with_lengths(tokenizer, max_sentence_tokens=limit), self.TEXT) == expected
        assert whole != self.joined(model, tokenizer)

    def test_splitting_can_be_chosen(self, model, tokenizer):
        short = with_lengths(tokenizer, max_sentence_tokens=1)
        assert generate(model, short, [self.TEXT, "ab"], split_sentences=False) == generate(
            model, tokenizer, [self.TEXT, "ab"]
        )
        assert generate(model, tokenizer, self.TEXT, split_sentences=True) == self.joined(model, tokenizer)

    def test_texts_with_a_target_prefix_stay_whole(self, model, tokenizer):
        short = with_lengths(tokenizer, max_sentence_tokens=1)
        whole = generate(model, tokenizer, self.TEXT, target_prefix="ab")
        assert generate(model, short, self.TEXT, target_prefix="ab") == whole

    def test_errors_count_texts_not_sentences(self, model, tokenizer, monkeypatch):
        def fail_for_hijk(model, tokenizer, numbered):
            if any("Hijk" in line.text for _, line in numbered):
                raise generation.TextError("broken.")
            return encode(model, tokenizer, numbered)

        encode = generation._encode_lines
        monkeypatch.setattr(generation, "_encode_lines", fail_for_hijk)
        short = with_lengths(tokenizer, max_sentence_tokens=1)
        with pytest.raises(ValueError, match=r"^Line 2: broken\.$"):
            generate(model, short, ["Ab. Cde. Fg.", self.TEXT])

    def test_results_that_are_much_too_short_are_marked(self, model, tokenizer):
        lines = ["ab cde fg hijk l mno ab cde fg", "ab"]  # more and fewer than 10 tokens
        (best,), _ = generate_hypotheses(model, tokenizer, lines)
        ratio = len(best.ids) / len(tokenizer.encode(lines[0]))
        for limit, expected in ((0.0, [False, False]), (ratio, [False, False]), (ratio + 0.01, [True, False])):
            results = generate_hypotheses(model, with_lengths(tokenizer, min_length_ratio=limit), lines)
            assert [row[0].too_short for row in results] == expected


class TestTexts:
    def test_string_gives_string_and_list_gives_list(self, model, tokenizer):
        text = generate(model, tokenizer, "ab cde")
        assert isinstance(text, str) and text
        assert generate(model, tokenizer, ["ab cde"]) == [text]
        assert generate(model, tokenizer, []) == []
        assert generate(model, tokenizer, "") == "" and generate(model, tokenizer, ["", " \t"]) == ["", ""]

    def test_text_is_the_best_hypothesis(self, model, tokenizer):
        lines = make_lines(5)
        best = [hypotheses[0] for hypotheses in generate_hypotheses(model, tokenizer, lines, BEAM)]
        assert generate(model, tokenizer, lines, BEAM) == [h.text for h in best]
        assert [tokenizer.decode(h.ids) for h in best] == [h.text for h in best]

    def test_search_defaults_of_the_model_are_used(self, model, tokenizer):
        default = list(generate_hypotheses(model, tokenizer, make_lines(4)))
        assert default == list(generate_hypotheses(model, tokenizer, make_lines(4), model.search_defaults))
        assert {len(hypotheses) for hypotheses in default} == {1}

    def test_results_differ_between_lines(self, model, tokenizer):
        """Makes sure that the tests of order are not vacuous."""
        texts = [h[0].text for h in alone(model, tokenizer, make_lines(12), GREEDY)]
        assert len(set(texts)) > 6

    def test_n_best(self, model, tokenizer):
        for hypotheses in generate_hypotheses(model, tokenizer, make_lines(6), BEAM):
            assert len(hypotheses) == 2
            assert hypotheses[0].score >= hypotheses[1].score
            assert hypotheses[0].ids != hypotheses[1].ids


class TestOrder:
    def test_results_keep_the_order_of_lines(self, model, tokenizer):
        lines = make_lines(12)
        expected = alone(model, tokenizer, lines, GREEDY)
        got = list(generate_hypotheses(model, tokenizer, lines, GREEDY, batch_tokens=64))
        assert [essence(h) for h in got] == [essence(h) for h in expected]

    def test_blank_lines_give_one_empty_hypothesis(self, model, tokenizer, shapes):
        lines = ["", *make_lines(2), "  ", "\t", *make_lines(1, seed=1), "", "\u3000"]
        results = list(generate_hypotheses(model, tokenizer, lines, BEAM))
        assert len(results) == len(lines)
        for line, hypotheses in zip(lines, results, strict=True):
            if line.strip():
                assert len(hypotheses) == 2 and hypotheses[0].ids
            else:
                assert [(h.ids, h.text, h.score, h.finish_reason) for h in hypotheses] == [([], "", 0.0, "stop")]
        assert sum(shapes.values()) == 1
        shapes.clear()
        assert [h.text for (h,) in generate_hypotheses(model, tokenizer, ["", " "], BEAM)] == ["", ""]
        assert not shapes

    def test_line_without_tokens_counts_as_blank(self, model, tokenizer, monkeypatch):
        """Such as a line of invisible characters, without an end token."""
        invisible, (line,) = "\u200b", make_lines(1)
        encode = tokenizer.encode_batch
        monkeypatch.setattr(
            tokenizer, "encode_batch", lambda texts, *_: [[] if t == invisible else encode([t])[0] for t in texts]
        )
        expected = generate(model, tokenizer, line)
        assert generate(model, tokenizer, [invisible, line, invisible]) == ["", expected, ""]
        assert generate(model, tokenizer, [invisible]) == [""]

    def test_no_lines(self, model, tokenizer):
        assert list(generate_hypotheses(model, tokenizer, [])) == []


class TestLaziness:
    def test_lines_are_read_in_windows(self, model, tokenizer, monkeypatch):
        monkeypatch.setattr(generation, "READ_AHEAD", 4)
        read = []

        def lines():
            for line in make_lines(11):
                read.append(line)
                yield line

        results = generate_hypotheses(model, tokenizer, lines(), GREEDY)
        assert read == []
        seen = []
        for number, hypotheses in enumerate(results):
            seen.append(hypotheses)
            assert len(read) == min(4 * (number // 4 + 1), 11)
        assert [essence(h) for h in seen] == [essence(h) for h in alone(model, tokenizer, make_lines(11), GREEDY)]

    def test_endless_input(self, model, tokenizer, monkeypatch):
        monkeypatch.setattr(generation, "READ_AHEAD", 2)

        def lines():
            while True:
                yield "ab"

        results = generate_hypotheses(model, tokenizer, lines(), GREEDY)
        assert next(results)[0].text == next(results)[0].text == next(results)[0].text

    def test_first_results_come_before_the_window_is_finished(self, model, tokenizer, shapes):
        lines = sorted(make_lines(8), key=len)
        results = generate_hypotheses(model, tokenizer, lines, GREEDY, batch_tokens=16)
        next(results)
        assert sum(shapes.values()) == 1
        list(results)
        assert sum(shapes.values()) == 8


class TestBatches:
    @pytest.mark.parametrize("search", [GREEDY, BEAM], ids=["greedy", "beam"])
    def test_results_do_not_depend_on_batches(self, model, tokenizer, search):
        lines = make_lines(13, longest=14, seed=5)
        expected = [essence(h) for h in alone(model, tokenizer, lines, search)]
        for batch_tokens in (1, 100, 4096):
            got = list(generate_hypotheses(model, tokenizer, lines, search, batch_tokens=batch_tokens))
            assert [essence(h) for h in got] == expected

    def test_length_limits_per_line(self, model, tokenizer):
        """Without max_tokens a long neighbour must not lengthen a short line's target."""
        search = SearchConfig(suppress_ids=(1,))  # nothing ends before its limit
        wide = dataclasses.replace(model.config.decoder, max_length=60)
        mx.random.seed(0)
        free = Transformer(dataclasses.replace(model.config, decoder=wide))
        free.eval()
        lines = ["ab", "ab ab"]
        limits = [max_target_tokens(free, len(tokenizer.encode(line)), search) for line in lines]
        results = list(generate_hypotheses(free, tokenizer, lines, search))
        assert [len(h.ids) for (h,) in results] == limits and limits[0] < limits[1] < 60
        assert {h.finish_reason for (h,) in results} == {"length"}

    def test_padding_rows_do_not_change_results(self, model, tokenizer, shapes):
        lines = make_lines(5, longest=6)
        results = list(generate_hypotheses(model, tokenizer, lines, BEAM))
        assert list(shapes) == [(5, 16)]  # and three rows to fill up
        assert len(results) == 5
        assert [essence(h) for h in results] == [essence(h) for h in alone(model, tokenizer, lines, BEAM)]

    def test_batches_respect_batch_tokens(self, model, tokenizer, shapes):
        lines = make_lines(30, longest=14)
        for search, budget in ((GREEDY, 128), (BEAM, 192)):
            list(generate_hypotheses(model, tokenizer, lines, search, batch_tokens=budget))
            assert max(rows * length * search.beam_size for rows, length in shapes) <= budget
            assert max(rows for rows, _ in shapes) > 1
            shapes.clear()

    def test_few_shapes_reach_the_search(self, model, tokenizer, monkeypatch):
        shapes = Counter()

        def nothing(model, source, search, max_tokens, **asked):
            shapes[source.shape] += 1
            assert len(max_tokens) == source.shape[0]
            return [[generation.EMPTY_HYPOTHESIS]] * source.shape[0]

        monkeypatch.setattr(engine, "generate_ids", nothing)
        lines = make_lines(3000, longest=60)
        assert len(list(generate_hypotheses(model, tokenizer, lines, GREEDY, batch_tokens=1024))) == 3000
        lengths = {length for _, length in shapes}
        assert lengths <= {16, 32, LIMIT}
        assert all(rows in POWERS for rows, _ in shapes)
        assert len(shapes) <= 12 < sum(shapes.values())

    @pytest.mark.parametrize("batch_tokens", [0, -5])
    def test_batch_tokens_must_be_positive(self, model, tokenizer, batch_tokens):
        with pytest.raises(ValueError, match=f"batch_tokens must be more than 0, not {batch_tokens}"):
            list(generate_hypotheses(model, tokenizer, ["ab"], batch_tokens=batch_tokens))


class TestTruncation:
    def lines(self, tokenizer):
        word = next(word for word in WORDS if len(tokenizer.encode(f"{word} {word}")) == 3)
        return [" ".join([word] * count) for count in (3, LIMIT - 1, LIMIT, 3 * LIMIT)]

    def test_long_sources_are_truncated_and_marked(self, model, tokenizer):
        fits, exact, over, far = self.lines(tokenizer)
        results = list(generate_hypotheses(model, tokenizer, [far, fits, over, exact], BEAM))
        assert [[h.truncated for h in hypotheses] for hypotheses in results] == [
            [True, True],
            [False, False],
            [True, True],
            [False, False],
        ]
        # What is read is the beginning and the end token: as many words as fit.
        texts = [[h.ids for h in hypotheses] for hypotheses in results]
        assert texts[0] == texts[2] == texts[3]

    @pytest.mark.parametrize("line", ["a " * 9000, "a" * 9000, " " * 9000, "a" + " " * 9000 + "b", "é" * 9000])
    def test_only_the_beginning_of_a_huge_line_is_tokenized(self, tokenizer, line):
        (ids,) = encode_truncated(partial(encode_sources, tokenizer), [SourceLine(line)], LIMIT)
        whole = tokenizer.encode(line)
        assert (len(ids) > LIMIT) == (len(whole) > LIMIT)
        assert ids[: LIMIT - 1] == whole[: LIMIT - 1] and ids[-1] == whole[-1]


class TestLanguages:
    CODES = {"aa": 270, "bb": 271, "cc": 272}

    @pytest.fixture
    def multilingual(self, tokenizer):
        def make(source="before", target="first", **changes):
            config = TokenizerConfig(
                languages=self.CODES, source_language=source, target_language=target, skip_ids=(0, 1, 2), **changes
            )
            return Tokenizer(tokenizer.source, None, config)

        return make

    @pytest.mark.parametrize("target", ["first", "start"])
    @pytest.mark.parametrize("source", ["before", "after"])
    def test_languages_per_line(self, model, tokenizer, multilingual, source, target):
        lines = ["", *make_lines(9)]
        origins, goals = ["aa"] + ["aa", "bb", "cc"] * 3, ["bb"] + ["bb", "bb", "cc", "aa"] * 2 + ["cc"]
        found = list(
            generate_hypotheses(
                model, multilingual(source, target), lines, BEAM, source_language=origins, target_language=goals
            )
        )
        assert found[0] == [generation.EMPTY_HYPOTHESIS]
        for line, origin, goal, hypotheses in list(zip(lines, origins, goals, found, strict=True))[1:]:
            own, ids = [self.CODES[origin]], tokenizer.encode(line)
            ids = own + ids if source == "before" else ids + own
            rows = {"forced_bos_ids" if target == "first" else "start_ids": [self.CODES[goal]]}
            limit = [max_target_tokens(model, len(ids), BEAM)]
            (expected,) = generate_ids(model, mx.array([ids], mx.int32), BEAM, limit, **rows)
            assert [h.ids for h in hypotheses] == [h.ids for h in expected]
            assert [h.score for h in hypotheses] == pytest.approx([h.score for h in expected], abs=2e-3)
        assert len({h.text for hypotheses in found for h in hypotheses}) > 4

    def test_one_language_for_all_lines_and_the_default(self, model, multilingual):
        lines = make_lines(4)
        tokenizer = multilingual(default_source_language="bb")
        found = generate(model, tokenizer, lines, source_language="bb", target_language="cc")
        assert found == generate(model, tokenizer, lines, source_language=["bb"] * 4, target_language=iter(["cc"] * 4))
        assert found == generate(model, tokenizer, lines, target_language="cc")
        assert found != generate(model, tokenizer, lines, target_language="aa")
        assert found != generate(model, tokenizer, lines, source_language="aa", target_language="cc")

    def test_invalid_languages(self, model, tokenizer, multilingual):
        with pytest.raises(ValueError, match="needs the target language: --target-language aa on the command line"):
            generate(model, multilingual(), "ab", source_language="aa")
        with pytest.raises(ValueError, match="one for all lines or one for each: line 2 lacks one"):
            generate(model, multilingual(), ["ab", "ab"], source_language=["aa"], target_language="bb")
        with pytest.raises(ValueError, match="got 'ab'. Similar codes are"):
            generate(model, multilingual(), ["ab"], source_language="ab", target_language="bb")

    def test_truncated_source_keeps_its_language_token(self, model, multilingual, tokenizer):
        line = "ab " * 60
        for source in ("before", "after"):
            ids = multilingual(source).encode(line, "cc", "aa")
            kept = multilingual(source).truncate_source(ids, LIMIT)
            assert len(kept) == LIMIT and self.CODES["cc"] in kept and tokenizer.eos_id in kept
            (expected,) = generate_ids(model, mx.array([kept], mx.int32), GREEDY, [6], forced_bos_ids=[270])
            (found,) = generate_hypotheses(
                model, multilingual(source), [line], GREEDY, source_language="cc", target_language="aa"
            )
            assert found[0].truncated and found[0].ids == expected[0].ids


class TestSourcePrefix:
    def test_source_prefix_is_added_once(self, model, tokenizer):
        lines = ["ab cde", "", "fg: ab cde", "hijk"]
        whole = generate(model, tokenizer, ["fg: ab cde", "", "fg: ab cde", "fg: hijk"])
        assert generate(model, tokenizer, lines, source_prefix="fg: ") == whole
        own = Tokenizer(tokenizer.source, None, dataclasses.replace(tokenizer.config, source_prefix="fg: "))
        assert generate(model, own, lines) == whole
        assert generate(model, own, lines, source_prefix="") == generate(model, tokenizer, lines) != whole


DRAWN = SearchConfig(3, 2, max_tokens=6, temperature=2.0, seed=7)


@pytest.mark.usefixtures("uncompiled")
class TestTargetPrefix:
    @pytest.mark.parametrize("search", [GREEDY, BEAM, DRAWN], ids=["greedy", "beam", "drawn"])
    def test_target_prefixes_per_line(self, model, tokenizer, search):
        lines = make_lines(7)
        prefixes = ["ab", None, "fg l", "", "  ", " ab cde ", "mno"]
        found = list(generate_hypotheses(model, tokenizer, lines, search, target_prefix=prefixes, batch_tokens=100))
        for number, (line, prefix, hypotheses) in enumerate(zip(lines, prefixes, found, strict=True)):
            ids, text = tokenizer.encode(line), (prefix or "").strip()
            begun = tokenizer.encode_target(text)[:-1] if text else []
            asked = {"prefix_ids": [begun], "lines": [number]}
            (expected,) = generate_ids(model, mx.array([ids], mx.int32), search, [6], **asked)
            assert [h.ids for h in hypotheses] == [h.ids for h in expected]
            assert [h.score for h in hypotheses] == pytest.approx([h.score for h in expected], abs=2e-3)
            assert all(h.ids[: len(begun)] == begun and h.text.startswith(text) for h in hypotheses)
        assert len(found) == 7

    def test_one_target_prefix_for_all_nonblank_lines(self, model, tokenizer):
        lines = ["ab", "", "cde fg"]
        found = generate(model, tokenizer, lines, target_prefix="mno")
        assert found == generate(model, tokenizer, lines, target_prefix=["mno"] * 3)
        assert [text.startswith("mno") for text in found] == [True, False, True] and found[1] == ""
        assert found != generate(model, tokenizer, lines)
        with pytest.raises(ValueError, match="one for all lines or one for each: line 3 lacks one"):
            generate(model, tokenizer, lines, target_prefix=["mno", "mno"])

    def test_too_long_target_prefix_is_rejected(self, model, tokenizer):
        with pytest.raises(ValueError, match="must be shorter than the decoder's 12 positions"):
            generate(model, tokenizer, "ab", target_prefix="ab " * 40)


@pytest.mark.usefixtures("uncompiled")
class TestSampling:
    def test_samples_do_not_depend_on_batches_and_windows(self, model, tokenizer, monkeypatch):
        lines = ["", *make_lines(9), "ab", "ab", "ab"]
        expected = list(generate_hypotheses(model, tokenizer, lines, DRAWN, batch_tokens=1))
        assert len({h[0].text for h in expected[-3:]}) > 1, "a line that comes again is drawn anew"
        for window in (4, 2048):
            monkeypatch.setattr(generation, "READ_AHEAD", window)
            for batch_tokens in (100, 4096):
                found = generate_hypotheses(model, tokenizer, lines, DRAWN, batch_tokens=batch_tokens)
                assert [essence(h) for h in found] == [essence(h) for h in expected]
        other = list(generate_hypotheses(model, tokenizer, lines, dataclasses.replace(DRAWN, seed=8)))
        assert [h[0].text for h in other] != [h[0].text for h in expected]


@pytest.mark.usefixtures("uncompiled")
class TestStreaming:
    @pytest.mark.parametrize("prefix", [None, "ab cde"])
    @pytest.mark.parametrize("search", [GREEDY, dataclasses.replace(DRAWN, beam_size=1, num_hypotheses=1)])
    def test_joined_pieces_equal_the_text(self, model, tokenizer, search, prefix):
        for line in ["", " ", *make_lines(6)]:
            pieces = list(stream_generate(model, tokenizer, line, search, target_prefix=prefix))
            assert "".join(pieces) == generate(model, tokenizer, line, search, target_prefix=prefix)
            assert all(pieces) and bool(pieces) == bool(line.strip())
            assert prefix is None or not pieces or len(pieces) > 2

    def test_default_search_is_the_models_with_a_beam_of_one(self, model, tokenizer):
        beam = Transformer(model.config, BEAM)
        beam.update(model.parameters())
        beam.eval()
        assert "".join(stream_generate(beam, tokenizer, "ab cde")) == generate(model, tokenizer, "ab cde", GREEDY)
        with pytest.raises(ValueError, match="one source and beam_size 1, not 1 and 3"):
            next(stream_generate(beam, tokenizer, "ab cde", BEAM))

    def test_truncation_is_logged(self, model, tokenizer, caplog):
        with caplog.at_level(logging.WARNING):
            for line in ("ab " * 30, "ab " * 3 * LIMIT):
                assert not caplog.records
                assert "".join(stream_generate(model, tokenizer, line)) == generate(model, tokenizer, line)
        assert [record.message for record in caplog.records] == [
            "Line 1 is longer than the model can read and was cut."
        ]

    def test_with_languages_and_a_source_prefix(self, model, tokenizer):
        codes = {"aa": 270, "bb": 271}
        config = TokenizerConfig(languages=codes, source_language="before", target_language="first", skip_ids=(0, 1, 2))
        asked = {"source_language": "aa", "target_language": "bb", "source_prefix": "fg: ", "target_prefix": "ab"}
        languages = Tokenizer(tokenizer.source, None, config)
        assert "".join(stream_generate(model, languages, "l mno", **asked)) == generate(
            model, languages, "l mno", **asked
        )
        with pytest.raises(ValueError, match="got 'cc'"):
            next(stream_generate(model, languages, "l mno", **(asked | {"target_language": "cc"})))


class TestTokenScoresAndAlignments:
    def test_the_end_token_that_stopped_a_search_is_scored(self, model, tokenizer):
        several = Transformer(dataclasses.replace(model.config, extra_eos_ids=tuple(range(259, 280))))
        several.update(model.parameters())
        several.eval()
        search, ends = dataclasses.replace(BEAM, length_penalty=0.0), set()
        for hypotheses in generate_hypotheses(several, tokenizer, make_lines(6), search, token_scores=True):
            for h in hypotheses:
                assert sum(h.token_scores) == pytest.approx(h.score, abs=1e-4)
                ends.add(h.end_id)
        assert len(ends) > 2

    def test_token_scores_and_alignments_on_request(self, model, tokenizer):
        search = dataclasses.replace(BEAM, length_penalty=0.0)
        lines = ["", *make_lines(6), " "]
        asked = {"alignment": AlignmentConfig(unit="tokens"), "token_scores": True}
        for line, hypotheses in zip(lines, generate_hypotheses(model, tokenizer, lines, search, **asked), strict=True):
            for h in hypotheses:
                assert len(h.token_scores) == (len(h.ids) + (h.finish_reason == "stop") if line.strip() else 0)
                assert sum(h.token_scores) == pytest.approx(h.score, abs=1e-4)
                assert {j for _, j in h.alignment} <= set(range(len(h.ids)))
                assert {i for i, _ in h.alignment} <= set(range(len(tokenizer.encode(line))))
        plain = list(generate_hypotheses(model, tokenizer, lines, search))
        assert {(h.token_scores, h.alignment) for hypotheses in plain for h in hypotheses} == {(None, None)}


def test_fields_of_the_search_are_keyword_arguments(model, tokenizer):
    lines, changed = make_lines(3), dataclasses.replace(GREEDY, beam_size=3, num_hypotheses=2, length_penalty=0.5)
    expected = list(generate_hypotheses(model, tokenizer, lines, changed))
    options = {"num_hypotheses": 2, "length_penalty": 0.5}
    assert list(generate_hypotheses(model, tokenizer, lines, beam_size=3, **options)) == expected
    assert list(generate_hypotheses(model, tokenizer, lines, BEAM, **options)) == expected
    assert generate(model, tokenizer, lines, beam_size=3, **options) == [best.text for best, *_ in expected]
    sampled = generate(model, tokenizer, lines[0], temperature=0.9, seed=5, max_tokens=4)
    assert "".join(stream_generate(model, tokenizer, lines[0], temperature=0.9, seed=5, max_tokens=4)) == sampled
    search = dataclasses.replace(GREEDY, temperature=0.9, seed=5, max_tokens=4)
    assert sampled == generate(model, tokenizer, lines[0], search)


@pytest.mark.parametrize("function", [generate, generate_hypotheses, stream_generate])
@pytest.mark.parametrize(
    ("keyword", "hint"),
    [
        ("beemsize", "Similar ones are beam_size."),
        ("source_lang", "Similar ones are source_language."),
        ("num_beams", "Use beam_size."),
        ("xyz", "Known ones are beam_size, num_hypotheses, "),
    ],
)
def test_an_unknown_keyword_argument_is_an_error_that_names_similar_ones(model, tokenizer, function, keyword, hint):
    message = rf"^{function.__name__}\(\) got an unexpected keyword argument '{keyword}'\. {hint}"
    with pytest.raises(TypeError, match=message):
        list(function(model, tokenizer, "ab", **{keyword: 2}))


@pytest.mark.parametrize("options", [{"beam_size": 2}, {"num_hypotheses": 2}])
def test_a_stream_has_no_beams(model, tokenizer, options):
    with pytest.raises(ValueError, match="beam_size 1, not 1 and 2"):
        list(stream_generate(model, tokenizer, "ab", **options))
    wide = Transformer(model.config, BEAM).eval()
    wide.update(model.parameters())
    assert "".join(stream_generate(wide, tokenizer, "ab")) == generate(model, tokenizer, "ab")
