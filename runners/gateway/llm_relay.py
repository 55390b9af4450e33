"""One call on its way: the tries at a provider, its answer passed on piece by piece, and what was used."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from io import BytesIO

import aiohttp
import structlog
from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from bot.model import Usage
from bot.usage import UsageReader
from runners.gateway.llm_keys import Key, Trouble, rest_of, retry_after, trouble
from runners.gateway.llm_providers import Provider

MAX_ERROR = 1 * 2**20  # bytes of an error answer that are passed on

#: Headers that are of one connection (RFC 9110 §7.6.1) or that aiohttp makes itself.
_HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "host",
        "content-length",
        "expect",
    }
)

#: What the client must not tell the provider: its own credentials, whose account to use, another method, and how
#: its body came (we send it anew).
_NOT_SENT = _HOP_BY_HOP | {
    "authorization",
    "x-api-key",
    "api-key",
    "x-goog-api-key",
    "x-goog-user-project",
    "x-http-method-override",
    "x-http-method",
    "x-method-override",
    "cookie",
    "accept-encoding",
    "content-encoding",
    "content-type",
    "openai-organization",
    "openai-project",
}

#: What the provider need not tell the client: about the operator's account, and what we undid by decompressing.
_NOT_RETURNED = _HOP_BY_HOP | {
    "set-cookie",
    "content-encoding",
    "alt-svc",
    "strict-transport-security",
    "anthropic-organization-id",
    "openai-organization",
    "openai-project",
}

#: Asks Anthropic's and OpenAI's own clients (and Claude Code) not to try again: we did.
NO_RETRY = {"x-should-retry": "false"}

log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How often a provider in trouble is asked again before the agent is told."""

    pauses: tuple[float, ...] = (1.0, 4.0, 12.0)  # seconds before each further try, give or take a third
    longest: float = 60.0  # seconds: a provider that wants to be left alone for longer is not waited for


@dataclass(frozen=True, kw_only=True)
class Outgoing:
    """What is sent to the provider."""

    method: str
    path: str
    query: str
    headers: CIMultiDictProxy[str]  # the client's own
    body: bytes
    costs: bool
    model: str
    streams: bool = False


@dataclass(kw_only=True)
class Report:
    """What became of a call."""

    status: int = 0
    model: str = ""
    cut: str = ""  # who broke the answer off
    tries: int = 0
    usage: Usage | None = None  # without its price; None: nothing was used
    kept_for_an_hour: int = 0  # of the tokens that were written to the cache
    estimated: bool = False  # the provider did not tell the numbers
    free: bool = False
    gave_up: bool = False  # the provider's trouble outlasted our patience


@dataclass(frozen=True, kw_only=True)
class _Refusal:
    """An answer that is none: what to do about it, and what the client is told in the end."""

    trouble: Trouble
    wait: float | None  # seconds that the provider asks for
    response: web.Response


async def send(
    session: aiohttp.ClientSession,
    provider: Provider,
    outgoing: Outgoing,
    request: web.Request,
    patience: Patience,
    report: Report,
) -> web.StreamResponse:
    """Ask the provider until it answers or refuses for good, and pass that on; ``report`` tells what became of it.

    A refused key rests and the next one is tried. Nothing is tried again once a byte was passed on.
    """
    pauses = list(patience.pauses)
    refused: set[str] = set()
    key = provider.keys.pick()
    while True:
        report.tries += 1
        report.free = key is not None and key.free
        answer = await _ask(session, provider, outgoing, key)
        if isinstance(answer, aiohttp.ClientResponse):
            async with answer:
                if answer.status < HTTPStatus.BAD_REQUEST:
                    report.status = answer.status
                    return await _Relay(provider, outgoing, report).run(request, answer)
                found = await _read_refusal(provider, answer)
        else:
            found = answer
        report.status = found.response.status
        if key is not None and found.trouble in (Trouble.key, Trouble.limited):
            provider.keys.rest(key, rest_of(found.trouble, found.wait))
            refused.add(key.value)
            other = provider.keys.pick(refused)
            if other is not None:
                log.info("llm key refused, next one", provider=provider.name, status=report.status)
                key = other
                continue
        if found.trouble in (Trouble.key, Trouble.request):
            if found.trouble is Trouble.key:
                found.response.headers.update(NO_RETRY)
            return found.response
        if not pauses:
            report.gave_up = True
            found.response.headers.update(NO_RETRY)
            return found.response
        if found.wait is not None and found.wait > patience.longest:
            return found.response  # the client may wait for so long, or not
        give_or_take = random.uniform(0.67, 1.33)  # noqa: S311 - so that not all come back at once
        await asyncio.sleep(max(pauses.pop(0) * give_or_take, found.wait or 0.0))
        refused.clear()
        key = provider.keys.pick()


