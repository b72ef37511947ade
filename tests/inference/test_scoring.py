"""Scores of given targets: teacher-forced log-probabilities, equal to the search's, in any batch, in order."""

import dataclasses
import itertools
import json
from collections import Counter

import mlx.core as mx
import numpy as np
import pytest
from support.tiny_models import SETTINGS, config, padded, random_model, random_sources, random_targets, stack

from mlx_transformer.config.alignment import AlignmentConfig
from mlx_transformer.config.search import SearchConfig
from mlx_transformer.config.tokenizer import TokenizerConfig
from mlx_transformer.decoding.beam_search import generate_ids
from mlx_transformer.inference import scoring
from mlx_transformer.inference.attention_weights import attention_ids
from mlx_transformer.inference.scoring import score, score_ids
from mlx_transformer.model.transformer import Transformer
from mlx_transformer.tokenization.tokenizer import Tokenizer
from mlx_transformer.tokenization.vocabulary import WordVocabulary

LENGTHS = (3, 7, 5)
LIMIT = 40


@pytest.fixture(autouse=True, scope="module")
def uncompiled():
    """Compilation is disabled, because every trace takes seconds on a CPU."""
    mx.disable_compile()
    yield
    mx.enable_compile()


@pytest.fixture(params=SETTINGS, scope="module")
def model(request):
    return random_model(SETTINGS[request.param])


@pytest.fixture
def source(model):
    return padded(random_sources(model.config, LENGTHS), model.config)


def logprobs(model, source, target):
    """Compute log-probabilities with numpy in double precision, (rows, target_length - 1)."""
    logits = np.array(model(mx.array(source), mx.array(target)[:, :-1]), np.float64)
    logits -= np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return np.take_along_axis(logits, np.array(target)[:, 1:, None], axis=-1)[..., 0]


class TestIds:
    def test_scores_equal_the_formula(self, model, source, tolerance):
        target = random_targets(model.config, rows=3, length=6)
        found, attended = score_ids(model, source, target)
        assert found.dtype == mx.float32 and attended is None
        np.testing.assert_allclose(found, logprobs(model, source, target), atol=tolerance(1e-5))

    def test_padding_scores_zero_and_changes_nothing(self, model, source, tolerance):
        target = random_targets(model.config, rows=3, length=6)
        expected = np.array(score_ids(model, source, target)[0])
        target[1, 4:] = model.config.pad_id
        wider = mx.pad(target, [(0, 0), (0, 3)], constant_values=model.config.pad_id)
        found = np.array(score_ids(model, mx.pad(source, [(0, 0), (0, 9)]), wider)[0])
        assert (found[1, 3:] == 0).all() and (found[:, 5:] == 0).all()
        np.testing.assert_allclose(found[::2, :5], expected[::2], atol=tolerance(1e-5))
        np.testing.assert_allclose(found[1, :3], expected[1, :3], atol=tolerance(1e-5))

    def test_pad_id_inside_a_text_is_scored(self, model, source, tolerance):
        target = random_targets(model.config, rows=3, length=6)
        target[:, 2] = model.config.pad_id
        expected = logprobs(model, source, target)
        np.testing.assert_allclose(score_ids(model, source, target)[0], expected, atol=tolerance(1e-5))

    def test_scores_are_float32_in_low_precision(self, model, source):
        target = random_targets(model.config, rows=3, length=6)
        low = random_model(model.config)
        low.set_dtype(mx.float16)
        found, _ = score_ids(low, source, target)
        logits = low(source, target[:, :-1]).astype(mx.float32)
        chosen = mx.take_along_axis(logits, target[:, 1:, None], axis=-1)[..., 0]
        np.testing.assert_allclose(found, chosen - mx.logsumexp(logits, axis=-1), atol=1e-5)

    def test_several_targets_per_source(self, model, source, tolerance):
        target = random_targets(model.config, rows=6, length=5, seed=1)
        found = score_ids(model, source, target, AlignmentConfig())
        expected = score_ids(model, mx.repeat(source, 2, axis=0), target, AlignmentConfig())
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=tolerance(1e-5))
        with pytest.raises(ValueError, match="but 5 is not a multiple of 3"):
            score_ids(model, source, target[:5])

    @pytest.mark.parametrize("beam_size", [1, 4])
    def test_scores_equal_those_of_the_search(self, model, source, beam_size, tolerance):
        config = model.config
        search = SearchConfig(beam_size=beam_size, num_hypotheses=beam_size, max_tokens=8, length_penalty=0.0)
        found = generate_ids(model, source, search)
        rows = [
            [config.start_id, *h.ids, *([config.eos_id] if h.finish_reason == "stop" else [])]
            for hypotheses in found
            for h in hypotheses
        ]
        scores, _ = score_ids(model, source, padded(rows, config))
        expected = [h.score for hypotheses in found for h in hypotheses]
        np.testing.assert_allclose(scores.sum(axis=1), expected, atol=tolerance(1e-4))
        assert len(expected) == 3 * beam_size and len(set(expected)) > 1

    def test_attention_is_averaged_over_selected_layers_and_heads(self, model, source, tolerance):
        target = random_targets(model.config, rows=3, length=6)
        weights = np.stack(attention_ids(model, source, target[:, :-1]).cross)
        layers, heads = weights.shape[0], weights.shape[2]
        for layer, head in ((None, None), ((0,), (heads - 1,)), ((0, layers - 1), (0, 1))):
            expected = weights[-2:] if layer is None else weights[list(layer)]
            expected = expected[:, :, slice(None) if head is None else list(head)].mean(axis=(0, 2))
            scores, found = score_ids(model, source, target, AlignmentConfig(layer, head))
            np.testing.assert_allclose(found, expected, atol=tolerance(1e-6))
            assert mx.array_equal(scores, score_ids(model, source, target)[0])

    def test_missing_layers_and_heads_are_rejected(self, model, source):
        target = random_targets(model.config, rows=3, length=6)
        layers, heads = model.config.decoder.num_layers, model.config.decoder.num_heads
        with pytest.raises(ValueError, match=f"layer of an alignment must be from 0 to {layers - 1}, not {layers}"):
            score_ids(model, source, target, AlignmentConfig(layers=(0, layers)))
        with pytest.raises(ValueError, match=f"head of an alignment must be from 0 to {heads - 1}, not -1"):
            score_ids(model, source, target, AlignmentConfig(heads=(-1,)))
        with pytest.raises(ValueError, match="must not be empty"):
            AlignmentConfig(layers=())

    def test_compiled_equals_uncompiled(self, tolerance):
        model = random_model(SETTINGS["relative_positions"])
        source = padded(random_sources(model.config, LENGTHS), model.config)
        target = random_targets(model.config, rows=3, length=6)
        expected = score_ids(model, source, target, AlignmentConfig())
        mx.enable_compile()
        compiled = random_model(SETTINGS["relative_positions"])
        for ours, theirs in zip(score_ids(compiled, source, target, AlignmentConfig()), expected, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=tolerance(1e-5))
        mx.disable_compile()


