from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bot.config import Price, fixed_settings
from bot.model import Usage
from bot.usage import MAX_DOCUMENT, UsageReader, price

SSE = "text/event-stream; charset=utf-8"


def stream(*events: Any, end: str = "\n") -> bytes:
    lines = []
    for event in events:
        name = event.get("type") if isinstance(event, dict) else None
        lines += [f"event: {name}"] if name else []
        lines += [f"data: {event if isinstance(event, str) else json.dumps(event)}", ""]
    return end.join([*lines, ""]).encode()


MESSAGES = stream(
    {
        "type": "message_start",
        "message": {
            "model": "claude-x",
            "usage": {
                "input_tokens": 10,
                "output_tokens": 1,
                "cache_read_input_tokens": 300,
                "cache_creation_input_tokens": 40,
            },
        },
    },
    {"type": "ping"},
    {"type": "content_block_delta", "delta": {"text": 'says "usage" and "model"'}},
    {"type": "message_delta", "usage": {"output_tokens": 25, "cache_read_input_tokens": None}},
    {"type": "message_stop"},
)
MESSAGES_USAGE = Usage(
    input_tokens=10, output_tokens=25, cached_tokens=300, cache_write_tokens=40, requests=1
)
RESPONSES = stream(
    {"type": "response.created", "response": {"model": "gpt-x", "usage": None}},
    {"type": "response.output_text.delta", "delta": "hello"},
    {
        "type": "response.completed",
        "response": {
            "model": "gpt-x",
            "usage": {
                "input_tokens": 350,
                "input_tokens_details": {"cached_tokens": 300, "cache_write_tokens": 40},
                "output_tokens": 25,
                "output_tokens_details": {"reasoning_tokens": 5},
            },
        },
    },
)
CHAT_CHUNK = {"object": "chat.completion.chunk", "model": "gpt-c"}
CHAT = stream(
    {**CHAT_CHUNK, "choices": [{"delta": {"content": "hi"}}], "usage": None},
    {
        **CHAT_CHUNK,
        "choices": [],
        "usage": {
            "prompt_tokens": 310,
            "completion_tokens": 25,
            "prompt_tokens_details": {"cached_tokens": 300},
        },
    },
    "[DONE]",
)
GEMINI_LAST = {
    "candidates": [{"content": {"parts": [{"text": "!"}]}, "finishReason": "STOP"}],
    "usageMetadata": {
        "promptTokenCount": 290,
        "toolUsePromptTokenCount": 20,
        "cachedContentTokenCount": 300,
        "candidatesTokenCount": 20,
        "thoughtsTokenCount": 5,
        "totalTokenCount": 335,
    },
    "modelVersion": "gemini-x",
}
GEMINI = stream(
    {"candidates": [{"content": {"parts": [{"text": "hi"}]}}], "usageMetadata": {"promptTokenCount": 290}},
    GEMINI_LAST,
)
CHAT_USAGE = dataclasses.replace(MESSAGES_USAGE, cache_write_tokens=0)


def read(body: bytes, content_type: str = SSE, size: int | None = None) -> UsageReader:
    reader = UsageReader(content_type)
    for start in range(0, len(body), size or max(1, len(body))):
        reader.feed(body[start : start + (size or len(body))])
    reader.close()
    return reader


@pytest.mark.parametrize("size", [1, 7, 100, None])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize(
    ("body", "model", "usage"),
    [
        (MESSAGES, "claude-x", MESSAGES_USAGE),
        (RESPONSES, "gpt-x", MESSAGES_USAGE),
        (CHAT, "gpt-c", CHAT_USAGE),
        (GEMINI, "gemini-x", CHAT_USAGE),
    ],
    ids=["messages", "responses", "chat", "gemini"],
)
def test_streams_however_they_are_cut(
    body: bytes, model: str, usage: Usage, end: str, size: int | None
) -> None:
    reader = read(body.replace(b"\n", end.encode()), size=size)
    assert (reader.model, reader.usage, reader.complete) == (model, usage, True)


@pytest.mark.parametrize(
    ("document", "model", "usage"),
    [
        (
            {
                "type": "message",
                "model": "claude-x",
                "usage": {
                    "input_tokens": 10,
                    "output_tokens": 25,
                    "cache_read_input_tokens": 300,
                    "cache_creation_input_tokens": 40,
                },
            },
            "claude-x",
            MESSAGES_USAGE,
        ),
        (
            {
                "object": "response",
                "model": "gpt-x",
                "usage": {
                    "input_tokens": 350,
                    "input_tokens_details": {"cached_tokens": 300, "cache_write_tokens": 40},
                    "output_tokens": 25,
                },
            },
            "gpt-x",
            MESSAGES_USAGE,
        ),
        (
            {
                "object": "chat.completion",
                "model": "gpt-c",
                "usage": {
                    "prompt_tokens": 310,
                    "completion_tokens": 25,
                    "prompt_tokens_details": {"cached_tokens": 300},
                },
            },
            "gpt-c",
            CHAT_USAGE,
        ),
    ],
    ids=["messages", "responses", "chat"],
)
def test_documents(document: dict[str, Any], model: str, usage: Usage) -> None:
    reader = read(json.dumps(document, indent=1).encode(), "application/json", size=9)
    assert (reader.model, reader.usage, reader.complete) == (model, usage, True)


