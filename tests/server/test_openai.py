"""OpenAI's API: its own client, whole and streamed completions, embeddings, keys and errors."""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from support.http_server import hold_batches, serve

import mlx_transformer as mt

TEXT = "Where is the station?"
LONG = "The house is small. It rains a lot today. She reads a book in the garden.  " * 10 + "He left."


@pytest.fixture(scope="module")
def openai():
    return pytest.importorskip("openai", reason="the client openai is not installed")


@pytest.fixture(scope="module")
def api(openai, client):
    with openai.OpenAI(base_url=f"{client.url}/v1", api_key="none", max_retries=0) as api:
        yield api


def chat(text, **fields):
    return {"model": "bundled", "messages": [{"role": "user", "content": text}]} | fields


def test_a_chat_is_answered_as_by_the_library(api, bundled):
    messages = [
        {"role": "system", "content": "You translate."},
        {"role": "user", "content": "I love you."},
        {"role": "assistant", "content": "Je t'aime."},
        {"role": "user", "content": [{"type": "text", "text": TEXT}]},
    ]
    answer = api.chat.completions.create(model="bundled", messages=messages)
    assert answer.choices[0].message.content == mt.generate(*bundled, TEXT)
    assert answer.choices[0].finish_reason == "stop" and answer.object == "chat.completion"
    _, tokenizer = bundled
    assert answer.usage.prompt_tokens == len(tokenizer.encode(TEXT))
    assert answer.usage.completion_tokens > 0


def test_a_stream_has_the_same_text_sentence_by_sentence(api, bundled):
    events = list(api.chat.completions.create(**chat(LONG), stream=True, stream_options={"include_usage": True}))
    parts = [event.choices[0].delta.content for event in events if event.choices and event.choices[0].delta.content]
    assert "".join(parts) == mt.generate(*bundled, LONG)
    assert len(parts) > 25
    assert events[-2].choices[0].finish_reason == "stop"
    assert events[-1].usage.total_tokens > 50


def test_completions_have_a_choice_for_each_prompt(api, bundled):
    answer = api.completions.create(model="bundled", prompt=[TEXT, "I love you."])
    assert [choice.text for choice in answer.choices] == mt.generate(*bundled, [TEXT, "I love you."])
    assert [choice.index for choice in answer.choices] == [0, 1]
    events = list(api.completions.create(model="bundled", prompt=[TEXT, "I love you."], stream=True))
    for index, choice in enumerate(answer.choices):
        parts = [event.choices[0].text for event in events if event.choices[0].index == index]
        assert "".join(parts) == choice.text


def test_several_choices_and_a_limit_of_tokens(api, bundled):
    answer = api.chat.completions.create(**chat(TEXT, n=3))
    assert len({choice.message.content for choice in answer.choices}) == 3
    short = api.chat.completions.create(**chat(TEXT), max_tokens=2).choices[0]
    assert short.finish_reason == "length"
    assert short.message.content == mt.generate(*bundled, TEXT, max_tokens=2)


def test_an_answer_ends_before_its_stops(api, openai, bundled):
    (love,) = mt.generate(*bundled, ["I love you."])
    answer = api.completions.create(model="bundled", prompt=["I love you.", TEXT], stop=["aime", "?"], n=2)
    assert [choice.text for choice in answer.choices[::2]] == [love.partition("aime")[0], "Où est la gare "]
    assert all("aime" not in choice.text and choice.finish_reason == "stop" for choice in answer.choices)
    whole = mt.generate(*bundled, LONG)
    stop = whole[200:210]
    events = list(api.chat.completions.create(**chat(LONG), stream=True, stop=stop, max_tokens=1000))
    parts = [event.choices[0].delta.content or "" for event in events]
    assert "".join(parts) == whole.partition(stop)[0] and events[-1].choices[0].finish_reason == "stop"
    assert len(parts) < whole.count(".")
    for wrong in ("", ["a"] * 5, [1]):
        with pytest.raises(openai.BadRequestError, match="stop must be a text or at most 4 of them"):
            api.chat.completions.create(**chat(TEXT), stop=wrong)


