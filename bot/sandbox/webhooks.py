"""Webhook deliveries: signed, logged, and delivered again on request, never on their own.

https://docs.github.com/en/webhooks/using-webhooks/handling-webhook-deliveries and .../webhook-events-and-payloads
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
import uuid

import aiohttp
import orjson

from bot.sandbox.permissions import covers
from bot.sandbox.state import Delivery, Installation

TIMEOUT = 10.0
"""Seconds that GitHub waits for an answer."""

KEPT = 2000
"""Deliveries that the memory holds; the log shows those of three days."""

_MAX_RESPONSE = 16_384

_NEEDS: dict[str, dict[str, str]] = {
    "issues": {"issues": "read"},
    "issue_comment": {"issues": "read"},
    "label": {"metadata": "read"},
    "repository": {"metadata": "read"},
    "pull_request": {"pull_requests": "read"},
    "pull_request_review": {"pull_requests": "read"},
    "pull_request_review_comment": {"pull_requests": "read"},
    "pull_request_review_thread": {"pull_requests": "read"},
    "merge_group": {"merge_queues": "read"},
    "push": {"contents": "read"},
    "create": {"contents": "read"},
    "delete": {"contents": "read"},
    "repository_dispatch": {"contents": "read"},
    "status": {"statuses": "read"},
    "check_run": {"checks": "read"},
    "check_suite": {"checks": "read"},
}
# An App with checks:write gets these whether it subscribed or not
_AUTOMATIC = frozenset({"check_run", "check_suite"})
_TO_THE_APP_ITSELF = frozenset({"rerequested", "requested_action", "requested"})


def wants(installation: Installation, event: str, action: str | None) -> bool:
    """Whether GitHub sends this event to this installation."""
    if installation.suspended_at is not None:
        return False
    needs = dict(_NEEDS.get(event, {}))
    automatic = event in _AUTOMATIC and covers(installation.permissions, {"checks": "write"})
    if event in _AUTOMATIC and action in _TO_THE_APP_ITSELF:
        needs["checks"] = "write"
    return covers(installation.permissions, needs) and (automatic or event in installation.events)


def signatures(secret: str, body: bytes) -> dict[str, str]:
    """The two signature headers; see https://docs.github.com/en/webhooks/using-webhooks/validating-webhook-deliveries."""
    return {
        "X-Hub-Signature": "sha1=" + hmac.new(secret.encode(), body, hashlib.sha1).hexdigest(),
        "X-Hub-Signature-256": "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest(),
    }


class WebhookSender:
    """Sends deliveries in the background and writes down how each went.

    Args:
        hook_id: what ``X-GitHub-Hook-ID`` says.
        app_id: what ``X-GitHub-Hook-Installation-Target-ID`` says.
    """

    def __init__(self, hook_id: int, app_id: int):
        self._hook_id = hook_id
        self._app_id = app_id
        self._session: aiohttp.ClientSession | None = None
        self._running: set[asyncio.Task[None]] = set()

    def send(self, delivery: Delivery, secret: str, url: str | None) -> None:
        """Begin a delivery; without a URL it is only logged."""
        if not url:
            delivery.status = "The App has no webhook URL"
            return
        delivery.url = url
        task = asyncio.create_task(self._deliver(delivery, secret, url))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def settled(self) -> None:
        """Wait until no delivery is under way, those included that others set off meanwhile."""
        while self._running:
            await asyncio.wait(set(self._running))

    async def close(self) -> None:
        """Cut off what is under way."""
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    async def _deliver(self, delivery: Delivery, secret: str, url: str) -> None:
        body = orjson.dumps(delivery.payload)
        delivery.request_headers = self._headers(delivery) | signatures(secret, body)
        started = time.monotonic()
        try:
            async with self._client().post(
                url, data=body, headers=delivery.request_headers, allow_redirects=False
            ) as response:
                answer = await response.content.read(_MAX_RESPONSE)
                delivery.status_code = response.status
                delivery.response_headers = {str(name): value for name, value in response.headers.items()}
                delivery.response_body = answer.decode(errors="replace")
                fine = 200 <= response.status < 300
                delivery.status = "OK" if fine else f"Invalid HTTP Response: {response.status}"
        except TimeoutError:
            delivery.status = "timed out"
        except aiohttp.ClientError:
            delivery.status = "failed to connect to host"
        delivery.duration = round(time.monotonic() - started, 2)

    def _headers(self, delivery: Delivery) -> dict[str, str]:
        return {
            "Accept": "*/*",
            "Content-Type": "application/json",
            "User-Agent": "GitHub-Hookshot/sandbox",
            "X-GitHub-Delivery": delivery.guid,
            "X-GitHub-Event": delivery.event,
            "X-GitHub-Hook-ID": str(self._hook_id),
            "X-GitHub-Hook-Installation-Target-ID": str(self._app_id),
            "X-GitHub-Hook-Installation-Target-Type": "integration",
        }

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT))
        return self._session


def new_guid() -> str:
    """A delivery's GUID; a redelivery keeps it."""
    return str(uuid.uuid4())
