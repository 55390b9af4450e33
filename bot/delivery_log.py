"""GitHub's log of the webhook deliveries that it tried to make to the App.

GitHub tries each delivery once and keeps it for three days (seven on GitHub Enterprise Server):
https://docs.github.com/en/webhooks/using-webhooks/handling-failed-webhook-deliveries and
https://docs.github.com/en/rest/apps/webhooks. What the log says comes over the API with the App's own key, so it is
trusted like a delivery that is signed with the webhook's secret.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import structlog

from bot.errors import GitHubUnavailable
from bot.github import GitHub, path
from bot.github_errors import GitHubError, RateLimited, Unauthorized

log = structlog.get_logger(__name__)

#: What the server answers to a delivery that it took, or that it does not want. Nobody else says that in its place: a
#: proxy's "200, we will be back soon" is no receipt.
RECEIPT = 202

_GUID = re.compile(r"[A-Za-z0-9-]{1,80}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """One attempt of GitHub to deliver something."""

    id: int
    guid: str  # of the delivery; all attempts have the same
    delivered_at: datetime
    event: str
    action: str | None
    status_code: int  # of the answer; 0 or a 5xx of GitHub's own when there was none
    installation_id: int | None

    @property
    def received(self) -> bool:
        """Whether the server has answered for it."""
        return self.status_code == RECEIPT


class DeliveryLog:
    """Reads the log, newest attempts first."""

    def __init__(self, github: GitHub) -> None:
        self._github = github

    async def attempts(self) -> AsyncGenerator[Attempt, None]:
        """All attempts that the log holds, newest first; a page is asked for when it is needed.

        Raises what ``bot.github_errors`` lists. An entry that makes no sense is left out.
        """
        # not only failed ones: GitHub's filter for those leaves out whatever had no HTTP answer at all
        async with aclosing(self._github.app_client.getiter("/app/hook/deliveries")) as items:
            async for item in items:
                attempt = _attempt(item)
                if attempt is not None:
                    yield attempt

    async def payload(self, attempt: Attempt) -> dict[str, Any] | None:
        """What was sent in the attempt; None when the log cannot say that any more, or it is not ours.

        Raises GitHubUnavailable when GitHub does not answer at all, Unauthorized when it does not know us.
        """
        url = path("/app/hook/deliveries/{id}", None, id=attempt.id)
        try:
            found = await self._github.app_client.getitem(url)
        except Unauthorized:
            raise
        except GitHubError as error:
            log.warning("a missed delivery cannot be read", delivery=attempt.guid, error=str(error))
            return None
        request = found.get("request") or {}
        payload = request.get("payload")
        if not isinstance(payload, dict):
            return None
        app_id = (await self._github.identity()).id
        if problem := _foreign(attempt, found, request.get("headers") or {}, payload, app_id):
            log.error("a delivery of the log is not ours", delivery=attempt.guid, problem=problem)
            raise ForeignDelivery(problem)
        return payload

    async def ask_again(self, attempt: Attempt) -> bool:
        """Have GitHub deliver it once more, under the same id; False when it will not.

        Raises GitHubUnavailable when GitHub does not answer at all, Unauthorized when it does not know us.
        """
        url = path("/app/hook/deliveries/{id}/attempts", None, id=attempt.id)
        try:
            await self._github.app_client.post(url, data=b"")
        except Unauthorized:
            raise
        except GitHubError as error:
            log.error("a missed delivery is lost", delivery=attempt.guid, error=str(error))
            return False
        return True

    async def read(self, attempt: Attempt) -> dict[str, Any] | None:
        """The payload; where it cannot be had GitHub is asked to send it again, and the result is None.

        Raises GitHubUnavailable when GitHub does not answer at all, ForeignDelivery when it is not ours.
        """
        try:
            payload = await self.payload(attempt)
        except RateLimited:
            raise
        except GitHubUnavailable as error:  # maybe about this one only: then the other question is answered
            log.warning("a missed delivery cannot be read", delivery=attempt.guid, error=str(error))
            payload = None
        if payload is None and await self.ask_again(attempt):
            log.info("asked for a missed delivery", delivery=attempt.guid, event_name=attempt.event)
        return payload


class ForeignDelivery(Exception):
    """What the log answers is about another App, another installation or another delivery."""


def _attempt(item: Any) -> Attempt | None:
    try:
        attempt = Attempt(
            id=int(item["id"]),
            guid=str(item["guid"]),
            delivered_at=datetime.fromisoformat(item["delivered_at"]).astimezone(UTC),
            event=str(item["event"]),
            action=None if item.get("action") is None else str(item["action"]),
            status_code=int(item.get("status_code") or 0),
            installation_id=None if item.get("installation_id") is None else int(item["installation_id"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        log.warning("an entry of the delivery log makes no sense", error=f"{type(error).__name__}: {error}")
        return None
    if not _GUID.fullmatch(attempt.guid):
        log.warning("a delivery with an impossible id", delivery=attempt.guid[:80])
        return None
    return attempt


def _foreign(
    attempt: Attempt,
    found: Mapping[str, Any],
    headers: Mapping[str, Any],
    payload: Mapping[str, Any],
    app_id: int,
) -> str:
    """Why an answer is not about the attempt that was asked for; "" when it is."""
    sent = {str(name).lower(): str(value) for name, value in headers.items()}
    if found.get("guid") != attempt.guid or sent.get("x-github-delivery", attempt.guid) != attempt.guid:
        return "it is another delivery"
    if sent.get("x-github-event", attempt.event) != attempt.event:
        return "it is another event"
    if sent.get("x-github-hook-installation-target-id", str(app_id)) != str(app_id):
        return "it is for another App"
    installation = payload.get("installation")
    number = installation.get("id") if isinstance(installation, dict) else None
    if attempt.installation_id is not None and number != attempt.installation_id:
        return "it is about another installation"
    return ""