def words_tokenizer(model, **changes):
    """A tokenizer whose words are the token ids of a tiny model: w3 is 3."""
    sides = [
        WordVocabulary({f"w{i}": i for i in range(size)}, unknown_id=3)
        for size in (model.config.source_vocab_size, model.config.target_vocab_size)
    ]
    return Tokenizer(*sides, TokenizerConfig(**changes, languages={"aa": 4, "bb": 5}))


def make_lines(size, count, longest=12, seed=0):
    rng = np.random.default_rng(seed)
    return [
        " ".join(f"w{i}" for i in rng.integers(3, size, rng.integers(1, longest + 1)).tolist()) for _ in range(count)
    ]


@pytest.fixture(scope="module")
def tokenizer(model):
    return words_tokenizer(model)


@pytest.fixture(scope="module")
def sources(model):
    return make_lines(model.config.source_vocab_size, 13)


@pytest.fixture(scope="module")
def targets(model):
    return make_lines(model.config.target_vocab_size, 13, seed=1)


def alone(model, tokenizer, source, target, start=None, **languages):
    """Compute the log-probabilities of one pair with numpy, without padding."""
    ids = tokenizer.encode(source), tokenizer.encode_target(target)
    rows = [mx.array([ids[0]], mx.int32), mx.array([[start or model.config.start_id, *ids[1]]], mx.int32)]
    return logprobs(model, *rows)[0]


