"""Reverse proxies to the LLM providers: they put the real key in, outside the container, and count tokens and money.

Only the calls that an agent needs are let through. In particular nothing that reads back what was stored under
the operator's key (``GET /v1/responses/…``, files, batches): that may be another job's.

The story of a call: which provider (`llm_providers`), is it a call that agents may make (`llm_wires`), is nothing in
it that it must not hold (`llm_filter`), is there money left (`llm_budget`), send it with a key that works (`llm_relay`,
`llm_keys`), write down what it cost.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from http import HTTPStatus
from typing import Protocol
from urllib.parse import parse_qsl, urlencode

import aiohttp
import orjson
import structlog
from aiohttp import web

from bot.config import ENV_PREFIX, LLM_ROUTES, Settings
from bot.errors import InfrastructureError
from bot.ledger import Entry, Ledger
from bot.model import FailureKind, Usage
from bot.terms import Terms
from bot.usage import price
from runners.gateway.llm_budget import NoMoney, Purse
from runners.gateway.llm_filter import Checked, RequestRefused, check
from runners.gateway.llm_providers import Provider, Providers
from runners.gateway.llm_relay import NO_RETRY, Outgoing, Patience, Report, send
from runners.gateway.llm_wires import Call

MAX_BODY = 32 * 2**20  # bytes of a request; Anthropic's own limit, too
CONNECT_TIMEOUT = 10.0  # seconds
SILENCE_TIMEOUT = 900.0  # seconds without a byte; a model may think for minutes before it answers
#: Seconds for which an attempt is told at once what the provider says, after the tries of one call were in vain:
#: the CLI's own tries come now, and must not be multiplied by ours.
IMPATIENT = 60.0

logger = structlog.get_logger(__name__)


class Desk(Protocol):
    """For whom an attempt's calls are made, where they are counted, and who ends it."""

    @property
    def attempt_id(self) -> str:
        """The attempt's id."""

    @property
    def terms(self) -> Terms:
        """What it may do and spend."""

    def calling(self) -> AbstractContextManager[None]:
        """A call is under way while the block runs."""

    def add_usage(self, model: str, usage: Usage) -> None:
        """Count what an LLM call cost."""

    def halt(self, kind: FailureKind, message: str) -> None:
        """The attempt must end."""