def test_stream_that_ends_early_counts_what_was_seen() -> None:
    reader = read(MESSAGES[: MESSAGES.index(b"event: message_delta")])
    assert reader.usage == dataclasses.replace(MESSAGES_USAGE, output_tokens=1)
    assert not reader.complete


def test_last_line_without_an_end() -> None:
    assert read(RESPONSES.rstrip()).usage == MESSAGES_USAGE


@pytest.mark.parametrize("kind", ["response.incomplete", "response.failed"])
def test_responses_that_did_not_complete_cost_too(kind: str) -> None:
    assert read(RESPONSES.replace(b"response.completed", kind.encode())).usage == MESSAGES_USAGE


def test_stream_goes_on_after_a_line_that_is_too_long() -> None:
    huge = b'data: {"type": "response.completed", "usage": "' + b"x" * MAX_DOCUMENT + b'"}\n'
    reader = read(huge + MESSAGES, size=2**20)
    assert reader.usage == MESSAGES_USAGE


def test_document_that_is_too_long_is_passed_over() -> None:
    reader = read(b'{"x": "' + b"x" * MAX_DOCUMENT, "application/json", size=2**20)
    assert (reader.usage, reader.complete) == (Usage(requests=1), False)


ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "usage", "message", "response", "model", "input_tokens", "object"]),
            inner,
        )
    ),
    max_leaves=8,
)
KINDS = st.sampled_from(["message_start", "message_delta", "message", "response.completed", "response", "x"])


@given(
    event=st.dictionaries(st.sampled_from(["usage", "message", "response", "model"]), ODD),
    kind=KINDS,
    shape=st.sampled_from(["type", "object"]),
    content_type=st.sampled_from([SSE, "application/json", ""]),
)
def test_odd_answers_never_raise(event: dict[str, Any], kind: str, shape: str, content_type: str) -> None:
    body = {**event, shape: kind}
    reader = read(stream(body) if content_type == SSE else json.dumps(body).encode(), content_type)
    assert reader.usage.requests == 1
    assert min(reader.usage.input_tokens, reader.usage.output_tokens, reader.usage.cached_tokens) >= 0


@given(st.binary())
def test_bytes_never_raise(body: bytes) -> None:
    assert read(b"data: " + body).usage.requests == 1


def test_price() -> None:
    full = Price(input=3, output=15, cached=0.3, cache_write=3.75)
    cost = price(MESSAGES_USAGE, "m", {"m": full}.get).cost
    assert cost == pytest.approx((10 * 3 + 25 * 15 + 300 * 0.3 + 40 * 3.75) / 1e6)


@pytest.mark.parametrize(
    ("sent", "cost"), [(200_000, 0.2 * 1.25), (200_001, 0.200001 * 2.5), (1_000_000, 2.5)], ids=str
)
def test_long_prompts_have_a_price_of_their_own(sent: int, cost: float) -> None:
    prices = fixed_settings().price_of
    assert price(Usage(input_tokens=sent), "gemini-2.5-pro", prices).cost == pytest.approx(cost)
    # what the cache had counts for the length, and costs as it does there
    cached = price(Usage(cached_tokens=sent), "gemini-2.5-pro", prices).cost
    assert cached == pytest.approx(cost / 10)


def test_the_longest_prompt_that_is_reached_tells_the_price() -> None:
    own = {"beyond": {"1000": {"input": 3, "output": 0}, "2000": {"input": 5, "output": 0}}}
    prices = fixed_settings(prices={"m": {"input": 1, "output": 0, **own}}).price_of
    found = [price(Usage(input_tokens=sent), "m", prices).cost for sent in (1000, 1500, 2000, 2001)]
    assert found == pytest.approx([0.001, 0.0045, 0.006, 0.010005])


def test_every_default_model_has_a_price() -> None:
    settings = fixed_settings()
    for model in settings.models.values():
        assert price(Usage(input_tokens=1, output_tokens=1), model, settings.price_of).cost


