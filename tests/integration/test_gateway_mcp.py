"""The gateway's tools over its real socket: every version of the protocol, and what is no message of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from mcp_types import methods
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS, LATEST_HANDSHAKE_VERSION, LATEST_MODERN_VERSION

from bot.agent_requests import ToDo
from bot.config import fixed_settings
from bot.model import ApprovalKind, Usage
from bot.terms import Terms
from runners.gateway.desk import Desk
from runners.gateway.mcp import MAX_BODY, McpRoute
from runners.gateway.server import Gateway

VERSIONS = [*HANDSHAKE_PROTOCOL_VERSIONS, LATEST_MODERN_VERSION]
LEGACY = LATEST_HANDSHAKE_VERSION
META = "io.modelcontextprotocol/"


@dataclass
class Client:
    """An agent's side of an attempt's socket."""

    desk: Desk
    session: aiohttp.ClientSession

    async def post(self, body: Any, **headers: str) -> tuple[int, Any]:
        """Send ``body`` as it is (bytes) or as JSON; the status and the answer's JSON, None when it is empty."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        sent = {"Authorization": f"Bearer {self.desk.token}", "Content-Type": "application/json"} | named
        how = {"data": body} if isinstance(body, bytes) else {"json": body}
        async with self.session.post("/mcp", headers=sent, **how) as answer:
            return answer.status, await answer.json() if await answer.read() else None

    async def request(
        self, method: str, params: dict[str, Any] | None = None, *, version: str = LEGACY, **headers: str
    ) -> tuple[int, Any]:
        """A well-formed request in the way of ``version``."""
        message: dict[str, Any] = {"jsonrpc": "2.0", "id": 7, "method": method}
        params = dict(params or {})
        if version == LATEST_MODERN_VERSION:
            about = {"protocolVersion": version, "clientCapabilities": {}}
            params["_meta"] = {f"{META}{name}": value for name, value in about.items()}
            headers = {"Mcp_Method": method, **headers}
            if method == "tools/call":
                headers = {"Mcp_Name": params["name"], **headers}
        if params:
            message["params"] = params
        if method != "initialize":
            headers = {"MCP_Protocol_Version": version, **headers}
        return await self.post(message, **headers)

    async def call(self, tool: str, version: str = LEGACY, **arguments: Any) -> tuple[bool, str]:
        """Whether a tool did what it was asked, and what it said."""
        status, answer = await self.request(
            "tools/call", {"name": tool, "arguments": arguments}, version=version
        )
        assert status == 200, answer
        result = answer["result"]
        methods.validate_server_result("tools/call", version, result)
        assert [part["type"] for part in result["content"]] == ["text"]
        return not result["isError"], result["content"][0]["text"]


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[Client]:
    settings = fixed_settings(egress_may_allow=("*.example.com",), budget_job=10)
    desk = Desk.create(tmp_path / "desk", attempt_id="j1-1", mirror=None, terms=Terms(budget_job=2.0))
    desk.give({"number": 1})
    gateway = Gateway({"mcp": McpRoute(settings).serve})
    connector = aiohttp.UnixConnector(str(await gateway.open(desk)))
    async with aiohttp.ClientSession("http://gateway", connector=connector) as session:
        yield Client(desk, session)
    await gateway.aclose()
    desk.close()


# --- the protocol ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", HANDSHAKE_PROTOCOL_VERSIONS)
async def test_handshake(client: Client, version: str) -> None:
    params = {"protocolVersion": version, "capabilities": {}, "clientInfo": {"name": "c", "version": "1"}}
    status, answer = await client.request("initialize", params)
    assert (status, answer["id"], answer["jsonrpc"]) == (200, 7, "2.0")
    methods.validate_server_result("initialize", version, answer["result"])
    assert answer["result"]["protocolVersion"] == version
    assert answer["result"]["capabilities"] == {"tools": {}}
    ready = {"jsonrpc": "2.0", "method": "notifications/initialized"}
    assert await client.post(ready, MCP_Protocol_Version=version) == (202, None)
    status, answer = await client.request("ping", version=version)
    assert (status, answer) == (200, {"jsonrpc": "2.0", "id": 7, "result": {}})