def test_choices_of_several_prompts_are_in_their_order(api):
    """Equal texts stay, or a choice would belong to another prompt."""
    answer = api.completions.create(model="bundled", prompt=[TEXT, "I love you."], n=3, temperature=0.1, seed=1)
    alone = [
        api.completions.create(model="bundled", prompt=[text], n=3, temperature=0.1, seed=1).choices
        for text in (TEXT, "I love you.")
    ]
    assert [choice.index for choice in answer.choices] == list(range(6))
    assert len({choice.text for choice in answer.choices[:3]}) < 3, "the temperature must give equal texts"
    assert [choice.text for choice in answer.choices[:3]] == [choice.text for choice in alone[0]]
    assert all(" aime" in choice.text.lower() or "t'aime" in choice.text for choice in answer.choices[3:])


def test_samples_are_those_of_the_library(api, bundled):
    options = {"temperature": 2.0, "top_p": 0.99, "seed": 7}
    texts = [TEXT, "The children play in the park.", "I love you."]
    expected = mt.generate(*bundled, texts, **options)
    answer = api.completions.create(model="bundled", prompt=texts, **options)
    assert [choice.text for choice in answer.choices] == expected
    assert expected != mt.generate(*bundled, texts)


def test_samples_share_no_batch_with_other_requests(bundled):
    """Their random numbers depend on the number of the text in its batch."""
    options = {"temperature": 2.0, "seed": 3}
    texts = ["The children play in the park.", "My sister lives near the old station.", "It rains a lot today."]
    expected = [mt.generate(*bundled, text, **options) for text in texts]
    with serve(lambda name: bundled, small_batches=False) as client, ThreadPoolExecutor() as pool:
        with hold_batches(client) as entered:
            first = pool.submit(client.translate, "Hello.")
            assert entered.wait(10)
            answers = []
            for number, text in enumerate(texts, start=1):
                answers.append(pool.submit(client.post, "/v1/completions", {"prompt": text} | options))
                client.wait_for("waiting_sentences", number)
        assert first.result().status == 200
        assert [answer.result().json["choices"][0]["text"] for answer in answers] == expected


def test_embeddings_are_those_of_the_library(api, bundled):
    texts = ["A dog runs.", "It rains a lot today."]
    expected = mt.embed(*bundled, texts)
    for encoding in ({}, {"encoding_format": "float"}):  # the client asks for base64 by itself
        answer = api.embeddings.create(model="bundled", input=texts, **encoding)
        assert np.array_equal(np.array([row.embedding for row in answer.data], np.float32), expected)
    assert answer.usage.prompt_tokens > 4


def test_models_are_listed(api):
    (model,) = api.models.list()
    assert model.id == "bundled" and api.models.retrieve("bundled") == model


def test_a_model_may_be_a_repository(openai, bundled):
    with serve(lambda name: bundled, names=["en-fr=owner/name"], api_keys=("secret",)) as client:
        with openai.OpenAI(base_url=f"{client.url}/v1", api_key="secret", max_retries=0) as api:
            assert api.models.retrieve("owner/name").id == "owner/name"
            with pytest.raises(openai.NotFoundError, match="model must be one of this server's: owner/name"):
                api.models.retrieve("bundled")
        assert client.get("/v1/models/owner/name").status == 401


def test_errors_have_the_types_of_the_client(openai, api):
    with pytest.raises(openai.NotFoundError, match="one of this server's: bundled"):
        api.chat.completions.create(**chat(TEXT, model="gpt-4"))
    with pytest.raises(openai.BadRequestError, match="target_language must be one of fr, not 'de'"):
        api.chat.completions.create(**chat(TEXT), extra_body={"target_language": "de"})
    with pytest.raises(openai.BadRequestError, match='role is "user"'):
        api.chat.completions.create(model="bundled", messages=[{"role": "system", "content": "x"}])


def test_keys(openai, bundled):
    with serve(lambda name: bundled, api_keys=("secret",)) as client:
        for key, allowed in (("secret", True), ("wrong", False)):
            with openai.OpenAI(base_url=f"{client.url}/v1", api_key=key, max_retries=0) as api:
                if allowed:
                    assert api.chat.completions.create(**chat(TEXT)).choices
                else:
                    pytest.raises(openai.AuthenticationError, api.chat.completions.create, **chat(TEXT))
                    pytest.raises(openai.AuthenticationError, api.models.list)


def test_the_last_event_says_that_the_stream_is_whole(client):
    answer = client.post("/v1/chat/completions", chat(TEXT, stream=True))
    assert answer.headers["content-type"].startswith("text/event-stream")
    *events, done, end = answer.body.decode().split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    assert json.loads(events[0].removeprefix("data: "))["object"] == "chat.completion.chunk"
