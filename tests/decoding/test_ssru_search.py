"""Searches with a recurrent decoder: its states follow their beams, whatever joins or leaves the batch.

They are those of SSRUs, or of average attention.
"""

import mlx.core as mx
import pytest
from support.reference_search import Teacher, check_equals_reference
from support.tiny_models import SETTINGS, padded, random_model, random_sources

from mlx_transformer.config.search import SearchConfig
from mlx_transformer.decoding.beam_search import generate_ids, stream_ids

LENGTHS = (3, 7, 1, 5, 9)


@pytest.fixture(scope="module", params=["ssru", "average"])
def teacher(request):
    return Teacher(random_model(SETTINGS[request.param], gain=1.5))


@pytest.fixture(scope="module")
def sources(teacher):
    return random_sources(teacher.model.config, LENGTHS)


@pytest.mark.parametrize("beam_size", [1, 4])
@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_beam_search_equals_the_reference_search(teacher, sources, beam_size, length_penalty, tolerance):
    search = SearchConfig(beam_size, beam_size, 9, 0, length_penalty, suppress_ids=(3,))
    check_equals_reference(teacher, sources, search, tolerance)


def test_sentences_that_leave_the_batch_and_caches_that_grow_change_nothing(teacher, sources, tolerance):
    """After 4 and 8 steps the batch shrinks; after 16 the capacity doubles."""
    search = SearchConfig(3, 1, 20, 0, suppress_ids=(1, 3))
    lengths = check_equals_reference(teacher, sources, search, tolerance, limits=[2, 20, 3, 18, 4])
    assert max(lengths) > 16 and min(lengths) <= 4


def test_prefixes_of_several_tokens_equal_the_reference_search(teacher, sources, tolerance):
    search = SearchConfig(3, 3, 8, 0)
    prefixes = [[5, 6, 7], [4], [], [9, 9], [8, 7, 6, 5, 4]]
    for rows in ([0], [0, 3, 4], range(5)):  # run at once up to the length of the shortest, then forced
        check_equals_reference(
            teacher, [sources[row] for row in rows], search, tolerance, prefixes=[prefixes[row] for row in rows]
        )


@pytest.mark.parametrize(
    ("search", "phrases"),
    [
        (SearchConfig(3, 3, 9, temperature=1.0, seed=5), None),
        (SearchConfig(3, 3, 9, alternatives=True), None),
        (SearchConfig(2, 2, 9), [[[5, 6]], [], [[4], [7]], [[9]], [[8, 8, 8]]]),
    ],
    ids=["sampling", "alternatives", "required phrases"],
)
def test_other_searches_do_not_depend_on_the_batch(teacher, sources, search, phrases):
    model = teacher.model
    together = generate_ids(model, padded(sources, model.config), search, required_phrases=phrases)
    for row, source in enumerate(sources):
        needed = phrases and [phrases[row]]
        (alone,) = generate_ids(model, mx.array([source]), search, lines=[row], required_phrases=needed)
        assert [hypothesis.ids for hypothesis in together[row]] == [hypothesis.ids for hypothesis in alone]
    texts = {tuple(hypothesis.ids) for hypotheses in together for hypothesis in hypotheses}
    assert len(texts) > 4


def test_a_stream_gives_the_greedy_target(teacher, sources):
    source, search = mx.array([sources[4]]), SearchConfig(max_tokens=20, suppress_ids=(1, 3))
    ((best,),) = generate_ids(teacher.model, source, search)
    assert list(stream_ids(teacher.model, source, search)) == best.ids
    assert len(best.ids) == 20