class LlmProxy:
    """The LLM proxies of one worker, for all its attempts. ``close`` it at the end.

    Without a ``ledger`` calls are counted on the desk alone, and no budget holds. Raises ConfigurationError when
    a key's variable is not set.
    """

    def __init__(
        self, settings: Settings, ledger: Ledger | None = None, *, patience: Patience | None = None
    ) -> None:
        self._settings = settings
        self._providers = Providers(settings)
        self._purse = Purse(settings, ledger)
        self._patience = patience or Patience()
        self._gave_up: dict[str, float] = {}  # attempt -> when a call of it found no answer
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close the connections to the providers; calls that are on their way end."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()
        await self._purse.close()

    async def serve(self, request: web.Request, desk: Desk, tail: str) -> web.StreamResponse:
        """Answer ``request`` for ``/llm/<tail>``, for example ``anthropic/v1/messages?beta=true``.

        The caller has checked the attempt's token. The answer streams through as it comes; when it ends, for
        whatever reason, ``desk`` and the ledger are told what was used until then.
        """
        path, mark, query = tail.partition("?")
        if not mark:
            query = request.rel_url.raw_query_string
        route, _, path = path.partition("/")
        provider = self._providers.find(route, desk.terms.agent)
        if provider is None:
            known = ", ".join(LLM_ROUTES)
            return web.json_response(
                {"error": {"message": f"There is no LLM provider {route!r} here, only: {known}."}}, status=404
            )
        call = provider.wire.call(request.method, path)
        if call is None:
            message = (
                f"{request.method} /{path} is not among the {provider.title} calls that agents may make."
            )
            return _refusal(provider, 404, message)
        if provider.setting and not len(provider.keys):
            return _refusal(
                provider,
                401,
                f"This server has no {provider.title} key: its operator must set {provider.setting}.",
            )
        body = await _body(request)
        if body is None:
            return _refusal(provider, 413, f"The request is larger than {MAX_BODY // 2**20} MiB.")
        try:
            checked = self._checked(provider, call, request.method, path, body)
        except RequestRefused as refused:
            logger.info("llm call refused", provider=provider.name, path=path, why=str(refused))
            return _refusal(provider, 400, str(refused))
        pairs = parse_qsl(query, keep_blank_values=True)
        outgoing = Outgoing(
            method=request.method,
            path=path,
            query=urlencode([(name, value) for name, value in pairs if name in provider.wire.queries]),
            headers=request.headers,
            # what was checked is what is sent: two readers may take doubled keys differently
            body=orjson.dumps(checked.document) if checked.document else b"",
            costs=call.costs,
            model=checked.model,
        )
        if not call.costs:
            return await self._send(request, desk, provider, outgoing)
        try:
            with desk.calling():
                async with self._purse.hold(
                    desk.terms,
                    model=outgoing.model,
                    free=all(key.free for key in provider.keys) and len(provider.keys) > 0,
                    request_bytes=len(outgoing.body),
                    max_output=checked.max_output,
                ):
                    return await self._send(request, desk, provider, outgoing)
        except NoMoney as refused:
            logger.info("llm call refused", provider=provider.name, path=path, why=refused.message)
            if refused.halt:
                with suppress(InfrastructureError):  # it is ending already
                    desk.halt(FailureKind.budget, refused.halt)
            temporary = refused.status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)
            headers = {"Retry-After": "5"} if temporary else NO_RETRY
            return _refusal(provider, refused.status, refused.message, headers)

    def _checked(self, provider: Provider, call: Call, method: str, path: str, body: bytes) -> Checked:
        """What ``body`` asks for, without what it must not hold. Raises RequestRefused."""
        if method == "GET":
            return Checked(document={}, model="", max_output=None)
        try:
            document = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise RequestRefused(f"The request's body is not JSON: {error}.") from error
        checked = check(
            provider.wire.kind,
            document,
            path=path,
            path_model=call.model,
            allowed=self._settings.llm_server_tools,
        )
        if call.costs and not _matches(checked.model, self._settings.models_allowed):
            names = ", ".join(self._settings.models_allowed)
            raise RequestRefused(
                f"The model {checked.model!r} may not be used here, only: {names}. The server's operator sets "
                f"{ENV_PREFIX}MODELS_ALLOWED."
            )
        if checked.taken_out:
            logger.debug("tools taken out of an llm call", provider=provider.name, tools=checked.taken_out)
        return checked

    async def _send(
        self, request: web.Request, desk: Desk, provider: Provider, outgoing: Outgoing
    ) -> web.StreamResponse:
        started = time.monotonic()
        report = Report()
        since = started - self._gave_up.get(desk.attempt_id, -IMPATIENT)
        patience = self._patience if since >= IMPATIENT else Patience(pauses=())
        try:
            return await send(self._connected(), provider, outgoing, request, patience, report)
        finally:
            self._remember(desk.attempt_id, report)
            if report.usage is not None:
                usage = report.usage  # that of a free key has the cost of nothing
                if not report.free:
                    usage = self._priced(usage, report, outgoing.model)
                desk.add_usage(report.model, usage)
                entry = Entry(
                    terms=desk.terms,
                    attempt_id=desk.attempt_id,
                    at=datetime.now(UTC),
                    model=report.model,
                    usage=usage,
                )
                # also when this task is being cancelled: what was used was used
                await asyncio.shield(self._purse.record(entry))
            logger.info(
                "llm call",
                provider=provider.name,
                path=outgoing.path,
                status=report.status,
                seconds=round(time.monotonic() - started, 3),
                model=report.model,
                cut=report.cut,
                estimated=report.estimated,
                tries=report.tries,
            )

    def _priced(self, usage: Usage, report: Report, asked: str) -> Usage:
        """``usage`` with its cost: by the model that answered, or by the one that was asked for.

        Clouds and gateways have names of their own for a model; a budget must not end where those begin.
        """
        for model in (report.model, asked):
            priced = price(usage, model, self._settings.price_of, kept_for_an_hour=report.kept_for_an_hour)
            if priced.cost is not None:
                break
        return priced

    def _remember(self, attempt_id: str, report: Report) -> None:
        now = time.monotonic()
        if report.gave_up:
            self._gave_up[attempt_id] = now
        elif report.status and report.status < HTTPStatus.BAD_REQUEST:
            self._gave_up.pop(attempt_id, None)
        for other in [other for other, at in self._gave_up.items() if now - at > IMPATIENT]:
            del self._gave_up[other]

    def _connected(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),  # the number of slots is the limit
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(
                    # a job's own limit ends its container, and with it the call
                    total=self._settings.job_timeout,
                    connect=CONNECT_TIMEOUT,
                    sock_read=SILENCE_TIMEOUT,
                ),
                trust_env=True,  # an operator's HTTPS_PROXY
            )
        return self._session


def _matches(model: str, patterns: Sequence[str]) -> bool:
    return not patterns or any(fnmatchcase(model, pattern) for pattern in patterns)


def _refusal(
    provider: Provider, status: int, message: str, headers: dict[str, str] | None = None
) -> web.Response:
    return web.json_response(provider.wire.error(status, message), status=status, headers=headers)


async def _body(request: web.Request) -> bytes | None:
    """The request's body, or None when it is too large."""
    if (request.content_length or 0) > MAX_BODY:
        return None
    body = bytearray()
    async for chunk in request.content.iter_any():
        body += chunk
        if len(body) > MAX_BODY:
            return None
    return bytes(body)