class TestTexts:
    def test_batched_scores_equal_single_scores_in_order(self, model, tokenizer, sources, targets, tolerance):
        for budget in (1, 64, 4096):
            found = list(score(model, tokenizer, sources, targets, batch_tokens=budget))
            for one, source, target in zip(found, sources, targets, strict=True):
                expected = alone(model, tokenizer, source, target)
                assert one.tokens == tokenizer.encode_target(target) and not one.truncated
                np.testing.assert_allclose(one.token_scores, expected, atol=tolerance(1e-4))
                assert one.score == pytest.approx(sum(one.token_scores)) and one.alignment is None

    def test_scores_equal_those_of_the_search(self, model, tokenizer, sources, tolerance):
        search = SearchConfig(beam_size=4, num_hypotheses=4, max_tokens=9, length_penalty=0.0)
        endless = words_tokenizer(model, after_target=())
        for line in sources:
            (hypotheses,) = generate_ids(model, mx.array([tokenizer.encode(line)], mx.int32), search)
            for one in hypotheses:
                text = " ".join(f"w{i}" for i in one.ids)
                (found,) = score(model, tokenizer if one.finish_reason == "stop" else endless, [line], [text])
                assert found.score == pytest.approx(one.score, abs=tolerance(1e-4))

    def test_blank_lines(self, model, tokenizer):
        end, start = model.config.eos_id, model.config.start_id
        found = list(score(model, tokenizer, ["", "w3 w4", " \t", "w3 w4"], ["w5", "", "", "w5"]))
        assert [one.tokens for one in found] == [[5, end], [end], [end], [5, end]]
        nothing, source = mx.array([[end]]), mx.array([[3, 4, end]])
        rows = [(nothing, [5, end]), (source, [end]), (nothing, [end]), (source, [5, end])]
        for one, (read, target) in zip(found, rows, strict=True):
            assert one.token_scores == pytest.approx(logprobs(model, read, [[start, *target]])[0], abs=1e-4)

    def test_tokenizer_without_special_tokens(self, model, tokenizer):
        bare = words_tokenizer(model, after_source=(), after_target=())
        expected = list(score(model, tokenizer, [""], [""]))
        assert list(score(model, bare, [""], [""])) == expected, "what is empty is an end token"
        assert next(score(model, bare, ["w3"], ["w4 w5"])).tokens == [4, 5]


@pytest.fixture(scope="module")
def plain():
    """One model for tests that do not depend on the model."""
    return random_model(config(encoder=stack(max_length=LIMIT), decoder=stack(max_length=30)))


@pytest.fixture(scope="module")
def words(plain):
    return words_tokenizer(plain)


@pytest.fixture(scope="module")
def pairs():
    """Sources and their targets."""
    return make_lines(19, 13), make_lines(19, 13, seed=1)


