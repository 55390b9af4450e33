"""The webhook server: verify, deduplicate, write down, answer; deal with it in the background."""

from __future__ import annotations

import asyncio
import re
import zlib
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime

import orjson
import structlog
from aiohttp import web

from bot.config import Settings
from bot.errors import InfrastructureError
from bot.inbox import Delivery, Inbox, Stored
from bot.signature import BadSignature, Verifier, require_well_formed

log = structlog.get_logger(__name__)

#: GitHub sends no payload over 25 MB (https://docs.github.com/en/webhooks/webhook-events-and-payloads).
MAX_BODY = 25 * 2**20
CHECK_TIMEOUT = 2.0  # seconds for one part of /readyz
#: Seconds before a delivery that could not be dealt with is tried again.
RETRY_DELAYS = (1.0, 5.0, 30.0, 120.0)
AT_ONCE = 16  # deliveries dealt with at the same time
DRAIN_TIMEOUT = 20.0  # seconds for those in hand when the server stops

Handle = Callable[[Delivery], Awaitable[None]]
Check = Callable[[], Awaitable[None]]

_GUID = re.compile(r"[A-Za-z0-9-]{1,80}")
_EVENT = re.compile(r"[a-z_]{1,60}")


class Processor:
    """Deals with stored deliveries in the background; what it does not finish stays in the inbox."""

    def __init__(
        self, inbox: Inbox, handle: Handle, *, retry_delays: tuple[float, ...] = RETRY_DELAYS
    ) -> None:
        self._inbox = inbox
        self._handle = handle
        self._delays = retry_delays
        self._places = asyncio.Semaphore(AT_ONCE)
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = False

    async def replay(self) -> None:
        """Take up what the process before us stored and did not finish."""
        pending = await self._inbox.pending()
        if pending:
            log.info("replaying deliveries", count=len(pending))
        for delivery in pending:
            self.take(delivery)

    def take(self, delivery: Delivery) -> None:
        """Deal with ``delivery`` soon."""
        if self._stopping:
            return  # the next process replays it
        task = asyncio.create_task(self._deal_with(delivery), name=f"delivery {delivery.id}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _deal_with(self, delivery: Delivery) -> None:
        structlog.contextvars.bind_contextvars(correlation=delivery.id)
        for delay in (*self._delays, None):
            try:
                async with self._places:
                    await self._handle(delivery)
                    await self._inbox.done(delivery.id)
            except Exception as error:
                log.warning(
                    "not dealt with",
                    event_name=delivery.event,
                    error=str(error),
                    again_in=delay,
                    exc_info=True,
                )
                with suppress(Exception):  # the database may be what failed
                    if delay is None:
                        await self._inbox.failed(delivery.id, str(error))
                    else:
                        await self._inbox.tried(delivery.id, str(error))
            else:
                return
            if delay is not None:
                await asyncio.sleep(delay)

    async def close(self) -> None:
        """Finish what is in hand, within a limit."""
        self._stopping = True
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=DRAIN_TIMEOUT)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)


def create_app(
    settings: Settings,
    *,
    inbox: Inbox,
    wanted: Mapping[str, frozenset[str]],
    on_delivery: Handle,
    checks: Mapping[str, Check],
    retry_delays: tuple[float, ...] = RETRY_DELAYS,
) -> web.Application:
    """The application with ``POST /webhook``, ``/healthz`` and ``/readyz``.

    ``wanted`` says which actions of which events are stored and given to ``on_delivery``; ``checks`` what must work for
    the server to be ready.
    """
    webhook = _Webhook(Verifier(settings.webhook_secret.get_secret_value()), inbox, wanted)
    processor = Processor(inbox, on_delivery, retry_delays=retry_delays)
    webhook.take = processor.take
    app = web.Application(client_max_size=MAX_BODY)
    app.router.add_post("/webhook", webhook.receive)
    app.router.add_get("/healthz", _alive)
    app.router.add_get("/readyz", _Readiness(checks).answer)

    async def start(_app: web.Application) -> None:
        await processor.replay()

    async def stop(_app: web.Application) -> None:
        await processor.close()
        await inbox.aclose()

    app.on_startup.append(start)
    app.on_cleanup.append(stop)
    return app


