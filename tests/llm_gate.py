"""What the tests of the LLM proxy share: the gateway's part around it, and providers with odd answers."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from typing import Any

import aiohttp
from aiohttp import web

from bot.config import fixed_settings
from bot.ledger import Ledger
from bot.model import FailureKind, Usage
from bot.terms import Terms
from runners.gateway.llm import Desk, LlmProxy
from runners.gateway.llm_relay import Patience

KEY = "sk-real-key-0123456789"
TOKEN = "attempt-token-abcdef"
MODEL = "claude-sonnet-4-5"
TOOLS = [{"type": "custom", "name": "Write"}]

GEMINI_TOOLS = [{"functionDeclarations": [{"name": "write_file"}]}]


class Tally:
    """A desk that keeps what was counted."""

    attempt_id = "attempt-1"

    def __init__(self, terms: Terms | None = None) -> None:
        self.terms = terms or Terms()
        self.entries: list[tuple[str, Usage]] = []
        self.counted = asyncio.Event()
        self.halts: list[tuple[FailureKind, str]] = []

    def halt(self, kind: FailureKind, message: str) -> None:
        self.halts.append((kind, message))

    def calling(self) -> AbstractContextManager[None]:
        return nullcontext()

    def add_usage(self, model: str, usage: Usage) -> None:
        self.entries.append((model, usage))
        self.counted.set()


class Front:
    """The gateway's part that is needed here: one route, and a client in the container's place."""

    def __init__(self, url: str, client: aiohttp.ClientSession, tally: Tally) -> None:
        self.url, self.client, self.tally = url, client, tally

    def post(self, path: str, body: Any, **headers: str) -> Any:
        auth = {"x-api-key": TOKEN, "Authorization": f"Bearer {TOKEN}"}
        return self.client.post(f"{self.url}/llm/{path}", json=body, headers=auth | headers)

    def get(self, path: str) -> Any:
        return self.client.get(f"{self.url}/llm/{path}", headers={"x-api-key": TOKEN})


@asynccontextmanager
async def front(
    upstream: str,
    *,
    ledger: Ledger | None = None,
    terms: Terms | None = None,
    desk: Desk | None = None,
    pauses: tuple[float, ...] = (),
    **settings: Any,
) -> AsyncIterator[Front]:
    values = {
        "llm_anthropic_url": upstream,
        "llm_openai_url": f"{upstream}/v1",
        "llm_anthropic_key": KEY,
        "llm_openai_key": KEY,
        "llm_gemini_url": upstream,
        "llm_gemini_key": KEY,
    }
    patience = Patience(pauses=pauses, longest=5)
    proxy, tally = LlmProxy(fixed_settings(**(values | settings)), ledger, patience=patience), Tally(terms)

    async def handle(request: web.Request) -> web.StreamResponse:
        return await proxy.serve(request, desk or tally, request.path_qs.removeprefix("/llm/"))

    app = web.Application()
    app.router.add_route("*", "/llm/{tail:.*}", handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    try:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as client:
            yield Front(f"http://{host}:{port}", client, tally)
    finally:
        await proxy.close()
        await runner.cleanup()


@asynccontextmanager
async def raw_upstream(
    answer: Callable[[web.Request], Awaitable[web.StreamResponse]],
) -> AsyncIterator[str]:
    """A provider with one answer that no script can give."""
    app = web.Application(client_max_size=64 * 2**20)
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