@pytest.mark.parametrize("version", ["1999-01-01", "2031-01-01", "", LATEST_MODERN_VERSION])
async def test_a_version_that_has_no_handshake_is_answered_with_ours(client: Client, version: str) -> None:
    params = {"protocolVersion": version, "capabilities": {}, "clientInfo": {"name": "c", "version": "1"}}
    _, answer = await client.request("initialize", params)
    assert answer["result"]["protocolVersion"] == LATEST_HANDSHAKE_VERSION


async def test_discovery(client: Client) -> None:
    status, answer = await client.request("server/discover", version=LATEST_MODERN_VERSION)
    assert status == 200
    methods.validate_server_result("server/discover", LATEST_MODERN_VERSION, answer["result"])
    assert answer["result"]["supportedVersions"] == VERSIONS


@pytest.mark.parametrize("version", VERSIONS)
async def test_the_list_of_tools(client: Client, version: str) -> None:
    status, answer = await client.request("tools/list", version=version)
    assert status == 200
    methods.validate_server_result("tools/list", version, answer["result"])
    schemas = {tool["name"]: tool["inputSchema"] for tool in answer["result"]["tools"]}
    assert list(schemas) == ["progress", "ask", "request_approval"]
    assert schemas["request_approval"]["required"] == ["kind", "reason"]
    assert "$ref" not in str(schemas)  # not every client follows one
    assert ("ttlMs" in answer["result"]) == (version == LATEST_MODERN_VERSION)


@pytest.mark.parametrize("number", [0, -1, "a-1", 2**53])
async def test_the_answer_has_the_number_of_the_question(client: Client, number: int | str) -> None:
    status, answer = await client.post({"jsonrpc": "2.0", "id": number, "method": "ping"})
    assert (status, answer["id"]) == (200, number)


@pytest.mark.parametrize(
    "message",
    [
        {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}},
        {"jsonrpc": "2.0", "method": "notifications/of_the_future"},
        {"jsonrpc": "2.0", "id": 1, "result": {}},
        {"jsonrpc": "2.0", "id": 1, "error": {"code": 1, "message": "no"}},
    ],
)
async def test_what_wants_no_answer_gets_none(client: Client, message: dict[str, Any]) -> None:
    for version in (LEGACY, LATEST_MODERN_VERSION):
        assert await client.post(message, MCP_Protocol_Version=version) == (202, None)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", -32700),
        (b"{", -32700),
        (b'{"jsonrpc": "2.0", "id": 1, "method": "ping", "x": NaN}', -32700),
        (b"\xff\xfe", -32700),
        (b'{"x": "\\ud800"}', -32700),
        (b"[" * 100_000, -32700),
        (b"null", -32600),
        (b"5", -32600),
        (b"[]", -32600),
        (b'[{"jsonrpc": "2.0", "id": 1, "method": "ping"}]', -32600),
        (b"{}", -32600),
        (b'{"id": 1, "method": "ping"}', -32600),
        (b'{"jsonrpc": "1.0", "id": 1, "method": "ping"}', -32600),
        (b'{"jsonrpc": "2.0", "id": null, "method": "ping"}', -32600),
        (b'{"jsonrpc": "2.0", "id": 1.5, "method": "ping"}', -32600),
        (b'{"jsonrpc": "2.0", "id": true, "method": "ping"}', -32600),
        (b'{"jsonrpc": "2.0", "id": {}, "method": "ping"}', -32600),
        (b'{"jsonrpc": "2.0", "id": 1, "method": 5}', -32600),
        (b'{"jsonrpc": "2.0", "id": 1, "method": "ping", "params": []}', -32600),
        (b'{"jsonrpc": "2.0", "id": 1, "method": "ping", "params": "x"}', -32600),
        (b'{"jsonrpc": "2.0", "method": ["ping"]}', -32600),
        (b'{"jsonrpc": "2.0", "id": 1}', -32600),
    ],
)
async def test_what_is_no_message(client: Client, body: bytes, code: int) -> None:
    status, answer = await client.post(body)
    assert (status, answer["error"]["code"], answer["id"]) == (400, code, None)
    assert client.desk.requested is None