@pytest.mark.parametrize("kind", ["message_start", "message_delta", "message"])
@pytest.mark.parametrize(("hour", "counted"), [(30, 30), (0, 0), (999, 40), (None, 0), ("30", 0)])
def test_what_is_kept_for_an_hour_costs_twice_the_input(kind: str, hour: object, counted: int) -> None:
    usage = {
        "input_tokens": 10,
        "output_tokens": 25,
        "cache_creation_input_tokens": 40,
        "cache_creation": {"ephemeral_5m_input_tokens": 10, "ephemeral_1h_input_tokens": hour},
    }
    event = (
        {"type": kind, "message": {"usage": usage}}
        if kind == "message_start"
        else {"type": kind, "usage": usage}
    )
    reader = read(stream(event))
    assert (reader.usage.cache_write_tokens, reader.kept_for_an_hour) == (40, counted)
    full = Price(input=3, output=15, cached=0.3, cache_write=3.75)
    cost = price(reader.usage, "m", {"m": full}.get, kept_for_an_hour=reader.kept_for_an_hour).cost
    assert cost == pytest.approx((10 * 3 + 25 * 15 + (40 - counted) * 3.75 + counted * 6) / 1e6)


def test_cached_tokens_cost_as_input_unless_told() -> None:
    cost = price(MESSAGES_USAGE, "m", {"m": Price(input=3, output=15)}.get).cost
    assert cost == pytest.approx((350 * 3 + 25 * 15) / 1e6)


@pytest.mark.parametrize("model", ["unheard-of", ""])
def test_cost_is_none_without_a_price(model: str) -> None:
    usage = price(MESSAGES_USAGE, model, fixed_settings().price_of)
    assert usage == dataclasses.replace(MESSAGES_USAGE, cost=None)
    assert (usage + usage).cost is None


def test_dated_models_have_the_price_of_their_family() -> None:
    prices = fixed_settings(prices={"gemini-2.5-pro": {"input": 7, "output": 8}}).price_of
    for model, cost in {
        "claude-sonnet-4-5-20250929": 3,
        "claude-haiku-4-5-latest": 1,
        "gpt-5-2025-08-07": 1.25,
        "gemini-2.5-pro-002": 7,
    }.items():
        assert price(Usage(input_tokens=1_000_000), model, prices).cost == pytest.approx(cost)


@pytest.mark.parametrize(
    "model", ["gpt-5-pro", "gpt-5-pro-2025-10-06", "gpt-5-mini", "gpt-5-codex-max", "gpt-5-"]
)
def test_another_model_of_the_family_has_no_price_by_its_name(model: str) -> None:
    """gpt-5-pro costs twelve times as much as gpt-5: no budget would have held."""
    assert price(Usage(input_tokens=1_000_000), model, fixed_settings().price_of).cost is None


def test_gemini_without_server_sent_events_is_one_array() -> None:
    body = json.dumps([{"candidates": [{}], "usageMetadata": {"promptTokenCount": 1}}, GEMINI_LAST]).encode()
    reader = read(body, "application/json; charset=UTF-8")
    assert (reader.model, reader.usage, reader.complete) == ("gemini-x", CHAT_USAGE, True)


def test_a_prompt_that_gemini_blocked_is_a_whole_answer() -> None:
    body = {"promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": {"promptTokenCount": 9}}
    reader = read(json.dumps(body).encode(), "application/json")
    assert (reader.usage.input_tokens, reader.complete) == (9, True)


@pytest.mark.parametrize(
    ("body", "sent", "generated"),
    [
        (
            stream(
                {"type": "response.created", "response": {"model": "gpt-x", "usage": None}},
                *({"type": "response.output_text.delta", "delta": "word"} for _ in range(7)),
            ),
            1000,
            7,
        ),
        (stream(*({**CHAT_CHUNK, "choices": [{"delta": {"content": "a"}}]} for _ in range(3))), 1000, 3),
        (
            stream(
                {"type": "message_start", "message": {"usage": {"input_tokens": 10, "output_tokens": 1}}},
                *({"type": "content_block_delta", "delta": {"text": "a"}} for _ in range(4)),
            ),
            10,
            4,
        ),
        (stream({"candidates": [{}], "usageMetadata": {"promptTokenCount": 12}}), 12, 1),
        (b"", 1000, 0),
    ],
    ids=["responses", "chat", "messages", "gemini", "nothing"],
)
def test_an_answer_that_broke_off_is_counted_by_its_length(body: bytes, sent: int, generated: int) -> None:
    """A client that always leaves just before the numbers come must not work for nothing."""
    reader = read(body)
    assert not reader.complete
    guess = reader.estimate(4000)
    assert (guess.input_tokens, guess.output_tokens, guess.requests) == (sent, generated, 1)


def test_what_was_told_counts_over_the_guess() -> None:
    assert read(MESSAGES).estimate(10**6) == MESSAGES_USAGE
