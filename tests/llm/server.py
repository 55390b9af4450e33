"""The server that plays a script over HTTP, and writes down what it was asked."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from aiohttp import web

from tests.llm import wire
from tests.llm.script import Player, Script, Turn

PROTOCOLS = {
    "/messages": "messages",
    "/responses": "responses",
    "/chat/completions": "chat",
    ":generateContent": "gemini",
    ":streamGenerateContent": "gemini",
}


@dataclass(frozen=True)
class Recorded:
    """One request, as it came. Header names are in lower case."""

    lane: str
    protocol: str  # "messages", "responses", "chat", "gemini", "count_tokens", "models" or "other"
    method: str
    path: str
    headers: dict[str, str]
    body: Any

    @property
    def text(self) -> str:
        """Everything of it, for searching."""
        return json.dumps(asdict(self))


class ScriptedLlm:
    """The server on 127.0.0.1; an async context manager. Gates are opened by ``open``."""

    def __init__(
        self, script: Script, *, host: str = "127.0.0.1", port: int = 0, log: Path | None = None
    ) -> None:
        self.requests: list[Recorded] = []
        self.gone: asyncio.Event = asyncio.Event()  # a client left before its answer's end
        self._player = Player(script)
        self._host, self._port, self._log = host, port, log
        self._gates: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self._came = asyncio.Condition()
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> ScriptedLlm:
        app = web.Application(client_max_size=64 * 2**20)
        app.router.add_route("*", "/lane/{lane}/{path:.*}", self._handle)
        app.router.add_get("/control/requests", self._list)
        app.router.add_post("/control/rewind", self._rewind)
        app.router.add_post("/control/open/{gate}", self._open)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
        await self._runner.setup()
        await web.TCPSite(self._runner, self._host, self._port).start()
        self._port = self._runner.addresses[0][1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    @property
    def url(self) -> str:
        return f"http://{self._host}:{self._port}"

    def open(self, gate: str) -> None:
        """Let the turns that wait for ``gate`` go on."""
        self._gates[gate].set()

    async def came(self, count: int) -> None:
        """Return when ``count`` requests have come."""
        async with self._came:
            await self._came.wait_for(lambda: len(self.requests) >= count)

    # --- control over HTTP, for a server in another process -----------------------------------

    async def _list(self, request: web.Request) -> web.Response:
        return web.json_response([asdict(recorded) for recorded in self.requests])

    async def _rewind(self, request: web.Request) -> web.Response:
        self._player.rewind()
        self.requests.clear()
        return web.Response(status=204)

    async def _open(self, request: web.Request) -> web.Response:
        self.open(request.match_info["gate"])
        return web.Response(status=204)

    # --- the providers ------------------------------------------------------------------------

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        lane, path = request.match_info.get("lane", ""), "/" + request.match_info["path"]
        raw = await request.read()
        body = json.loads(raw) if raw else {}
        if request.method == "POST" and path.endswith("/count_tokens"):
            await self._record(request, lane, "count_tokens", body)
            return web.json_response({"input_tokens": max(1, len(raw) // 4)})
        if request.method == "POST" and path.endswith(":countTokens"):
            await self._record(request, lane, "count_tokens", body)
            return web.json_response({"totalTokens": max(1, len(raw) // 4)})
        if request.method == "GET" and path.endswith("/v1beta/models"):
            await self._record(request, lane, "models", body)
            return web.json_response({"models": [{"name": "models/scripted", "displayName": "Scripted"}]})
        if request.method == "GET" and path.endswith("/models"):
            await self._record(request, lane, "models", body)
            return web.json_response({"object": "list", "data": [{"id": "scripted", "object": "model"}]})
        protocol = next((name for end, name in PROTOCOLS.items() if path.endswith(end)), "other")
        await self._record(request, lane, protocol, body)
        if protocol == "other" or request.method != "POST":
            return web.json_response({"error": {"message": "not scripted"}}, status=404)
        turn = self._player.answer(lane, body)
        if turn.wait:
            await self._gates[turn.wait].wait()
        if turn.delay:
            await asyncio.sleep(turn.delay)
        if turn.error:
            return web.json_response(
                wire.error_body(protocol, turn.error),
                status=turn.error["status"],
                headers=turn.error.get("headers"),
            )
        return await self._answer(request, protocol, turn, body)

    async def _answer(
        self, request: web.Request, protocol: str, turn: Turn, body: dict[str, Any]
    ) -> web.StreamResponse:
        model, stream = body.get("model", "scripted"), bool(body.get("stream"))
        if protocol == "gemini":  # it tells both in the path
            model, _, method = request.path.rpartition("/")[2].partition(":")
            stream = method == "streamGenerateContent"
        if not stream:
            document = {
                "messages": wire.messages_document,
                "responses": wire.responses_document,
                "chat": wire.chat_document,
                "gemini": wire.gemini_document,
            }[protocol]
            return web.json_response(document(turn, model))
        if protocol == "gemini":
            events = wire.gemini_events(turn, model)
            if request.query.get("alt") != "sse":  # then the stream is one JSON array
                return web.json_response([data for _, data in events])
        elif protocol == "messages":
            events = wire.messages_events(turn, model)
        elif protocol == "responses":
            events = wire.responses_events(turn, model)
        else:
            include_usage = bool((body.get("stream_options") or {}).get("include_usage"))
            events = wire.chat_events(turn, model, include_usage=include_usage)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        try:
            for number, (name, data) in enumerate(events):
                if number == 2 and turn.drop:
                    assert request.transport is not None
                    request.transport.close()
                    return response
                if number == 2 and turn.hang:
                    await asyncio.Event().wait()
                text = data if isinstance(data, str) else json.dumps(data)
                head = f"event: {name}\n" if name else ""
                await response.write(f"{head}data: {text}\n\n".encode())
            await response.write_eof()
        except (ConnectionError, asyncio.CancelledError):
            self.gone.set()
            raise
        return response

    async def _record(self, request: web.Request, lane: str, protocol: str, body: Any) -> None:
        headers = {name.lower(): value for name, value in request.headers.items()}
        recorded = Recorded(lane, protocol, request.method, request.path_qs, headers, body)
        if self._log:
            with self._log.open("a") as file:
                file.write(json.dumps(asdict(recorded)) + "\n")
        async with self._came:
            self.requests.append(recorded)
            self._came.notify_all()