class _Webhook:
    take: Callable[[Delivery], None]

    def __init__(self, verifier: Verifier, inbox: Inbox, wanted: Mapping[str, frozenset[str]]) -> None:
        self._verifier = verifier
        self._inbox = inbox
        self._wanted = wanted

    async def receive(self, request: web.Request) -> web.Response:
        headers = request.headers
        signature = headers.get("X-Hub-Signature-256")
        try:
            # before the body is read: whoever does not sign gets no memory from us
            require_well_formed(signature, headers.get("X-Hub-Signature"))
            if (request.content_length or 0) > MAX_BODY:
                return _answer(413, error=f"The body is larger than {MAX_BODY} bytes.")
            try:
                body = await request.read()
            except web.HTTPRequestEntityTooLarge:
                return _answer(413, error=f"The body is larger than {MAX_BODY} bytes.")
            self._verifier.verify(body, signature)
        except BadSignature as error:
            log.warning("delivery refused", reason=error.message, remote=request.remote)
            return _answer(401, error=error.message)
        event, guid = headers.get("X-GitHub-Event", ""), headers.get("X-GitHub-Delivery", "")
        if not _EVENT.fullmatch(event) or not _GUID.fullmatch(guid):
            return _answer(
                400, error="X-GitHub-Event and X-GitHub-Delivery must name the event and the delivery."
            )
        if event == "ping":
            return _answer(200, msg="pong")
        if event not in self._wanted:
            return _answer(202, ignored=event)  # most of what GitHub sends: its JSON is never parsed
        if request.content_type != "application/json":
            return _answer(415, error="Set the webhook's content type to application/json.")
        return await self._store(event, guid, body)

    async def _store(self, event: str, guid: str, body: bytes) -> web.Response:
        try:
            payload = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            return _answer(400, error=f"The body is not JSON: {error}.")
        if not isinstance(payload, dict):
            return _answer(400, error="The body is no JSON object.")
        action = payload.get("action")
        if action not in self._wanted[event]:
            return _answer(202, ignored=f"{event}.{action}")
        installation = payload.get("installation")
        number = installation.get("id") if isinstance(installation, dict) else None
        delivery = Delivery(
            id=guid,
            event=event,
            action=action,
            installation_id=number if isinstance(number, int) else None,
            body=zlib.compress(body, 1),
            received_at=datetime.now(UTC),
        )
        try:
            stored = await self._inbox.put(delivery)
        except InfrastructureError as error:
            return _answer(503, {"Retry-After": "10"}, error=error.message)
        if stored is Stored.duplicate:
            return _answer(202, delivery=guid, duplicate=True)
        self.take(delivery)
        return _answer(202, delivery=guid)


class _Readiness:
    def __init__(self, checks: Mapping[str, Check]) -> None:
        self._checks = checks

    async def answer(self, _request: web.Request) -> web.Response:
        """200 when everything answers, else 503; each part with "ok" or what is wrong."""
        results = await asyncio.gather(*(_result(check) for check in self._checks.values()))
        found = dict(zip(self._checks, results, strict=True))
        ready = all(result == "ok" for result in results)
        return _answer(200 if ready else 503, ready=ready, checks=found)


async def _result(check: Check) -> str:
    try:
        async with asyncio.timeout(CHECK_TIMEOUT):
            await check()
    except TimeoutError:
        return f"no answer within {CHECK_TIMEOUT:.0f} s"
    except Exception as error:
        log.warning("not ready", exc_info=True)
        return type(error).__name__
    return "ok"


async def _alive(_request: web.Request) -> web.Response:
    return _answer(200, alive=True)


def _answer(status: int, headers: Mapping[str, str] | None = None, **values: object) -> web.Response:
    return web.Response(
        status=status, body=orjson.dumps(values), content_type="application/json", headers=headers
    )