@pytest.mark.parametrize("version", [LEGACY, LATEST_MODERN_VERSION])
@pytest.mark.parametrize("method", ["", "nothing", "prompts/list", "resources/list", "tools", "__class__"])
async def test_other_methods_are_not_here(client: Client, method: str, version: str) -> None:
    status, answer = await client.request(method, version=version)
    assert answer["error"]["code"] == -32601
    assert status == (404 if version == LATEST_MODERN_VERSION else 200)


async def test_each_era_has_its_own_beginning(client: Client) -> None:
    for method, version in (
        ("server/discover", LEGACY), ("initialize", LATEST_MODERN_VERSION), ("ping", LATEST_MODERN_VERSION)
    ):  # fmt: skip
        _, answer = await client.request(method, version=version, MCP_Protocol_Version=version)
        assert answer["error"]["code"] == -32601


@pytest.mark.parametrize(
    "params", [{}, {"name": 5}, {"name": "progress", "arguments": []}, {"name": "progress", "arguments": "x"}]
)
async def test_calls_that_are_none(client: Client, params: dict[str, Any]) -> None:
    status, answer = await client.request("tools/call", params)
    assert (status, answer["error"]["code"]) == (200, -32602)


async def test_an_unknown_tool_is_told_with_the_known_ones(client: Client) -> None:
    _, answer = await client.request("tools/call", {"name": "approve", "arguments": {}})
    assert answer["error"] == {
        "code": -32602,
        "message": "There is no tool 'approve', only: progress, ask, request_approval.",
    }


@pytest.mark.parametrize("version", ["2031-01-01", "x", "2025-06-18, 2025-06-18"])
async def test_an_unknown_version_is_refused_with_the_known_ones(client: Client, version: str) -> None:
    status, answer = await client.post(
        {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}, MCP_Protocol_Version=version
    )
    assert (status, answer["error"]["code"]) == (400, -32022)
    assert answer["error"]["data"] == {"supported": VERSIONS, "requested": version}


@pytest.mark.parametrize(
    "headers",
    [{"Mcp_Method": "tools/list"}, {"Mcp_Name": "ask"}, {"Mcp_Name": ""}, {"MCP_Protocol_Version": LEGACY}],
)
async def test_fields_that_say_something_else_than_the_body(client: Client, headers: dict[str, str]) -> None:
    params = {"name": "progress", "arguments": {"text": "x"}}
    status, answer = await client.request("tools/call", params, version=LATEST_MODERN_VERSION, **headers)
    if "MCP_Protocol_Version" in headers:  # then it is a request of that version, where only the body counts
        assert status == 200
    else:
        assert (status, answer["error"]["code"]) == (400, -32020)
        assert client.desk.progress is None


