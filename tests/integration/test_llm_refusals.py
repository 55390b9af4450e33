"""Providers that refuse: the next key, another try, and what the client is told in the end."""

from __future__ import annotations

import json
from typing import Any

import pytest
from aiohttp import web
from multidict import CIMultiDictProxy

from tests.llm import Script, ScriptedLlm
from tests.llm_gate import GEMINI_TOOLS, KEY, MODEL, TOOLS, Front, free_port, front, raw_upstream

KEYS = ["k-first-0001", "k-second-0002", "k-third-0003"]
QUOTA = {"status": 429, "type": "insufficient_quota", "message": "You exceeded your current quota"}
LIMITED = {"status": 429, "type": "rate_limit_error", "message": "slow down"}
ROUTES = {
    "anthropic": ("anthropic/v1/messages", {"model": MODEL, "tools": TOOLS}),
    "openai": ("openai/responses", {"model": MODEL, "tools": TOOLS}),
    "gemini": ("gemini/v1beta/models/gemini-2.5-pro:generateContent", {"tools": GEMINI_TOOLS}),
}


def with_keys(url: str, kind: str, *keys: str, **more: Any) -> dict[str, Any]:
    """Settings with several keys for the provider ``kind``."""
    base = f"{url}/v1" if kind == "openai" else url
    return {"providers": {kind: {"kind": kind, "url": base, "keys": list(keys), **more}}}


def key_of(headers: dict[str, str]) -> str:
    shown = headers.get("x-api-key") or headers.get("x-goog-api-key") or headers.get("authorization", "")
    return shown.removeprefix("Bearer ")


async def ask(gate: Front, kind: str) -> tuple[int, CIMultiDictProxy[str], Any]:
    path, body = ROUTES[kind]
    async with gate.post(path, body) as answer:
        return answer.status, answer.headers, await answer.json()


@pytest.mark.parametrize("kind", list(ROUTES))
@pytest.mark.parametrize(
    "error",
    [QUOTA, {"status": 401}, {"status": 402}, {"status": 403}, LIMITED],
    ids=lambda error: error["status"],
)
async def test_the_next_key_takes_over(kind: str, error: dict[str, Any]) -> None:
    script = Script.of([{"error": error}, {"text": "hi"}, {"text": "again"}])
    async with (
        ScriptedLlm(script) as llm,
        front(llm.url, **with_keys(llm.url, kind, *KEYS)) as gate,
    ):
        assert (await ask(gate, kind))[0] == 200
        assert (await ask(gate, kind))[0] == 200
        # the refused one rests: the second request does not try it again
        assert [key_of(request.headers) for request in llm.requests] == [KEYS[0], KEYS[1], KEYS[1]]
    assert len(gate.tally.entries) == 2, "a refusal is no call"


async def test_credit_that_is_used_up_is_a_refused_key_although_the_status_is_400() -> None:
    credit = {"status": 400, "message": "Your credit balance is too low to access the Anthropic API."}
    async with (
        ScriptedLlm(Script.of([{"error": credit}, {"text": "hi"}])) as llm,
        front(llm.url, **with_keys(llm.url, "anthropic", *KEYS)) as gate,
    ):
        assert (await ask(gate, "anthropic"))[0] == 200
        assert [key_of(request.headers) for request in llm.requests] == KEYS[:2]


async def test_when_no_key_is_left_the_last_refusal_goes_to_the_client() -> None:
    script = Script.of([{"error": {**QUOTA, "message": f"quota of {n}"}} for n in "abcd"] + [{"text": "hi"}])
    async with (
        ScriptedLlm(script) as llm,
        front(llm.url, pauses=(0.0,) * 5, **with_keys(llm.url, "openai", *KEYS)) as gate,
    ):
        status, headers, body = await ask(gate, "openai")
        assert (status, body["error"]["message"]) == (429, "quota of c")
        assert headers["x-should-retry"] == "false"
        # all rest; the one whose rest ends first is tried, so that a repaired account is found out
        assert (await ask(gate, "openai"))[0] == 429
        assert (await ask(gate, "openai"))[0] == 200
        assert [key_of(request.headers) for request in llm.requests] == [*KEYS, *KEYS[:2]]


