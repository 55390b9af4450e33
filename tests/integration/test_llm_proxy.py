"""The LLM proxy between a real HTTP client and the scripted LLM."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from io import BytesIO
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import structlog
from aiohttp import web

from bot.model import Usage
from runners.gateway.desk import Desk
from runners.gateway.llm import MAX_BODY
from tests.llm import Script, ScriptedLlm
from tests.llm_gate import GEMINI_TOOLS, KEY, MODEL, TOKEN, TOOLS, free_port, front, raw_upstream


@pytest.mark.parametrize(
    ("settings", "sent"),
    [
        ({}, "claude-code-20250219,extended-cache-ttl-2025-04-11"),
        (
            {"llm_betas": ("context-1m",)},
            "claude-code-20250219,context-1m-2025-08-07,extended-cache-ttl-2025-04-11",
        ),
        (
            {
                "providers": {
                    "anthropic": {"kind": "anthropic", "url": "", "keys": ["k"], "subscription": True}
                }
            },
            "claude-code-20250219,extended-cache-ttl-2025-04-11",
        ),
    ],
    ids=["left out", "allowed", "left out for a provider of one's own"],
)
async def test_betas_that_cost_more_than_the_price_says_are_left_out(
    settings: dict[str, Any], sent: str
) -> None:
    asked = "claude-code-20250219, context-1m-2025-08-07,Fast-Mode-2026-02-01, extended-cache-ttl-2025-04-11"
    async with ScriptedLlm(Script.of([{"text": "hi"}, {"text": "hi"}])) as llm:
        if providers := settings.get("providers"):
            providers["anthropic"]["url"] = llm.url
        async with front(llm.url, **settings) as gate:
            body = {"model": MODEL, "messages": []}
            for flags in (asked, "context-1m-2025-08-07,fast-mode-2026-02-01"):
                async with gate.post("anthropic/v1/messages", body, **{"anthropic-beta": flags}) as r:
                    assert r.status == 200
        first, second = llm.requests
        assert first.headers["anthropic-beta"] == sent
        assert second.headers.get("anthropic-beta", "") == (
            "context-1m-2025-08-07" if "llm_betas" in settings else ""
        )


async def test_real_key_goes_upstream_and_the_token_does_not() -> None:
    body = {"model": MODEL, "stream": True, "tools": TOOLS, "messages": []}
    async with ScriptedLlm(Script.of([{"text": "hi"}])) as llm, front(llm.url) as gate:
        async with gate.post(
            "anthropic/v1/messages?beta=true", body, Cookie="a=b", **{"anthropic-beta": "x"}
        ) as r:
            assert r.status == 200
            assert r.headers["Content-Type"].startswith("text/event-stream")
            assert "message_stop" in await r.text()
        async with gate.post("openai/responses", body, **{"OpenAI-Organization": "org-other"}) as r:
            assert r.status == 200
            assert "response.completed" in await r.text()
        anthropic, openai = llm.requests
    assert anthropic.path == "/v1/messages?beta=true"
    assert anthropic.headers["x-api-key"] == KEY
    assert anthropic.headers["anthropic-beta"] == "x"
    assert anthropic.headers["accept-encoding"] == "identity"
    assert openai.path == "/v1/responses"
    assert openai.headers["authorization"] == f"Bearer {KEY}"
    assert "authorization" not in anthropic.headers
    assert "x-api-key" not in openai.headers
    assert "cookie" not in anthropic.headers
    assert "openai-organization" not in openai.headers
    assert TOKEN not in anthropic.text + openai.text
    assert anthropic.body == body


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("path", "extra"),
    [
        ("anthropic/v1/messages", {}),
        ("openai/responses", {}),
        ("openai/chat/completions", {"stream_options": {"include_usage": True}}),
        ("gemini/v1beta/models/scripted-1:streamGenerateContent?alt=sse", {}),
        ("gemini/v1beta/models/scripted-1:streamGenerateContent", {}),  # one JSON array
        ("gemini/v1beta/models/scripted-1:generateContent", {}),
    ],
)
async def test_tokens_and_cost_are_counted(path: str, extra: dict[str, Any], stream: bool) -> None:
    turn = {"text": "hi", "usage": {"input": 1000, "output": 500, "cached": 2000}}
    prices = {"scripted-1": {"input": 2, "output": 10, "cached": 0.5}}
    body = {"model": "scripted-1", "stream": stream, "tools": TOOLS, **extra}
    if path.startswith("gemini/"):
        body = {"tools": GEMINI_TOOLS, "contents": [{"role": "user", "parts": [{"text": "hi"}]}]}
    async with ScriptedLlm(Script.of([turn])) as llm, front(llm.url, prices=prices) as gate:
        async with gate.post(path, body) as r:
            assert r.status == 200
            await r.read()
        await gate.tally.counted.wait()
    expected = Usage(
        input_tokens=1000, output_tokens=500, cached_tokens=2000, requests=1, cost=pytest.approx(0.008)
    )
    assert gate.tally.entries == [("scripted-1", expected)]


async def test_chat_stream_is_asked_for_its_numbers() -> None:
    body = {"model": MODEL, "stream": True, "tools": TOOLS}
    async with ScriptedLlm(Script.of([{"text": "hi"}])) as llm, front(llm.url) as gate:
        async with gate.post("openai/chat/completions", body) as r:
            await r.read()
        await gate.tally.counted.wait()
        assert llm.requests[0].body["stream_options"] == {"include_usage": True}
    [(_, usage)] = gate.tally.entries
    assert (usage.input_tokens, usage.output_tokens) == (100, 20)


async def test_whole_answer_without_numbers_is_counted_by_its_length() -> None:
    text = json.dumps({"object": "chat.completion", "model": MODEL, "choices": ["x" * 4000]})

    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(text=text, content_type="application/json")

    body = {"model": MODEL, "tools": TOOLS}
    async with raw_upstream(answer) as url, front(url) as gate:
        async with gate.post("openai/chat/completions", body) as r:
            await r.read()
        await gate.tally.counted.wait()
    [(model, usage)] = gate.tally.entries
    assert (model, usage.output_tokens, usage.requests) == (MODEL, len(text) // 4, 1)
    assert 10 < usage.input_tokens < 40
    assert usage.cost == pytest.approx((usage.input_tokens * 3 + usage.output_tokens * 15) / 1e6)


async def test_what_the_cache_keeps_for_an_hour_is_counted_with_its_price() -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        kept = {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 1_000_000}
        usage = {"input_tokens": 0, "output_tokens": 0, "cache_creation_input_tokens": 1_000_000}
        model = "claude-sonnet-4-5-20250929"
        return web.json_response(
            {"type": "message", "model": model, "usage": usage | {"cache_creation": kept}}
        )

    async with raw_upstream(answer) as url, front(url) as gate:
        async with gate.post("anthropic/v1/messages", {"model": "claude-sonnet-4-5", "messages": []}) as r:
            await r.read()
        await gate.tally.counted.wait()
        [(_, usage)] = gate.tally.entries
    assert (usage.cache_write_tokens, usage.cost) == (1_000_000, pytest.approx(6))


async def test_model_without_a_price_has_no_known_cost() -> None:
    async with ScriptedLlm(Script.of([{"text": "hi"}])) as llm, front(llm.url) as gate:
        async with gate.post("anthropic/v1/messages", {"model": "unheard-of", "tools": TOOLS}) as r:
            await r.read()
        await gate.tally.counted.wait()
    [(model, usage)] = gate.tally.entries
    assert (model, usage.output_tokens, usage.cost) == ("unheard-of", 20, None)


async def test_calls_that_cost_nothing_are_not_counted() -> None:
    async with ScriptedLlm(Script.of([])) as llm, front(llm.url) as gate:
        async with gate.post("anthropic/v1/messages/count_tokens", {"model": MODEL}) as r:
            assert (await r.json())["input_tokens"] > 0
        async with gate.get("openai/models") as r:
            assert (await r.json())["data"]
        assert [request.protocol for request in llm.requests] == ["count_tokens", "models"]
    assert gate.tally.entries == []


async def test_stream_arrives_before_it_ends() -> None:
    """The first event is read while the provider still holds the rest back."""
    go = asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b'data: {"type":"message_start","message":{"usage":{"input_tokens":7}}}\n\n')
        await go.wait()
        await response.write(b'data: {"type":"message_delta","usage":{"output_tokens":3}}\n\n')
        await response.write_eof()
        return response

    async with raw_upstream(answer) as url, front(url) as gate:
        async with gate.post("anthropic/v1/messages", {"model": MODEL, "stream": True}) as r:
            first = await r.content.readany()
            assert b"message_start" in first
            assert not gate.tally.counted.is_set()
            go.set()
            assert b"message_delta" in await r.content.read()
        await gate.tally.counted.wait()
    [(_, usage)] = gate.tally.entries
    assert (usage.input_tokens, usage.output_tokens) == (7, 3)


async def test_client_that_leaves_is_charged_for_what_was_seen() -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(
            b'data: {"type":"message_start","message":{"model":"claude-sonnet-4-5",'
            b'"usage":{"input_tokens":1000000,"output_tokens":1}}}\n\n'
        )
        while True:  # until the proxy closes the connection
            await response.write(b": ping\n\n" * 1000)
            await asyncio.sleep(0)

    async with raw_upstream(answer) as url, front(url) as gate:
        async with gate.post("anthropic/v1/messages", {"model": MODEL, "stream": True}) as r:
            await r.content.readany()
            r.close()
        await gate.tally.counted.wait()
    assert gate.tally.entries == [
        (MODEL, Usage(input_tokens=1_000_000, output_tokens=1, requests=1, cost=pytest.approx(3.000015)))
    ]


async def test_broken_stream_is_broken_for_the_client_too() -> None:
    body = {"model": MODEL, "stream": True, "tools": TOOLS}
    turn = {"drop": True, "text": "hi", "usage": {"input": 40}}
    async with ScriptedLlm(Script.of([turn])) as llm, front(llm.url) as gate:
        async with gate.post("anthropic/v1/messages", body) as r:
            assert r.status == 200
            with pytest.raises(aiohttp.ClientError):
                await r.read()
        await gate.tally.counted.wait()
    [(_, usage)] = gate.tally.entries
    assert (usage.input_tokens, usage.output_tokens) == (40, 1)


async def test_errors_of_the_provider_pass_as_they_are() -> None:
    error = {"status": 429, "message": "slow down", "headers": {"retry-after": "17"}}
    async with (
        ScriptedLlm(Script.of([{"error": error}])) as llm,
        front(llm.url) as gate,
        gate.post("anthropic/v1/messages", {"model": MODEL, "tools": TOOLS}) as r,
    ):
        assert r.status == 429
        assert r.headers["retry-after"] == "17"
        assert (await r.json())["error"] == {"type": "rate_limit_error", "message": "slow down"}
    assert gate.tally.entries == []


async def test_key_in_an_error_of_the_provider_is_taken_out() -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.json_response({"error": f"bad key {request.headers['x-api-key']}"}, status=401)

    async with (
        raw_upstream(answer) as url,
        front(url) as gate,
        gate.post("anthropic/v1/messages", {"model": MODEL}) as r,
    ):
        assert r.status == 401
        assert await r.json() == {"error": "bad key [redacted]"}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "openai/responses/resp_123"),  # would read another job's answer
        ("GET", "openai/responses"),
        ("POST", "openai/files"),
        ("POST", "openai/v1/responses"),
        ("DELETE", "openai/models/ft:mine"),
        ("GET", "openai/models/../files"),
        ("GET", "openai/models/%2e%2e%2ffiles"),
        ("POST", "anthropic/v1/messages/batches"),
        ("GET", "anthropic/v1/organizations/x/api_keys"),
        ("HEAD", "anthropic/api/hello"),
        ("POST", "anthropic/v1/messages/"),
        ("POST", "nobody/v1/messages"),
        ("POST", "gemini/v1beta/models/gemini-2.5-pro:batchGenerateContent"),
        ("POST", "gemini/v1beta/cachedContents"),
        ("GET", "gemini/v1beta/files"),
        ("POST", "gemini/upload/v1beta/files"),
        ("POST", "gemini/v1beta/models/../files/x:generateContent"),
        ("POST", "gemini/v1beta/tunedModels/mine:generateContent"),
        ("POST", ""),
    ],
)
async def test_other_calls_never_leave(method: str, path: str) -> None:
    async with ScriptedLlm(Script.of([])) as llm, front(llm.url) as gate:
        url = aiohttp.client.URL(f"{gate.url}/llm/{path}", encoded=True)
        async with gate.client.request(method, url) as r:
            assert r.status == 404
        assert llm.requests == []


async def test_redirect_is_not_followed_with_the_key() -> None:
    async with ScriptedLlm(Script.of([])) as other:

        async def answer(request: web.Request) -> web.StreamResponse:
            raise web.HTTPTemporaryRedirect(f"{other.url}/v1/messages")

        async with raw_upstream(answer) as url, front(url) as gate:
            auth = {"x-api-key": TOKEN}
            address = f"{gate.url}/llm/anthropic/v1/messages"
            async with gate.client.post(address, json={}, headers=auth, allow_redirects=False) as r:
                assert r.status == 307
            assert gate.tally.entries == []
        assert other.requests == []


@pytest.mark.parametrize(
    ("path", "where"),
    [
        ("anthropic/v1/messages", "Anthropic"),
        ("openai/responses", "OpenAI"),
        ("gemini/v1beta/models/m:generateContent", "Gemini"),
    ],
)
async def test_unreachable_provider(path: str, where: str) -> None:
    port = free_port()
    async with front(f"http://127.0.0.1:{port}") as gate, gate.post(path, {"model": MODEL}) as r:
        assert r.status == 502
        answer = await r.json()
    assert f"{where} at 127.0.0.1:{port} cannot be reached: Connection refused." in answer["error"]["message"]
    kind = answer["error"].get("type") or answer["error"]["status"]
    assert kind == ("UNAVAILABLE" if where == "Gemini" else "api_error")
    assert gate.tally.entries == []


async def test_provider_that_hangs_up() -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    async with (
        server,
        front(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}") as gate,
        gate.post("anthropic/v1/messages", {"model": MODEL}) as r,
    ):
        assert r.status == 502
        assert "closed the connection without an answer" in (await r.json())["error"]["message"]


@pytest.mark.parametrize(
    ("path", "setting"),
    [
        ("anthropic/v1/messages", "llm_anthropic_key"),
        ("openai/responses", "llm_openai_key"),
        ("gemini/v1beta/models/m:generateContent", "llm_gemini_key"),
    ],
)
async def test_missing_key_names_the_setting(path: str, setting: str) -> None:
    async with ScriptedLlm(Script.of([])) as llm, front(llm.url, **{setting: ""}) as gate:
        async with gate.post(path, {"model": MODEL}) as r:
            assert r.status == 401
            answer = await r.json()
        assert llm.requests == []
    assert f"CONDUCTOR_{setting.upper()}" in answer["error"]["message"]
    kind = answer["error"].get("type") or answer["error"]["status"]
    assert kind in ("authentication_error", "UNAUTHENTICATED")


@pytest.mark.parametrize("told", [True, False], ids=["content-length", "chunked"])
async def test_too_large_request_never_leaves(told: bool) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(33):
            yield b"x" * 2**20

    data: Any = BytesIO(b"x" * (MAX_BODY + 1)) if told else pieces()
    async with ScriptedLlm(Script.of([])) as llm, front(llm.url) as gate:
        async with gate.client.post(f"{gate.url}/llm/anthropic/v1/messages", data=data) as r:
            assert r.status == 413
            assert "32 MiB" in (await r.json())["error"]["message"]
        assert llm.requests == []


async def test_large_request_arrives_whole() -> None:
    body = {"model": MODEL, "tools": TOOLS, "messages": [{"role": "user", "content": "y" * 3 * 2**20}]}
    data = BytesIO(json.dumps(body).encode())
    async with ScriptedLlm(Script.of([{"text": "hi"}])) as llm, front(llm.url) as gate:
        async with gate.client.post(f"{gate.url}/llm/anthropic/v1/messages", data=data) as r:
            assert r.status == 200
            await r.read()
        [request] = llm.requests
    assert request.body == body


async def test_compressed_answer_is_passed_on_plain_and_counted() -> None:
    """Some gateways compress whatever the client says."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.json_response(
            {"type": "message", "model": MODEL, "usage": {"input_tokens": 5, "output_tokens": 6}}
        )
        response.enable_compression(web.ContentCoding.gzip)
        return response

    async with raw_upstream(answer) as url, front(url) as gate:
        async with gate.post("anthropic/v1/messages", {"model": MODEL}) as r:
            assert "Content-Encoding" not in r.headers
            assert (await r.json())["usage"] == {"input_tokens": 5, "output_tokens": 6}
        await gate.tally.counted.wait()
    [(_, usage)] = gate.tally.entries
    assert (usage.input_tokens, usage.output_tokens) == (5, 6)