@pytest.mark.parametrize("meta", [None, 5, {}, {f"{META}protocolVersion": LATEST_MODERN_VERSION}])
async def test_a_request_of_the_new_kind_says_what_it_is(client: Client, meta: object) -> None:
    params = {} if meta is None else {"_meta": meta}
    status, answer = await client.post(
        {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": params},
        MCP_Protocol_Version=LATEST_MODERN_VERSION,
        Mcp_Method="tools/list",
    )
    assert status == 400
    assert answer["error"]["code"] in (-32020, -32602)


@pytest.mark.parametrize("method", ["GET", "DELETE", "PUT", "HEAD", "OPTIONS"])
async def test_only_messages_are_taken(client: Client, method: str) -> None:
    headers = {"Authorization": f"Bearer {client.desk.token}"}
    async with client.session.request(method, "/mcp", headers=headers) as answer:
        assert (answer.status, answer.headers["Allow"]) == (405, "POST")


async def test_other_types_and_paths_are_not_taken(client: Client) -> None:
    ping = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
    assert (await client.post(b"{}", Content_Type="text/plain"))[0] == 415
    assert (await client.post(b"{}", Content_Type="application/x-www-form-urlencoded"))[0] == 415
    assert (await client.post(ping, Content_Type="application/json; charset=utf-8"))[0] == 200
    headers = {"Authorization": f"Bearer {client.desk.token}"}
    async with client.session.post("/mcp/other", json=ping, headers=headers) as answer:
        assert answer.status == 404
    # who speaks is known by the token: a field that any page can send says nothing
    assert (await client.post(ping, Origin="https://evil.example"))[0] == 200


@pytest.mark.parametrize("compressed", [False, True])
async def test_a_message_has_a_limit(client: Client, compressed: bool) -> None:
    big = b'{"jsonrpc": "2.0", "id": 1, "method": "ping", "params": {"x": "' + b"x" * MAX_BODY + b'"}}'
    sent = {"Authorization": f"Bearer {client.desk.token}", "Content-Type": "application/json"}
    compress = "deflate" if compressed else None
    async with client.session.post("/mcp", data=big, headers=sent, compress=compress) as answer:
        assert answer.status == 413


# --- the tools ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
async def test_progress_in_every_version(client: Client, version: str) -> None:
    todo = [{"text": "read\u200b  the\nmanual", "done": True}, {"text": "write"}, {"text": " "}]
    ok, words = await client.call("progress", version, text="Reading<!-- hidden -->", todo=todo)
    assert (ok, words) == (
        True, "Told. This job may spend $2.00 in all; $0.00 were used since you began."
    )  # fmt: skip
    note = client.desk.progress
    assert note is not None
    assert (note.turn, note.text) == (1, "Reading")
    assert note.todo == (ToDo(text="read the manual", done=True), ToDo(text="write"))


async def test_progress_keeps_the_list_that_is_not_said_again(client: Client) -> None:
    client.desk.add_usage("m", Usage(cost=0.25))
    await client.call("progress", todo=[{"text": "read"}])
    ok, words = await client.call("progress", text="Reading", todo=None)
    assert (ok, "$0.25 were used" in words) == (True, True)
    note = client.desk.progress
    assert note is not None
    assert (note.text, note.todo) == ("Reading", (ToDo(text="read"),))


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({}, "Say something"),
        ({"text": " \u200b"}, "Say something"),
        ({"text": 5}, "text: Input should be a valid string"),
        ({"text": "x" * 5000}, "at most 4000 characters"),
        ({"todo": [{"text": "x"}] * 51}, "at most 50 items"),
        ({"todo": [{"done": True}]}, "todo.0.text: Field required"),
        ({"todo": ["x"]}, "todo.0"),
        ({"words": "x"}, "words: Extra inputs are not permitted"),
    ],
)
async def test_progress_that_says_nothing(client: Client, arguments: dict[str, Any], why: str) -> None:
    ok, words = await client.call("progress", **arguments)
    assert not ok
    assert why in words
    assert client.desk.progress is None


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_question_ends_the_turn_and_waits_for_nobody(client: Client, version: str) -> None:
    ok, words = await client.call("ask", version, question="Tabs or <!-- no --> spaces?")
    assert ok
    assert "end your turn now" in words
    request = client.desk.requested
    assert request is not None
    assert (request.kind, request.reason) == (None, "Tabs or  spaces?")