async def test_a_request_that_nobody_would_take_uses_up_no_key() -> None:
    script = Script.of([{"error": {"status": 400, "message": "max_tokens is missing"}}, {"text": "hi"}])
    async with (
        ScriptedLlm(script) as llm,
        front(llm.url, pauses=(0.0,), **with_keys(llm.url, "anthropic", *KEYS)) as gate,
    ):
        status, headers, _ = await ask(gate, "anthropic")
        assert status == 400
        assert "x-should-retry" not in headers
        assert (await ask(gate, "anthropic"))[0] == 200
        assert [key_of(request.headers) for request in llm.requests] == [KEYS[0], KEYS[0]]


async def test_every_key_is_taken_out_of_an_error() -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.json_response(
            {"error": f"bad key, known are {KEYS} and {request.headers['X-Team']}"}, status=400
        )

    async with (
        raw_upstream(answer) as url,
        front(url, **with_keys(url, "openai", *KEYS, headers={"X-Team": "hush-hush"})) as gate,
    ):
        _, _, body = await ask(gate, "openai")
    assert not [secret for secret in (*KEYS, "hush-hush") if secret in json.dumps(body)]


@pytest.mark.parametrize("kind", list(ROUTES))
@pytest.mark.parametrize("status", [429, 500, 503, 529])
async def test_a_provider_in_trouble_is_asked_again(kind: str, status: int) -> None:
    script = Script.of([{"error": {"status": status, "message": "busy"}, "times": 2}, {"text": "hi"}])
    async with ScriptedLlm(script) as llm, front(llm.url, pauses=(0.0, 0.0)) as gate:
        assert (await ask(gate, kind))[0] == 200
        assert len(llm.requests) == 3
        first, *others = (request.body for request in llm.requests)
        assert others == [first, first]
    assert len(gate.tally.entries) == 1


async def test_patience_ends_and_the_client_is_tamed_and_not_multiplied() -> None:
    script = Script.of([{"error": {"status": 503, "message": "busy"}, "times": "always"}])
    async with ScriptedLlm(script) as llm, front(llm.url, pauses=(0.0, 0.0)) as gate:
        status, headers, body = await ask(gate, "anthropic")
        assert (status, body["error"]["message"]) == (503, "busy")
        assert headers["x-should-retry"] == "false"
        assert len(llm.requests) == 3
        # a client that tries again nevertheless costs one request for each of its tries
        assert (await ask(gate, "anthropic"))[0] == 503
        assert len(llm.requests) == 4


async def test_patience_is_back_after_an_answer() -> None:
    busy = {"error": {"status": 503, "message": "busy"}}
    script = Script.of([busy, busy, {"text": "hi"}, busy, {"text": "hi"}])
    async with ScriptedLlm(script) as llm, front(llm.url, pauses=(0.0,)) as gate:
        assert [(await ask(gate, "anthropic"))[0] for _ in range(3)] == [503, 200, 200]
        assert len(llm.requests) == 5


async def test_a_provider_that_wants_to_be_left_alone_for_long_is_not_waited_for() -> None:
    script = Script.of([{"error": {**LIMITED, "headers": {"retry-after": "3600"}}}, {"text": "hi"}])
    async with ScriptedLlm(script) as llm, front(llm.url, pauses=(0.0,) * 3) as gate:
        status, headers, _ = await ask(gate, "anthropic")
        assert (status, headers["retry-after"]) == (429, "3600")
        assert "x-should-retry" not in headers, "the client may wait for so long if it likes"
        assert len(llm.requests) == 1


async def test_a_connection_that_fails_is_tried_again() -> None:
    tries = 0

    async def answer(request: web.Request) -> web.StreamResponse:
        nonlocal tries
        tries += 1
        if tries < 3:
            assert request.transport is not None
            request.transport.abort()
        return web.json_response({"type": "message", "model": MODEL, "usage": {"input_tokens": 1}})

    async with raw_upstream(answer) as url, front(url, pauses=(0.0, 0.0)) as gate:
        assert (await ask(gate, "anthropic"))[0] == 200
    assert tries == 3


async def test_nobody_there_is_told_after_the_tries() -> None:
    async with front(f"http://127.0.0.1:{free_port()}", pauses=(0.0, 0.0)) as gate:
        status, headers, body = await ask(gate, "openai")
    assert (status, headers["x-should-retry"]) == (502, "false")
    assert "cannot be reached: Connection refused." in body["error"]["message"]