async def test_key_is_in_no_log_line() -> None:
    with structlog.testing.capture_logs() as lines:
        async with ScriptedLlm(Script.of([{"text": "hi"}])) as llm, front(llm.url) as gate:
            async with gate.post("anthropic/v1/messages", {"model": MODEL, "tools": TOOLS}) as r:
                await r.read()
            await gate.tally.counted.wait()
        async with (
            front(f"http://127.0.0.1:{free_port()}") as gate,
            gate.post("openai/responses", {"model": MODEL}) as r,
        ):
            await r.read()
    assert [line["event"] for line in lines] == ["llm call", "llm call"]
    written = json.dumps(lines)
    assert KEY not in written
    assert TOKEN not in written


async def test_a_call_that_takes_long_is_a_sign_of_life_while_it_takes(tmp_path: Path) -> None:
    """Else an agent whose model thinks for minutes would be ended as idle."""
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def thinks(request: web.Request) -> web.StreamResponse:
        await request.read()
        begun.set()
        await go_on.wait()
        return web.json_response({"type": "message", "model": MODEL})

    desk = Desk.create(tmp_path / "desk", attempt_id="a-1", mirror=None)
    async with raw_upstream(thinks) as url, front(url, desk=desk) as gate:
        asking = asyncio.ensure_future(gate.post("anthropic/v1/messages", {"model": MODEL, "max_tokens": 9}))
        await begun.wait()
        now = time.monotonic()
        assert desk.last_sign >= now
        go_on.set()
        async with await asking as answer:
            assert answer.status == 200
            await answer.read()
    ended = desk.last_sign
    assert now < ended
    assert desk.last_sign == ended, "the call is over"
    desk.close()