@pytest.mark.parametrize(
    ("arguments", "details"),
    [
        ({"kind": "network", "host": "docs.example.com"}, {"host": "docs.example.com"}),
        ({"kind": "budget", "dollars": 3}, {"dollars": 3.0}),
        ({"kind": "budget", "dollars": "3", "host": None, "paths": []}, {"dollars": 3.0}),
        ({"kind": "path", "paths": [".github/workflows/a.yml"]}, {"paths": [".github/workflows/a.yml"]}),
        ({"kind": "text"}, {}),
    ],
)
async def test_what_can_be_asked_for(
    client: Client, arguments: dict[str, Any], details: dict[str, Any]
) -> None:
    ok, words = await client.call("request_approval", reason="It is needed.", **arguments)
    assert ok, words
    assert "end your turn now" in words
    request = client.desk.requested
    assert request is not None
    assert (request.kind, request.details) == (ApprovalKind(arguments["kind"]), details)
    assert request.reason == "It is needed."


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"kind": "network"}, "host is one host"),
        (
            {"kind": "network", "host": "elsewhere.example"},
            "the server's operator does not let jobs go there",
        ),
        ({"kind": "network", "host": "*.example.com"}, "not for a pattern"),
        ({"kind": "budget"}, "at least 0.01"),
        ({"kind": "budget", "dollars": 9}, "by $8.00 at most"),
        ({"kind": "budget", "dollars": "much"}, "dollars: Input should be a valid number"),
        ({"kind": "path"}, "1 to 20 files"),
        ({"kind": "path", "paths": ["README.md"]}, "not protected"),
        ({"kind": "text", "host": "docs.example.com"}, "host goes with the kind network alone"),
        ({"kind": "network", "host": "docs.example.com", "dollars": 5}, "dollars goes with the kind budget"),
        ({"kind": "budget", "dollars": 1, "paths": [".github/a"]}, "paths goes with the kind path"),
        ({"kind": "plan"}, "kind: Input should be"),
        ({"kind": "protected"}, "kind: Input should be"),
        ({"kind": "text", "reason": " \u200b<!-- x -->"}, "Say what you ask people for"),
        ({"kind": "text", "reason": "x" * 4001}, "at most 4000 characters"),
        ({"kind": "text", "approved": True}, "approved: Extra inputs are not permitted"),
    ],
)
async def test_what_cannot_be_asked_for(client: Client, arguments: dict[str, Any], why: str) -> None:
    ok, words = await client.call("request_approval", **({"reason": "It is needed."} | arguments))
    assert not ok
    assert why in words
    assert client.desk.requested is None


async def test_one_request_a_turn(client: Client) -> None:
    assert (await client.call("ask", question="Tabs?"))[0]
    assert (await client.call("ask", question="Tabs?"))[0]  # the same, by a client that saw no answer
    for tool, arguments in (
        ("ask", {"question": "Spaces?"}),
        ("request_approval", {"kind": "network", "host": "docs.example.com", "reason": "x"}),
    ):
        ok, words = await client.call(tool, **arguments)
        assert not ok
        assert "asked in this turn already" in words
    refused = client.desk.take_refused()  # for the audit trail
    assert [tool for tool, _ in refused] == ["ask", "request_approval"]
    assert all("asked in this turn already" in why for _, why in refused)
    assert client.desk.take_refused() == []
    assert (await client.call("progress", text="Ending"))[0]
    client.desk.take_outcome(1, b'{"exit_code": 0}')
    ok, words = await client.call("ask", question="Tabs?")
    assert not ok
    assert "No turn is under way" in words
    client.desk.give({"number": 2})
    assert (await client.call("ask", question="Spaces?"))[0]


async def test_without_a_proxy_there_is_no_host_to_ask_for(tmp_path: Path) -> None:
    route = McpRoute(fixed_settings(egress_may_allow=("*",)), proxied=False)
    desk = Desk.create(tmp_path / "desk", attempt_id="j1-1", mirror=None)
    desk.give({"number": 1})
    gateway = Gateway({"mcp": route.serve})
    connector = aiohttp.UnixConnector(str(await gateway.open(desk)))
    async with aiohttp.ClientSession("http://gateway", connector=connector) as session:
        asked = await Client(desk, session).call(
            "request_approval", kind="network", host="a.example", reason="x"
        )
        assert asked == (False, "There are no network rules here: connect without asking.")
    await gateway.aclose()
    desk.close()
