"""GitHub's rate limits: telling them from refusals, and one gate per installation that keeps to them.

https://docs.github.com/en/rest/using-the-rest-api/rate-limits-for-the-rest-api
https://docs.github.com/en/rest/using-the-rest-api/best-practices-for-using-the-rest-api
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from bot.github_errors import read_error

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


@dataclass(frozen=True)
class Limit:
    """A rate limit that GitHub told us. ``wait`` in seconds; None: it did not say how long."""

    kind: str  # "primary" or "secondary"
    wait: float | None


def limit_in(status: int, headers: Mapping[str, str], body: bytes, *, now: float) -> Limit | None:
    """The rate limit that an answer tells of, or None when it is about something else.

    Limits come as 403 or 429 and a missing permission is a 403 too. In GitHub's order: ``Retry-After``, then
    ``X-RateLimit-Remaining: 0`` with its reset, then the message. ``X-Accepted-GitHub-Permissions`` decides
    nothing, because answers that are no refusals carry it too. ``now`` (seconds since the epoch) is used
    when the answer has no ``Date``.
    """
    if status not in (403, 429):
        return None
    message = read_error(body)[0].lower()
    if status == 403 and "resource not accessible" in message:
        return None  # may carry remaining: 0 when it was the hour's last request
    kind = "secondary" if "secondary" in message or "abuse" in message else "primary"
    retry_after = seconds_in(headers.get("retry-after"))
    if retry_after is not None:
        return Limit("primary" if "rate limit exceeded" in message else "secondary", retry_after)
    reset = seconds_in(headers.get("x-ratelimit-reset"))
    if headers.get("x-ratelimit-remaining") == "0" and reset is not None and kind == "primary":
        # one second more: the reset is given in whole seconds
        return Limit("primary", max(0.0, reset - (date_in(headers) or now)) + 1)
    if status == 429 or "rate limit" in message or kind == "secondary":
        return Limit(kind, None)
    return None


def date_in(headers: Mapping[str, str]) -> float | None:
    """The ``Date`` header in seconds since the epoch."""
    try:
        return parsedate_to_datetime(headers.get("date", "")).timestamp()
    except (ValueError, OverflowError):
        return None


def seconds_in(value: str | None) -> float | None:
    """A header value that is a whole number of seconds; None when it is missing or something else."""
    return float(value) if value and value.isascii() and value.isdigit() and len(value) < 12 else None


class Gate:
    """Where every request of one installation passes: so many at once, writes spaced, none while limited.

    ``write_spacing`` in seconds is the least time between the starts of two writes.
    """

    def __init__(
        self,
        *,
        in_flight: int = 20,
        write_spacing: float = 0.0,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._slots = asyncio.Semaphore(in_flight)
        self._write_spacing = write_spacing
        self._sleep = sleep
        self._monotonic = monotonic
        self._next_write = 0.0
        self._closed_until = 0.0

    @property
    def closed_for(self) -> float:
        """Seconds until the rate limit that was hit is over; 0 when there is none."""
        return max(0.0, self._closed_until - self._monotonic())

    def close_for(self, seconds: float) -> None:
        """Let nobody through for ``seconds``: going on while limited makes GitHub ban an App."""
        self._closed_until = max(self._closed_until, self._monotonic() + seconds)

    @asynccontextmanager
    async def slot(self, method: str) -> AsyncIterator[None]:
        """Hold one of the slots for one try of a request."""
        if method not in SAFE_METHODS and self._write_spacing:
            now = self._monotonic()
            start = max(now, self._next_write)
            self._next_write = start + self._write_spacing  # reserved before we wait
            if start > now:
                await self._sleep(start - now)
        async with self._slots:
            yield
