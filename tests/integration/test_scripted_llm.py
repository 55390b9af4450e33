"""The scripted LLM itself: what other tests rely on."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.llm import Script, ScriptedLlm
from tests.llm.script import Player, spoken

ROOT = Path(__file__).parent.parent.parent
TOOLS = {"tools": [{"name": "Write"}]}


def ask(player: Player, lane: str = "", **request: Any) -> str:
    return player.answer(lane, {**TOOLS, **request}).text


def test_turns_in_order() -> None:
    player = Player(Script.of([{"text": "a", "times": 2}, {"text": "b"}], at_end="end"))
    assert [ask(player) for _ in range(4)] == ["a", "a", "b", "end"]
    player.rewind()
    assert ask(player) == "a"


def test_requests_without_tools_use_up_no_turn() -> None:
    player = Player(Script.of([{"text": "a"}], aside="title"))
    assert player.answer("", {"messages": []}).text == "title"
    assert ask(player) == "a"


def test_lanes_have_places_of_their_own() -> None:
    player = Player(Script.of([{"text": "a"}], lanes={"x": [{"text": "xa"}]}))
    assert [ask(player, "x"), ask(player, "y"), ask(player)] == ["xa", "a", "a"]


def test_turns_that_do_not_fit_are_skipped() -> None:
    player = Player(
        Script.of([{"when": "codex", "text": "a"}, {"when": "claude", "text": "b", "times": "always"}])
    )
    assert [ask(player, model="claude-1"), ask(player, model="claude-1")] == ["b", "b"]


def test_conversation_decides_whatever_was_asked_before() -> None:
    player = Player(Script.of([{"text": "a"}, {"text": "b"}], follow="conversation", at_end="end"))
    user, model = {"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}
    first, second, third = [user], [user, model, user], [user, model, user, model, user]
    assert [ask(player, messages=m) for m in (second, first, first, third)] == ["b", "a", "a", "end"]


def test_calls_and_words_of_one_answer_are_one() -> None:
    items = [
        {"type": "message", "role": "user"},
        {"type": "reasoning"},
        {"type": "message", "role": "assistant"},
        {"type": "function_call"},
        {"type": "function_call_output"},
        {"type": "custom_tool_call"},
        {"type": "custom_tool_call_output"},
    ]
    assert spoken({"input": items}) == 2


def test_mistakes_in_a_script_are_errors() -> None:
    with pytest.raises(ValueError, match="txt"):
        Script.of([{"txt": "a"}])
    with pytest.raises(ValueError, match="turn"):
        Script.from_data({"turn": []})
    with pytest.raises(ValueError, match="follow"):
        Script.of([], follow="me")
    with pytest.raises(KeyError, match="WORK"):
        Script.of([{"text": "${WORK}"}])


async def test_gate_holds_an_answer_back() -> None:
    async with (
        ScriptedLlm(Script.of([{"text": "a", "wait": "go"}])) as llm,
        aiohttp.ClientSession() as client,
    ):
        asked = asyncio.create_task(client.post(f"{llm.url}/v1/messages", json=TOOLS))
        await llm.came(1)
        assert not asked.done()
        llm.open("go")
        async with await asked as answer:
            assert (await answer.json())["content"] == [{"type": "text", "text": "a"}]


GEMINI_TOOLS = {"tools": [{"functionDeclarations": [{"name": "write_file"}]}]}


async def test_gemini_answers_as_a_stream_as_an_array_and_as_one_document() -> None:
    turn = {"text": "I write.", "calls": [{"name": "write_file", "input": {"a": 1}}], "usage": {"cached": 7}}
    call = {"functionCall": {"name": "write_file", "args": {"a": 1}}}
    model = "/v1beta/models/gemini-2.5-pro"
    async with ScriptedLlm(Script.of([{**turn, "times": 3}])) as llm, aiohttp.ClientSession() as client:
        async with client.post(
            f"{llm.url}{model}:streamGenerateContent?alt=sse", json=GEMINI_TOOLS
        ) as answer:
            lines = [line for line in (await answer.text()).splitlines() if line]
        chunks = [json.loads(line.removeprefix("data: ")) for line in lines]
        async with client.post(f"{llm.url}{model}:streamGenerateContent", json=GEMINI_TOOLS) as answer:
            assert len(await answer.json()) == len(chunks)
        async with client.post(f"{llm.url}{model}:generateContent", json=GEMINI_TOOLS) as answer:
            whole = await answer.json()
        async with client.post(f"{llm.url}{model}:countTokens", json=GEMINI_TOOLS) as answer:
            assert (await answer.json())["totalTokens"] > 0
        async with client.get(f"{llm.url}/v1beta/models") as answer:
            assert (await answer.json())["models"]
    parts = [part for chunk in chunks for part in chunk["candidates"][0]["content"]["parts"]]
    assert "".join(part.get("text", "") for part in parts) == "I write."
    assert call in parts
    assert whole["candidates"][0]["content"]["parts"] == [{"text": "I write."}, call]
    counted = {"promptTokenCount": 107, "candidatesTokenCount": 20, "cachedContentTokenCount": 7}
    for usage in (whole["usageMetadata"], chunks[-1]["usageMetadata"]):
        assert {key: usage[key] for key in counted} == counted
    assert {chunk["modelVersion"] for chunk in chunks} == {"gemini-2.5-pro"}
    assert [request.protocol for request in llm.requests] == [*["gemini"] * 3, "count_tokens", "models"]


async def test_gemini_errors_look_like_googles() -> None:
    error = {"status": 429, "message": "slow down", "details": [{"retryDelay": "1s"}]}
    async with ScriptedLlm(Script.of([{"error": error}])) as llm, aiohttp.ClientSession() as client:
        url = f"{llm.url}/v1beta/models/m:generateContent"
        async with client.post(url, json=GEMINI_TOOLS) as answer:
            assert answer.status == 429
            assert (await answer.json())["error"] == {
                "code": 429,
                "message": "slow down",
                "status": "RESOURCE_EXHAUSTED",
                "details": [{"retryDelay": "1s"}],
            }


def test_gemini_conversation_counts_the_models_turns() -> None:
    player = Player(Script.of([{"text": "a"}, {"text": "b"}], follow="conversation"))
    user, model = {"role": "user", "parts": []}, {"role": "model", "parts": []}
    assert [ask(player, contents=[user]), ask(player, contents=[user, model, user])] == ["a", "b"]


async def test_as_a_program(tmp_path: Path) -> None:
    script, log = tmp_path / "script.yaml", tmp_path / "log.jsonl"
    script.write_text("turns:\n  - text: in ${PLACE}\n    wait: go\n")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.llm", "--script", script, "--log", log, "--var", "PLACE=here"),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        url = (await process.stdout.readline()).decode().strip()
        async with aiohttp.ClientSession() as client:
            async with client.post(f"{url}/control/open/go") as r:
                assert r.status == 204
            async with client.post(f"{url}/lane/x/v1/messages", json=TOOLS, headers={"x-api-key": "k"}) as r:
                assert (await r.json())["content"][0]["text"] == "in here"
            async with client.get(f"{url}/control/requests") as r:
                [recorded] = await r.json()
        assert (recorded["lane"], recorded["headers"]["x-api-key"]) == ("x", "k")
        assert json.loads(log.read_text())["body"] == TOOLS
    finally:
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