async def test_nothing_is_tried_again_once_a_byte_was_passed_on() -> None:
    script = Script.of([{"drop": True, "text": "hi"}, {"text": "hi"}])
    body = {"model": MODEL, "stream": True, "tools": TOOLS}
    async with (
        ScriptedLlm(script) as llm,
        front(llm.url, pauses=(0.0,) * 3, **with_keys(llm.url, "anthropic", *KEYS)) as gate,
    ):
        async with gate.post("anthropic/v1/messages", body) as r:
            assert r.status == 200
            with pytest.raises(Exception, match="payload"):
                await r.read()
        await gate.tally.counted.wait()
        assert len(llm.requests) == 1


# --- kinds of providers


async def test_a_keyless_provider_gets_no_key_and_its_own_headers() -> None:
    async with ScriptedLlm(Script.of([{"text": "hi"}])) as llm:
        tables = {"ollama": {"kind": "openai", "url": f"{llm.url}/v1", "headers": {"X-Team": "agents"}}}
        async with front(llm.url, providers=tables, agent_providers={"": "ollama"}) as gate:
            assert (await ask(gate, "openai"))[0] == 200
        (request,) = llm.requests
    assert request.headers["x-team"] == "agents"
    assert "authorization" not in request.headers
    assert "x-api-key" not in request.headers


async def test_gemini_sees_its_key_in_the_header_and_never_in_the_address() -> None:
    path = (
        "gemini/v1beta/models/gemini-2.5-pro:streamGenerateContent?alt=sse&key=other&fields=candidates&%24x=1"
    )
    async with ScriptedLlm(Script.of([{"text": "hi"}])) as llm, front(llm.url) as gate:
        async with gate.post(path, {"tools": GEMINI_TOOLS}) as r:
            assert r.headers["Content-Type"].startswith("text/event-stream")
            await r.read()
        (request,) = llm.requests
    assert request.path == "/v1beta/models/gemini-2.5-pro:streamGenerateContent?alt=sse"
    assert request.headers["x-goog-api-key"] == KEY
    assert "authorization" not in request.headers


async def test_gemini_counts_tokens_and_lists_models_for_nothing() -> None:
    async with ScriptedLlm(Script.of([])) as llm, front(llm.url) as gate:
        async with gate.post("gemini/v1beta/models/gemini-2.5-pro:countTokens", {"contents": []}) as r:
            assert r.status == 200
        async with gate.get("gemini/v1beta/models") as r:
            assert r.status == 200
        assert len(llm.requests) == 2
    assert gate.tally.entries == []


async def test_a_subscription_token_goes_as_such_and_costs_nothing() -> None:
    token = "sk-ant-oat01-abcdefghijkl"
    async with (
        ScriptedLlm(Script.of([{"text": "hi"}])) as llm,
        front(llm.url, llm_anthropic_key=token) as gate,
    ):
        body = {"model": MODEL, "tools": TOOLS}
        async with gate.post(
            "anthropic/v1/messages", body, **{"anthropic-beta": "claude-code-20250219"}
        ) as r:
            assert r.status == 200
        (request,) = llm.requests
    assert request.headers["authorization"] == f"Bearer {token}"
    assert request.headers["anthropic-beta"] == "claude-code-20250219,oauth-2025-04-20"
    assert "x-api-key" not in request.headers
    [(_, usage)] = gate.tally.entries
    assert (usage.output_tokens, usage.cost) == (20, 0.0)


async def test_models_that_are_not_allowed() -> None:
    async with (
        ScriptedLlm(Script.of([{"text": "hi"}])) as llm,
        front(llm.url, models_allowed=["claude-*", "gpt-5"]) as gate,
    ):
        async with gate.post("openai/responses", {"model": "gpt-5-pro", "tools": TOOLS}) as r:
            assert r.status == 400
            message = (await r.json())["error"]["message"]
        assert "'gpt-5-pro'" in message
        assert "CONDUCTOR_MODELS_ALLOWED" in message
        async with gate.post(
            "gemini/v1beta/models/gemini-2.5-pro:generateContent", {"tools": GEMINI_TOOLS}
        ) as r:
            assert r.status == 400
            assert (await r.json())["error"]["status"] == "INVALID_ARGUMENT"
        async with gate.post("openai/chat/completions", {"tools": TOOLS}) as r:
            assert r.status == 400, "a provider's default model is not on the list"
        assert llm.requests == []
        async with gate.post("anthropic/v1/messages", {"model": MODEL, "tools": TOOLS}) as r:
            assert r.status == 200
