"""Reverse proxies to the LLM providers: they put the real key in, outside the container, and count tokens.

Only the calls that an agent needs are let through. In particular nothing that reads back what was stored under
the operator's key (``GET /v1/responses/…``, files, batches): that may be another job's.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from io import BytesIO
from typing import Any, Protocol

import aiohttp
import orjson
import structlog
from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from bot.config import ENV_PREFIX, Settings
from bot.model import Usage
from bot.usage import UsageReader, price

MAX_BODY = 32 * 2**20  # bytes of a request; Anthropic's own limit, too
MAX_ERROR = 1 * 2**20  # bytes of an error answer that are passed on
CONNECT_TIMEOUT = 10.0  # seconds
SILENCE_TIMEOUT = 900.0  # seconds without a byte; a model may think for minutes before it answers

logger = structlog.get_logger(__name__)


class Desk(Protocol):
    """Where an attempt's calls are counted."""

    def add_usage(self, model: str, usage: Usage) -> None:
        """Count what an LLM call cost."""


@dataclass(frozen=True, kw_only=True)
class Provider:
    """One LLM provider: what may be called, and how it wants to see the key and shapes its errors."""

    name: str
    title: str
    calls: Mapping[str, bool]  # what may be POSTed, below the base URL -> whether it costs tokens
    models: str  # the list of models, and each one below it, may be read
    key_header: str
    key_prefix: str

    def allows(self, method: str, path: str) -> bool:
        """Whether an agent may make this call."""
        if method == "GET":
            folder, _, model = path.rpartition("/")
            return path == self.models or (folder == self.models and bool(_MODEL.fullmatch(model)))
        return method == "POST" and path in self.calls

    def error(self, status: int, message: str) -> dict[str, object]:
        """The body of an error answer in this provider's own shape, so that its client can show it."""
        kind = _ERROR_TYPES.get(status, "api_error")
        if self.name == "anthropic":
            return {"type": "error", "error": {"type": kind, "message": message}}
        return {"error": {"message": message, "type": kind, "code": kind, "param": None}}


_MODEL = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.:-]*")

_ERROR_TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    413: "request_too_large",
    502: "api_error",
    504: "timeout_error",
}

PROVIDERS = {
    "anthropic": Provider(
        name="anthropic",
        title="Anthropic",
        calls={"v1/messages": True, "v1/messages/count_tokens": False},
        models="v1/models",
        key_header="x-api-key",
        key_prefix="",
    ),
    "openai": Provider(
        name="openai",
        title="OpenAI",
        calls={"responses": True, "chat/completions": True},
        models="models",
        key_header="Authorization",
        key_prefix="Bearer ",
    ),
}

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

