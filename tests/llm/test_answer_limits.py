"""Answers that a bound cut off: a typed error, or one more try under a higher one; never a half that counts."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from pydantic import BaseModel

from skllm_ray.llm.reply_cache import CachedBackend
from skllm_ray.tasks import ExtractionTask, NERTask
from skllm_ray.tasks.extraction import strict
from skllm_ray.testing import ChatServer, RawAnswer, StatusFault
from tests.llm.gpt.clients.openai.test_answers import chat, limit_of
from tests.llm.gpt.clients.openai.test_chat import complete, spec_for
from tests.llm.vertex.test_chat import TOKEN
from tests.llm.vertex.test_chat import spec_for as vertex_spec_for


class Person(BaseModel):
    name: str
    parent: Person | None


class Order(BaseModel):
    item: str
    note: str


ORDERS = ExtractionTask(strict(Order.model_json_schema()), lambda answer: Order.model_validate(answer).model_dump())
PLACES = NERTask({"PLACE": "a place"}, sparse=False)
WHOLE = json.dumps({"item": "kettle", "note": "as ever, " * 50})


def orders(n):
    return ORDERS.render([f"A kettle, please, for {i}." for i in range(n)])


def cut_at(needs, body, whole=WHOLE):
    """Write `whole`, which takes `needs` tokens, as far as the limit of a request allows."""
    limit = limit_of(body)
    if limit is None or limit >= needs:
        return RawAnswer(chat(whole, usage={"prompt_tokens": 5, "completion_tokens": needs}))
    half = whole[: len(whole) * limit // needs]
    return RawAnswer(chat(half, "length", {"prompt_tokens": 5, "completion_tokens": limit}))


def test_an_object_and_an_explained_label_are_asked_for_under_a_bound():
    with ChatServer(lambda body: WHOLE) as server:
        requests = orders(1)
        complete(spec_for(server), [*requests, replace(requests[0], max_output_tokens=50)])
        limits = [limit_of(received.body) for received in server.received]
    assert limits == [requests[0].answer_bound, 50]


def test_white_space_without_end_is_an_error_at_the_first_try():
    def answer(body):
        return RawAnswer(chat('{"item": "kettle",' + "\n" * 200, "length", {"completion_tokens": limit_of(body)}))

    with ChatServer(answer) as server:
        replies = complete(spec_for(server), orders(5))
        assert server.n_requests == 5
        assert {limit_of(received.body) for received in server.received} == {orders(1)[0].answer_bound}
    assert {(reply.error.kind, reply.attempts) for reply in replies} == {("truncated", 1)}


def test_one_higher_bound_is_tried_and_what_helps_one_row_is_known_to_all():
    bound = orders(1)[0].answer_bound
    with ChatServer(lambda body: cut_at(2 * bound, body)) as server:
        replies = complete(spec_for(server), orders(40))
        assert server.n_requests == 41
    assert {reply.text for reply in replies} == {WHOLE}
    assert sorted(reply.attempts for reply in replies) == [1] * 39 + [2]
    assert max(reply.usage.completion_tokens for reply in replies) == 3 * bound  # what was cut was paid for


def test_an_object_that_is_longer_still_is_an_error_and_teaches_nothing():
    bound = orders(1)[0].answer_bound
    with ChatServer(lambda body: cut_at(9 * bound, body)) as server:
        replies = complete(spec_for(server), orders(3))
        limits = [limit_of(received.body) for received in server.received]
    assert {(reply.text, reply.error.kind, reply.attempts) for reply in replies} == {(None, "truncated", 2)}
    assert sorted(limits) == [bound] * 3 + [4 * bound] * 3


def test_who_sets_a_limit_gets_no_second_try():
    with ChatServer(lambda body: cut_at(500, body)) as server:
        (own,) = complete(spec_for(server, request_options={"max_tokens": 100}), orders(1))
        (jobs,) = complete(spec_for(server), [replace(orders(1)[0], max_output_tokens=100)])
        (budgets,) = complete(spec_for(server), [replace(orders(1)[0], max_output_tokens=100, limit_is_hard=True)])
        assert server.n_requests == 3
    assert {(reply.error.kind, reply.attempts) for reply in (own, jobs, budgets)} == {("truncated", 1)}


@pytest.mark.parametrize("cut", [{"content": None, "reasoning_content": "Hm"}, {"content": "Let me see"}], ids=str)
def test_a_model_that_thinks_first_has_no_bound_after_its_first_answer(cut):
    def answer(body):
        if limit_of(body) is None:
            return WHOLE
        return RawAnswer(chat(finish_reason="length", usage={"completion_tokens": limit_of(body)}, **cut))

    with ChatServer(answer) as server:
        replies = complete(spec_for(server), orders(30))
        assert server.n_requests == 31
    assert {reply.text for reply in replies} == {WHOLE}


def test_what_stands_inside_an_object_that_was_cut_is_no_answer():
    people = ExtractionTask(strict(Person.model_json_schema()), dict)
    half = '{"name": "Ann", "parent": {"name": "Bob", "parent": null}, "note": "and so'
    with ChatServer(lambda body: RawAnswer(chat(half, "length"))) as server:
        replies = complete(spec_for(server), people.render(["Ann is Bob's child."]))
    (row,) = people.parse([""], replies)
    assert (row.value, row.error.kind) == (None, "truncated")


@pytest.mark.parametrize("text", [WHOLE, f"Here: {WHOLE}\n\n", "[1, 2] and more"])
def test_a_value_that_is_whole_counts_though_the_answer_was_cut_behind_it(text):
    with ChatServer(lambda body: RawAnswer(chat(text, "length"))) as server:
        (reply,) = complete(spec_for(server), orders(1))
    assert (reply.text, reply.error) == (text, None)


def test_a_text_with_its_entities_marked_has_a_bound_and_runs_away_once():
    (request,) = PLACES.render(["To Rome."])
    endless = "<not_entity>To </not_entity>" + " " * 100
    with ChatServer(lambda body: RawAnswer(chat(endless, "length", {"completion_tokens": limit_of(body)}))) as server:
        (reply,) = complete(spec_for(server), [request])
        assert [limit_of(received.body) for received in server.received] == [request.answer_bound]
    assert (reply.error.kind, reply.attempts) == ("truncated", 1)


TOO_LARGE = [
    (400, "max_tokens is too large: {}. This model supports at most 900 completion tokens.", "max_tokens"),
    (400, "'max_tokens' is too large. This model's maximum context length is 900 tokens, and you asked for {}.", None),
    (400, "This model's maximum context length is 900 tokens. However, you requested {} in the completion.", None),
    (400, "max_tokens: {} > 900, which is the maximum allowed number of output tokens", None),
]


@pytest.mark.parametrize(("status", "message", "param"), TOO_LARGE)
def test_a_bound_that_the_server_has_no_room_for_falls_away(status, message, param):
    def answer(body):
        limit = limit_of(body)
        return StatusFault(status, message.format(limit), param=param) if limit is not None and limit > 900 else WHOLE

    with ChatServer(answer) as server:
        replies = complete(spec_for(server), orders(30))
        assert server.n_requests == 31
    assert {(reply.text, reply.error) for reply in replies} == {(WHOLE, None)}


def test_a_prompt_that_is_too_long_is_so_without_a_bound_too():
    refusal = StatusFault(400, "This model's maximum context length is 10 tokens, 9 of them in the completion.")
    with ChatServer(lambda body: refusal) as server:
        (reply,) = complete(spec_for(server), orders(1))
        assert server.n_requests == 2
    assert reply.error.kind == "context_length"


def test_gemini_has_the_same_bound_and_drops_one_that_is_too_large():
    pytest.importorskip("google.genai")

    def answer(body):
        limit = body["generationConfig"].get("maxOutputTokens")
        refused = "it has a maxOutputTokens value of 5000 but the supported range is from 1 to 900"
        return StatusFault(400, refused) if limit else WHOLE

    with ChatServer(answer) as server:
        backend = vertex_spec_for(server, model="gemma-x").open(lambda ref: TOKEN)
        replies = backend.complete(orders(10))
        backend.close()
        assert server.n_requests == 11
    assert {reply.text for reply in replies} == {WHOLE}


def test_the_bound_is_no_part_of_what_a_cache_knows_an_answer_by():
    cached = CachedBackend.__new__(CachedBackend)
    cached._identity = ("m",)
    (request,) = orders(1)
    assert cached._key(request) == cached._key(replace(request, answer_bound=None))