async def _ask(
    session: aiohttp.ClientSession, provider: Provider, outgoing: Outgoing, key: Key | None
) -> aiohttp.ClientResponse | _Refusal:
    headers = _forwarded(outgoing.headers, _NOT_SENT)
    _leave_out(headers, provider.betas_left_out)
    headers["Accept-Encoding"] = "identity"
    if outgoing.body:
        headers["Content-Type"] = "application/json"
    headers.update(provider.headers)
    if key is not None:
        headers.update(provider.wire.auth(key.value, headers.get("anthropic-beta", "")))
    url = URL(f"{provider.url}/{outgoing.path}{'?' + outgoing.query if outgoing.query else ''}", encoded=True)
    try:
        return await session.request(
            outgoing.method,
            url,
            headers=headers,
            data=BytesIO(outgoing.body) if outgoing.body else None,
            allow_redirects=False,
        )
    except (aiohttp.ClientError, TimeoutError) as error:
        status, message = _unreachable(provider, url, error)
        response = web.json_response(provider.wire.error(status, message), status=status)
        # a silence of minutes is not worth a second one
        what = Trouble.request if status == HTTPStatus.GATEWAY_TIMEOUT else Trouble.provider
        return _Refusal(trouble=what, wait=None, response=response)


def _leave_out(headers: CIMultiDict[str], betas: tuple[str, ...]) -> None:
    """Take the flags that begin with one of ``betas`` out of ``anthropic-beta``."""
    flags = [flag.strip() for flag in ",".join(headers.popall("anthropic-beta", [])).split(",")]
    if kept := [flag for flag in flags if flag and not flag.lower().startswith(betas)]:
        headers["anthropic-beta"] = ",".join(kept)


async def _read_refusal(provider: Provider, answer: aiohttp.ClientResponse) -> _Refusal:
    try:
        text = await _at_most(answer.content, MAX_ERROR)
    except (aiohttp.ClientError, OSError):
        text = b""
    return _Refusal(
        trouble=trouble(answer.status, text),
        wait=retry_after(answer.headers, text),
        response=web.Response(
            status=answer.status,
            headers=_forwarded(answer.headers, _NOT_RETURNED),
            body=provider.redacted(text),
        ),
    )


class _Relay:
    """An answer that streams through."""

    def __init__(self, provider: Provider, outgoing: Outgoing, report: Report) -> None:
        self._provider = provider
        self._outgoing = outgoing
        self._report = report

    async def run(self, request: web.Request, answer: aiohttp.ClientResponse) -> web.StreamResponse:
        """Pass ``answer`` on; whatever happens, the report tells what was used."""
        response = web.StreamResponse(status=answer.status, headers=_forwarded(answer.headers, _NOT_RETURNED))
        reader = UsageReader(answer.headers.get("Content-Type", ""))
        try:
            await self._pipe(request, answer, response, reader)
        except asyncio.CancelledError:
            self._report.cut = "worker"
            raise
        finally:
            self._count(reader)
        return response

    async def _pipe(
        self,
        request: web.Request,
        answer: aiohttp.ClientResponse,
        response: web.StreamResponse,
        reader: UsageReader,
    ) -> None:
        try:
            await response.prepare(request)
        except ConnectionError:
            self._report.cut = "client"
            return
        while True:
            try:
                chunk = await answer.content.readany()
            except (aiohttp.ClientError, OSError):  # TimeoutError is an OSError
                # The status is out already. Closing the connection in the middle of the body is how HTTP/1.1
                # tells that it is not whole (RFC 9112 §8): clients try again then.
                self._report.cut = "provider"
                if request.transport is not None:
                    request.transport.abort()
                return
            if self._outgoing.costs:
                reader.feed(chunk)
            try:
                if not chunk:
                    return
                await response.write(chunk)
            except ConnectionError:
                self._report.cut = "client"
                return

    def _count(self, reader: UsageReader) -> None:
        if not self._outgoing.costs or self._report.status >= HTTPStatus.MULTIPLE_CHOICES:
            return
        reader.close()
        report = self._report
        report.model = reader.model or self._outgoing.model
        report.usage = reader.usage if reader.complete else reader.estimate(len(self._outgoing.body))
        report.kept_for_an_hour = reader.kept_for_an_hour
        report.estimated = not reader.complete


def _forwarded(headers: Mapping[str, str], dropped: frozenset[str]) -> CIMultiDict[str]:
    connection = headers.getall("Connection", []) if isinstance(headers, CIMultiDictProxy) else []
    named = {name.strip().lower() for value in connection for name in value.split(",")}
    return CIMultiDict(
        (name, value)
        for name, value in headers.items()
        if name.lower() not in dropped and name.lower() not in named
    )


async def _at_most(content: aiohttp.StreamReader, limit: int) -> bytes:
    pieces, size = [], 0
    async for chunk in content.iter_any():
        pieces.append(chunk)
        size += len(chunk)
        if size >= limit:
            break
    return b"".join(pieces)[:limit]


def _unreachable(provider: Provider, url: URL, error: Exception) -> tuple[int, str]:
    """Status and message for a provider that gave no answer. ``error`` never quotes headers."""
    where = f"{provider.title} at {url.host}:{url.port}"
    if isinstance(error, aiohttp.ServerTimeoutError | asyncio.TimeoutError):
        return 504, f"{where} did not answer in time."
    if isinstance(error, aiohttp.ClientConnectorError):
        return 502, f"{where} cannot be reached: {_reason(error.os_error)}."
    return 502, f"{where} closed the connection without an answer ({type(error).__name__})."


def _reason(error: OSError) -> str:
    # asyncio puts the address where the system's words should be
    return os.strerror(error.errno) if error.errno and error.errno > 0 else str(error.strerror or error)