#: What the client must not tell the provider: its own credentials, and whose account to use.
_NOT_SENT = _HOP_BY_HOP | {
    "authorization",
    "x-api-key",
    "api-key",
    "x-goog-api-key",
    "cookie",
    "accept-encoding",
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


class LlmProxy:
    """The LLM proxies of one worker, for all its attempts. ``close`` it at the end."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close the connections to the providers; calls that are on their way end."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def serve(self, request: web.Request, desk: Desk, tail: str) -> web.StreamResponse:
        """Answer ``request`` for ``/llm/<tail>``, for example ``anthropic/v1/messages?beta=true``.

        The caller has checked the attempt's token. The answer streams through as it comes; when it ends, for
        whatever reason, ``desk`` is told what was used until then.
        """
        path, mark, query = tail.partition("?")
        if not mark:
            query = request.rel_url.raw_query_string
        name, _, path = path.partition("/")
        provider = PROVIDERS.get(name)
        if provider is None:
            known = ", ".join(PROVIDERS)
            return web.json_response(
                {"error": {"message": f"There is no LLM provider {name!r} here, only: {known}."}}, status=404
            )
        if not provider.allows(request.method, path):
            message = (
                f"{request.method} /{path} is not among the {provider.title} calls that agents may make."
            )
            return _refusal(provider, 404, message)
        key = self._key(provider)
        if not key:
            setting = f"{ENV_PREFIX}LLM_{name.upper()}_KEY"
            return _refusal(
                provider, 401, f"This server has no {provider.title} key: its operator must set {setting}."
            )
        body = await _body(request)
        if body is None:
            return _refusal(provider, 413, f"The request is larger than {MAX_BODY // 2**20} MiB.")
        headers = _forwarded(request.headers, _NOT_SENT)
        headers["Accept-Encoding"] = "identity"
        headers[provider.key_header] = provider.key_prefix + key
        base = getattr(self._settings, f"llm_{name}_url")
        url = URL(f"{base}/{path}{'?' + query if query else ''}", encoded=True)
        call = _Call(provider=provider, path=path, key=key, body=body, desk=desk, settings=self._settings)
        started = time.monotonic()
        try:
            async with self._connected().request(
                request.method,
                url,
                headers=headers,
                data=BytesIO(body) if body else None,
                allow_redirects=False,
            ) as answer:
                return await call.relay(request, answer)
        except (aiohttp.ClientError, TimeoutError) as error:
            status, message = _unreachable(provider, url, error)
            return _refusal(provider, status, message)
        finally:
            logger.info(
                "llm call",
                provider=name,
                path=path,
                status=call.status,
                seconds=round(time.monotonic() - started, 3),
                model=call.model,
                cut=call.cut,
            )

    def _key(self, provider: Provider) -> str:
        key = getattr(self._settings, f"llm_{provider.name}_key").get_secret_value()
        return str(key).strip()

    def _connected(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),  # the number of slots is the limit
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(
                    total=self._settings.job_timeout,
                    connect=CONNECT_TIMEOUT,
                    sock_read=SILENCE_TIMEOUT,
                ),
                trust_env=True,  # an operator's HTTPS_PROXY
            )
        return self._session


class _Call:
    """One call on its way through: what it is, and what became of it."""

    def __init__(
        self, *, provider: Provider, path: str, key: str, body: bytes, desk: Desk, settings: Settings
    ) -> None:
        self._provider = provider
        self._costs = provider.calls.get(path, False)
        self._key = key
        self._body = body
        self._desk = desk
        self._settings = settings
        self.status = 0
        self.model = ""
        self.cut = ""  # who broke the answer off

    async def relay(self, request: web.Request, answer: aiohttp.ClientResponse) -> web.StreamResponse:
        """Pass ``answer`` on."""
        self.status = answer.status
        headers = _forwarded(answer.headers, _NOT_RETURNED)
        if answer.status >= HTTPStatus.BAD_REQUEST:
            text = await _at_most(answer.content, MAX_ERROR)
            # a gateway in between may quote the key that it refuses
            text = text.replace(self._key.encode(), b"[redacted]")
            return web.Response(status=answer.status, headers=headers, body=text)
        response = web.StreamResponse(status=answer.status, headers=headers)
        reader = UsageReader(answer.headers.get("Content-Type", ""))
        await response.prepare(request)
        try:
            await self._pipe(request, answer, response, reader)
        except asyncio.CancelledError:
            self.cut = "worker"
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
        while True:
            try:
                chunk = await answer.content.readany()
            except (aiohttp.ClientError, OSError):  # TimeoutError is an OSError
                # The status is out already. Closing the connection in the middle of the body is how HTTP/1.1
                # tells that it is not whole (RFC 9112 §8): clients try again then.
                self.cut = "provider"
                if request.transport is not None:
                    request.transport.abort()
                return
            if self._costs:
                reader.feed(chunk)
            try:
                if not chunk:
                    await response.write_eof()
                    return
                await response.write(chunk)
            except ConnectionError:
                self.cut = "client"
                return

    def _count(self, reader: UsageReader) -> None:
        if not self._costs:
            return
        reader.close()
        self.model = reader.model or self._asked_model()
        usage = price(reader.usage, self.model, self._settings.price_of)
        if not reader.complete and not self.cut:
            # a whole answer without numbers: it did cost something, and nobody knows what
            usage = price(reader.usage, "", self._settings.price_of)
        self._desk.add_usage(self.model, usage)

    def _asked_model(self) -> str:
        try:
            asked: Any = orjson.loads(self._body)
        except orjson.JSONDecodeError:
            return ""
        model = asked.get("model") if isinstance(asked, dict) else None
        return model if isinstance(model, str) else ""


def _refusal(provider: Provider, status: int, message: str) -> web.Response:
    return web.json_response(provider.error(status, message), status=status)


def _forwarded(headers: CIMultiDictProxy[str], dropped: frozenset[str]) -> CIMultiDict[str]:
    named = {name.strip().lower() for value in headers.getall("Connection", []) for name in value.split(",")}
    return CIMultiDict(
        (name, value)
        for name, value in headers.items()
        if name.lower() not in dropped and name.lower() not in named
    )


async def _body(request: web.Request) -> bytes | None:
    """The request's body, or None when it is too large."""
    if (request.content_length or 0) > MAX_BODY:
        return None
    body = await _at_most(request.content, MAX_BODY + 1)
    return body if len(body) <= MAX_BODY else None


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