class TestMany:
    """Windows, batches and errors with one model."""

    @pytest.fixture
    def shapes(self, monkeypatch):
        """Record the shapes of scored sources and targets."""
        seen = Counter()

        def counting(model, source, target, alignment):
            seen[source.shape, target.shape] += 1
            return score_ids(model, source, target, alignment)

        monkeypatch.setattr(scoring, "score_ids", counting)
        return seen

    def test_windows_join_seamlessly(self, plain, words, pairs, monkeypatch):
        expected = list(score(plain, words, *pairs))
        monkeypatch.setattr(scoring, "READ_AHEAD", 4)
        found = list(score(plain, words, *pairs))
        assert [one.tokens for one in found] == [one.tokens for one in expected]
        assert [one.score for one in found] == pytest.approx([one.score for one in expected], abs=1e-4)

    def test_pairs_are_read_in_windows(self, plain, words, monkeypatch):
        monkeypatch.setattr(scoring, "READ_AHEAD", 4)
        read = itertools.count()
        endless = (f"w{3 + next(read) % 9}" for _ in itertools.count())
        found = score(plain, words, endless, itertools.repeat("w3 w4"))
        next(found)
        assert next(read) == 4

    def test_few_shapes_within_batch_tokens(self, plain, words, monkeypatch):
        shapes = Counter()

        def nothing(model, source, target, alignment):
            shapes[source.shape, target.shape] += 1
            return mx.zeros((target.shape[0], target.shape[1] - 1)), None

        monkeypatch.setattr(scoring, "score_ids", nothing)
        sides = [make_lines(19, 3000, longest, seed) for seed, longest in enumerate((38, 28))]
        assert len(list(score(plain, words, *sides, batch_tokens=1024))) == 3000
        assert {length for (_, length), _ in shapes} <= {16, 32, LIMIT}
        assert {length for _, (_, length) in shapes} <= {17, 31}
        assert all(rows == size and rows * max(length, longer - 1) <= 1024 for (rows, length), (size, longer) in shapes)
        assert len(shapes) <= 14 < sum(shapes.values())

    def test_a_large_vocabulary_makes_small_batches(self, plain, words, pairs, shapes, monkeypatch):
        monkeypatch.setattr(scoring, "MAX_LOGITS", 19 * 33)
        list(score(plain, words, *pairs))
        assert max(rows * length for _, (rows, length) in shapes) <= 2 * 17

    def test_padding_rows_do_not_change_scores(self, plain, words, pairs, shapes):
        found = list(score(plain, words, *pairs))
        assert list(shapes) == [((16, 16), (16, 17))] and len(found) == 13
        for one, source, target in zip(found, *pairs, strict=True):
            assert one.token_scores == pytest.approx(alone(plain, words, source, target), abs=1e-4)

    def test_long_texts_are_truncated_and_marked(self, plain, words):
        source, target = " ".join(["w3"] * 39), " ".join(["w4"] * 29)  # they fit exactly
        far = "w3 " * 4000
        pairs = [(source, target), (source + " w3", target), (source, target + " w4"), (far, "w5"), ("w5", far)]
        found = list(score(plain, words, *zip(*pairs, strict=True), alignment=AlignmentConfig()))
        assert [one.truncated for one in found] == [False, True, True, True, True]
        assert [len(one.tokens) for one in found] == [30, 30, 30, 2, 30]
        # A source that is cut keeps its end token, a target does not.
        assert found[1].token_scores == pytest.approx(found[0].token_scores, abs=1e-4)
        assert found[2].tokens == [4] * 30 and found[0].tokens == [4] * 29 + [1]
        assert max(i for i, _ in found[3].alignment) < LIMIT and max(j for _, j in found[4].alignment) == 29

    def test_sources_and_targets_must_be_pairs(self, plain, words):
        with pytest.raises(ValueError, match="number 3 has no target"):
            list(score(plain, words, ["w3"] * 3, ["w3"] * 2))
        with pytest.raises(ValueError, match="number 1 has no source"):
            list(score(plain, words, [], ["w3"]))
        with pytest.raises(ValueError, match="batch_tokens must be more than 0, not 0"):
            list(score(plain, words, ["w3"], ["w3"], batch_tokens=0))
        assert list(score(plain, words, [], [])) == []

    def test_nan_logits_are_an_error(self, words):
        broken = random_model(config())
        broken.decoder.layers[0].feed_forward.up_proj.bias[0] = float("nan")
        with pytest.raises(ValueError, match="Scores must be finite, but the model's logits are not"):
            list(score(broken, words, ["w3"], ["w3"]))

    def test_source_prefix(self, plain, words):
        expected = [one.score for one in score(plain, words, ["w6 w7 w3", "w6 w7 w3", ""], ["w4", "w4", "w4"])]
        lines = ["w3", "w6 w7 w3", ""]
        found = [one.score for one in score(plain, words, lines, ["w4"] * 3, source_prefix="w6 w7 ")]
        own = words_tokenizer(plain, source_prefix="w6 w7 ")
        assert found == expected == [one.score for one in score(plain, own, lines, ["w4"] * 3)]
        assert expected[0] != next(score(plain, own, ["w3"], ["w4"], source_prefix="")).score

    def test_forced_first_token_scores_zero(self, plain):
        for target_language, start in (("first", 2), ("start", 5)):
            own = words_tokenizer(plain, target_language=target_language)
            (one,) = score(plain, own, ["w3"], ["w6 w7"], target_language="bb")
            first = [5] if target_language == "first" else []
            assert one.tokens == [*first, 6, 7, 1]
            expected = logprobs(plain, [[3, 1]], [[start, *first, 6, 7, 1]])[0]
            expected[: len(first)] = 0
            assert one.token_scores == pytest.approx(expected, abs=1e-4)
            with pytest.raises(ValueError, match="needs the target language"):
                list(score(plain, own, ["w3"], ["w6"]))

    @pytest.mark.parametrize("before", [(), (8,)])
    def test_forced_first_token_of_the_search_scores_zero(self, plain, before):
        forcing = Transformer(plain.config, SearchConfig(forced_bos_id=8))
        forcing.eval()
        forcing.update(plain.parameters())
        (one,) = score(forcing, words_tokenizer(plain, before_target=before), ["w3"], ["w6"])
        assert one.tokens == [8, 6, 1] and one.token_scores[0] == 0
        assert one.token_scores[1:] == pytest.approx(logprobs(plain, [[3, 1]], [[2, 8, 6, 1]])[0][1:], abs=1e-4)

    def test_languages_of_each_line(self, plain):
        own = words_tokenizer(plain, source_language="before", target_language="first")
        codes = {"source_language": ["aa", "bb"], "target_language": iter(["bb", "aa"])}
        found = list(score(plain, own, ["w3", "w3"], ["w6", "w6"], **codes))
        assert [one.tokens[0] for one in found] == [5, 4]
        assert found[0].token_scores[1:] == pytest.approx(logprobs(plain, [[4, 3, 1]], [[2, 5, 6, 1]])[0][1:], abs=1e-4)
        with pytest.raises(ValueError, match="line 2 lacks one"):
            list(score(plain, own, ["w3"] * 2, ["w3"] * 2, source_language=["aa"], target_language="bb"))

    def test_score_is_a_frozen_dataclass(self, plain, words):
        (one,) = score(plain, words, ["w3"], ["w4"], alignment=AlignmentConfig())
        assert json.loads(json.dumps(dataclasses.asdict(one))) == dataclasses.asdict(one) | {"alignment": [[0, 0]]}
