"""The webhook server: verify, deduplicate, write down, answer; the work is done in the background."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import orjson
import structlog
from aiohttp import web

from bot.config import Settings
from bot.errors import InfrastructureError
from bot.inbox import Delivery, Inbox, Stored
from bot.processor import RETRY_DELAYS, Gone, Handle, Processor, all_of_them
from bot.signature import (
    LEGACY_HEADER,
    SIGNATURE_HEADER,
    BadSignature,
    Verifier,
    require_well_formed,
)

log = structlog.get_logger(__name__)

#: GitHub sends no payload over 25 MB (https://docs.github.com/en/webhooks/webhook-events-and-payloads).
MAX_BODY = 25 * 2**20
LARGE_BODY = (
    2**20
)  # from here on only a few are read at the same time, so that senders cannot fill the memory
LARGE_AT_ONCE = 8
BODY_TIMEOUT = 30.0  # seconds for a sender to bring its body
CHECK_TIMEOUT = 2.0  # seconds for one part of /readyz
RETRY_AFTER = "10"  # seconds; GitHub shows the delivery as failed, and it can be redelivered

Check = Callable[[], Awaitable[None]]
Wanted = Mapping[str, frozenset[str] | None]
#: What works the application's stored deliveries off.
PROCESSOR = web.AppKey("processor", Processor)

_GUID = re.compile(r"[A-Za-z0-9-]{1,80}")
_EVENT = re.compile(r"[a-z0-9_]{1,60}")


def create_app(
    settings: Settings,
    *,
    inbox: Inbox,
    wanted: Wanted,
    on_delivery: Handle,
    checks: Mapping[str, Check],
    retry_delays: Sequence[float] = RETRY_DELAYS,
    body_timeout: float = BODY_TIMEOUT,
    gone: Gone = all_of_them,
) -> web.Application:
    """The application with ``POST /webhook``, ``/healthz`` and ``/readyz``.

    ``wanted`` says which actions of which events are stored and given to ``on_delivery`` (None: all; "": of an event
    that has none);
    ``checks`` what must work for the server to be ready; ``gone`` which other servers on the same database do not
    live any more. The application closes ``inbox`` at its end.
    Raises ConfigurationError when the webhook secret is empty.
    """
    processor = Processor(inbox, on_delivery, retry_delays=retry_delays, gone=gone)
    readiness = _Readiness(checks)
    verifier = Verifier(settings.webhook_secret.get_secret_value())
    webhook = _Webhook(verifier, inbox, wanted, processor.take, body_timeout)
    app = web.Application(client_max_size=MAX_BODY)
    app[PROCESSOR] = processor
    app.router.add_post("/webhook", webhook.receive)
    app.router.add_get("/healthz", _alive)
    app.router.add_get("/readyz", readiness.answer)

    async def start(_app: web.Application) -> None:
        processor.start()

    async def drain(_app: web.Application) -> None:
        readiness.draining = True

    async def stop(_app: web.Application) -> None:
        await processor.close()
        await inbox.aclose()

    app.on_startup.append(start)
    app.on_shutdown.append(drain)
    app.on_cleanup.append(stop)
    return app


class _Refused(Exception):
    """An answer that ends the request."""

    def __init__(self, response: web.Response) -> None:
        super().__init__()
        self.response = response


class _Webhook:
    def __init__(
        self,
        verifier: Verifier,
        inbox: Inbox,
        wanted: Wanted,
        take: Callable[[str, str | None], None],
        body_timeout: float,
    ) -> None:
        self._verifier = verifier
        self._inbox = inbox
        self._wanted = wanted
        self._take = take
        self._body_timeout = body_timeout
        self._large = asyncio.Semaphore(LARGE_AT_ONCE)

    async def receive(self, request: web.Request) -> web.Response:
        """One delivery, from its first byte to its answer."""
        try:
            body = await self._signed_body(request)
        except BadSignature as error:
            log.warning("delivery refused", reason=error.message, remote=request.remote)
            return _answer(401, error=error.message)
        except _Refused as refused:
            return refused.response
        headers = request.headers
        event, guid = headers.get("X-GitHub-Event", ""), headers.get("X-GitHub-Delivery", "")
        if not _EVENT.fullmatch(event) or not _GUID.fullmatch(guid):
            return _answer(
                400, error="X-GitHub-Event and X-GitHub-Delivery must name the event and the delivery."
            )
        if request.content_type != "application/json":
            return _answer(
                415, error="Set the webhook's content type to application/json in the App's settings."
            )
        if event == "ping":
            return _answer(200, msg="pong")
        if event not in self._wanted:
            return _answer(202, ignored=event)  # most of what GitHub sends: its JSON is never parsed
        return await self._store(event, guid, body)

    async def _signed_body(self, request: web.Request) -> bytes:
        """The body. Raises BadSignature when it is not ours, _Refused when it is too large or too slow."""
        signature = request.headers.get(SIGNATURE_HEADER)
        # before the body is read: whoever does not sign gets no memory from us
        require_well_formed(signature, request.headers.get(LEGACY_HEADER))
        if "Content-Encoding" in request.headers:  # GitHub sends none; it would get round the length below
            raise _Refused(_answer(415, error="Send the body as it is, without a Content-Encoding."))
        length = request.content_length
        if length is not None and length > MAX_BODY:
            raise _Refused(_too_large())
        large = length is None or length > LARGE_BODY
        try:
            if request.content.is_eof() and not large:  # all of it came with the head, as it mostly does
                body = await request.read()
            else:
                async with asyncio.timeout(self._body_timeout), self._large if large else nullcontext():
                    body = await request.read()
        except web.HTTPRequestEntityTooLarge:
            raise _Refused(_too_large()) from None
        except TimeoutError:
            raise _Refused(
                _answer(408, error=f"The body did not come within {self._body_timeout:g} seconds.")
            ) from None
        self._verifier.verify(body, signature)
        return body

    async def _store(self, event: str, guid: str, body: bytes) -> web.Response:
        try:
            payload = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            return _answer(400, error=f"The body is not JSON: {error}.")
        if not isinstance(payload, dict):
            return _answer(400, error="The body is no JSON object.")
        action, actions = payload.get("action"), self._wanted[event]
        told = "" if action is None else action
        if actions is not None and not (isinstance(told, str) and told in actions):
            return _answer(202, ignored=f"{event}.{action}")
        if actions is not None and told == "edited" and _by_its_author(payload):
            return _answer(202, ignored=f"{event}.{action} by its author")
        delivery = Delivery.of(guid, event, payload, body)
        try:
            stored = await self._inbox.put(delivery)
        except InfrastructureError as error:
            log.error("delivery not stored", delivery=guid, error=str(error))
            return _answer(503, {"Retry-After": RETRY_AFTER}, error=error.message)
        if stored is Stored.duplicate:
            return _answer(202, delivery=guid, duplicate=True)
        self._take(guid, delivery.subject)
        return _answer(202, delivery=guid)


def _by_its_author(payload: Mapping[str, Any]) -> bool:
    """Whether somebody changed a comment of their own, which nobody asks about; we do so all the time."""
    comment, sender = payload.get("comment"), payload.get("sender")
    author = comment.get("user") if isinstance(comment, dict) else None
    if not isinstance(author, dict) or not isinstance(sender, dict) or sender.get("id") is None:
        return False
    return bool(author.get("id") == sender["id"])


class _Readiness:
    def __init__(self, checks: Mapping[str, Check]) -> None:
        self._checks = checks
        self.draining = False

    async def answer(self, _request: web.Request) -> web.Response:
        """200 when everything answers, else 503; each part with "ok" or what is wrong."""
        results = await asyncio.gather(*(_result(name, check) for name, check in self._checks.items()))
        ready = not self.draining and all(result == "ok" for result in results)
        return _answer(
            200 if ready else 503,
            ready=ready,
            draining=self.draining,
            checks=dict(zip(self._checks, results, strict=True)),
        )


async def _result(name: str, check: Check) -> str:
    try:
        async with asyncio.timeout(CHECK_TIMEOUT):
            await check()
    except TimeoutError:
        return f"no answer within {CHECK_TIMEOUT:.0f} s"
    except Exception as error:  # whatever is wrong with it, the others are still told
        log.warning("not ready", check=name, exc_info=True)
        return type(error).__name__  # the details are for the log: anybody may ask
    return "ok"


async def _alive(_request: web.Request) -> web.Response:
    return _answer(200, alive=True)


def _too_large() -> web.Response:
    return _answer(413, error=f"The body is larger than {MAX_BODY} bytes.")


def _answer(status: int, headers: Mapping[str, str] | None = None, **values: object) -> web.Response:
    return web.Response(
        status=status, body=orjson.dumps(values), content_type="application/json", headers=headers
    )
