"""Trying a request again, and when not to: faults of the network, 5xx, rate limits, moved repositories.

https://docs.github.com/en/rest/using-the-rest-api/best-practices-for-using-the-rest-api
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import urljoin

import httpx
import structlog

from bot.errors import GitHubUnavailable
from bot.github_errors import ForeignAddress, OutcomeUnknown, RateLimited
from bot.github_limits import Gate, Limit, limit_in, seconds_in

log = structlog.get_logger(__name__)

#: Sending these twice has the effect of sending them once (RFC 9110 section 9.2.2). GitHub's PATCH sets fields
#: to values, so it is one of them. The price: a repeated DELETE may find nothing and be answered 404.
REPEATABLE_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE"})
#: Faults that come before a byte of the request has left: any method may be tried again.
UNSENT_FAULTS = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError)
RETRIED_STATUSES = frozenset({500, 502, 503, 504})
MOVED_STATUSES = frozenset({301, 302, 307, 308})
MAX_MOVES = 5


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long we try. All times in seconds."""

    tries: int = 6  # of one request, the first included
    backoff: float = 0.5  # before the second try; doubles each time
    backoff_max: float = 30.0
    connect_timeout: float = 5.0
    request_timeout: float = 30.0  # of one try, from first byte out to last byte in
    limit_wait_max: float = 300.0  # in all, for rate limits; longer ones are raised
    limit_wait_unknown: float = 60.0  # first wait for a limit that names no time; doubles each time


class APIBase:
    """The API's base URL: ``https://api.github.com``, or ``https://HOST/api/v3`` on GHES."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        parsed = httpx.URL(self.url)
        self._origin = _origin(parsed)
        self._path = parsed.path.rstrip("/") + "/"
        # https://docs.github.com/en/graphql/guides/forming-calls-with-graphql#the-graphql-endpoint
        enterprise = self.url.removesuffix("/api/v3")
        self.graphql_url = f"{enterprise}/api/graphql" if enterprise != self.url else f"{self.url}/graphql"

    def check(self, url: str | httpx.URL) -> None:
        """Raise ForeignAddress unless ``url`` lies below the base: our token is for nobody else."""
        try:
            parsed = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise ForeignAddress("An address for the GitHub API is malformed; it was not called.") from error
        if str(parsed) == self.graphql_url:
            return
        dots = {".", ".."} & set(parsed.path.split("/"))
        if _origin(parsed) != self._origin or not parsed.path.startswith(self._path) or dots:
            raise ForeignAddress(
                f"{parsed.scheme}://{parsed.host}{parsed.path} lies outside the GitHub API at {self.url}; "
                "it was not called.",
                "Check CONDUCTOR_GITHUB_API_URL.",
            )


class RetryTransport(httpx.AsyncBaseTransport):
    """Sends one installation's requests through its gate and tries again where that is safe.

    - A fault before anything was sent: any method again. A fault later, a time-out, 500, 502, 503 or 504: only
      repeatable methods again; for a POST :class:`OutcomeUnknown` is raised, since it may have been done.
      ``repeat_posts`` allows it for a client whose POSTs are all harmless to repeat.
    - A rate limit (nothing was done): any method again after the time that GitHub names, 60 s doubling
      where it names none; more than ``limit_wait_max`` in all raises :class:`RateLimited` with the time.
    - 301, 302, 307, 308 inside the API (a renamed repository): the same request to the new address.
    - Every other answer, a missing permission among them, is handed on as it is.

    After the last try GitHubUnavailable names request and reason. Bodies are read in full within the time limit.
    """

    def __init__(
        self,
        inner: httpx.AsyncBaseTransport,
        gate: Gate,
        base: APIBase,
        patience: Patience,
        *,
        repeat_posts: bool = False,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._inner = inner
        self._repeat_posts = repeat_posts
        self._gate = gate
        self._base = base
        self._patience = patience
        self._clock = clock
        self._sleep = sleep

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send ``request`` until there is an answer to hand on, or patience is over."""
        await request.aread()  # a body that can be sent again
        moves = 0
        while True:
            response = await self._answered(request)
            target = response.headers.get("location")
            if response.status_code not in MOVED_STATUSES or not target or moves == MAX_MOVES:
                return response
            address = urljoin(str(request.url), target)
            try:
                self._base.check(address)
            except ForeignAddress:
                return response  # the caller is told of the redirection
            moves += 1
            request = httpx.Request(
                request.method,
                address,
                headers=[(name, value) for name, value in request.headers.raw if name.lower() != b"host"],
                content=request.content,
                extensions=request.extensions,
            )

    async def _answered(self, request: httpx.Request) -> httpx.Response:
        """The first answer that is neither a rate limit nor trouble worth another try."""
        tried = 0
        limited = 0.0  # seconds that we have waited for rate limits
        limits = 0
        while True:
            limited += await self._wait_at_gate(request, limited)
            tried += 1
            response, fault = await self._try(request)
            if response is not None:
                limit = limit_in(response.status_code, response.headers, response.content, now=self._clock())
                if limit is not None:
                    wait = self._limit_wait(limit, limits)
                    limits += 1
                    self._gate.close_for(wait)
                    if tried >= self._patience.tries:
                        raise self._limited(request, wait)
                    continue
                if response.status_code not in RETRIED_STATUSES:
                    return response
            unsent = isinstance(fault, UNSENT_FAULTS)
            if not (unsent or self._repeat_posts or request.method in REPEATABLE_METHODS):
                raise self._unknown(request, response, fault) from fault
            if tried >= self._patience.tries:
                raise self._unavailable(request, response, fault, tried) from fault
            wait = self._backoff(tried)
            if response is not None:
                asked = seconds_in(response.headers.get("retry-after")) or 0.0
                wait = max(wait, min(asked, self._patience.backoff_max))
            log.warning(
                "github_retry",
                method=request.method,
                path=request.url.path,
                reason=_reason(response, fault),
                tried=tried,
                wait=round(wait, 2),
            )
            await self._sleep(wait)

    async def _try(self, request: httpx.Request) -> tuple[httpx.Response | None, Exception | None]:
        """One try: the whole answer, or what went wrong."""
        async with self._gate.slot(request.method):
            try:
                async with asyncio.timeout(self._patience.request_timeout):
                    response = await self._inner.handle_async_request(request)
                    try:
                        await response.aread()
                    finally:
                        await response.aclose()
            except (httpx.TransportError, httpx.DecodingError, TimeoutError) as fault:
                return None, fault
        return response, None

    async def _wait_at_gate(self, request: httpx.Request, limited: float) -> float:
        """Wait until the installation's rate limit is over; seconds waited. Raises RateLimited."""
        waited = 0.0
        while (wait := self._gate.closed_for) > 0:
            if limited + waited + wait > self._patience.limit_wait_max:
                raise self._limited(request, wait)
            log.warning(
                "github_rate_limit_wait",
                method=request.method,
                path=request.url.path,
                wait=round(wait, 2),
            )
            await self._sleep(wait)
            waited += wait
        return waited

    def _limit_wait(self, limit: Limit, earlier: int) -> float:
        if limit.wait is not None:
            return limit.wait
        return self._patience.limit_wait_unknown * 2.0**earlier

    def _backoff(self, tried: int) -> float:
        """Exponential, with jitter so that many clients do not come back at the same moment."""
        wait = min(self._patience.backoff * 2.0 ** (tried - 1), self._patience.backoff_max)
        return wait * random.uniform(0.5, 1.0)  # noqa: S311 (spreads load, guards nothing)

    def _limited(self, request: httpx.Request, wait: float) -> RateLimited:
        until = datetime.fromtimestamp(self._clock() + min(wait, 86400.0 * 365), UTC)
        return RateLimited(
            f"GitHub's rate limit is used up ({request.method} {request.url.path}).",
            f"It ends at {until:%Y-%m-%d %H:%M:%S} UTC; try again then.",
            until=until,
        )

    def _unknown(
        self, request: httpx.Request, response: httpx.Response | None, fault: Exception | None
    ) -> OutcomeUnknown:
        return OutcomeUnknown(
            f"GitHub gave no usable answer to {request.method} {request.url.path}: {_reason(response, fault)}.",
            "The request may have been carried out; look before it is sent again.",
        )

    def _unavailable(
        self, request: httpx.Request, response: httpx.Response | None, fault: Exception | None, tried: int
    ) -> GitHubUnavailable:
        times = "once" if tried == 1 else f"{tried} times"
        return GitHubUnavailable(
            f"GitHub at {self._base.url} could not be used: {request.method} {request.url.path} was tried {times}, "
            f"last: {_reason(response, fault)}.",
            "Check the network and CONDUCTOR_GITHUB_API_URL, and https://www.githubstatus.com.",
        )


def _reason(response: httpx.Response | None, fault: Exception | None) -> str:
    if response is not None:
        return f"status {response.status_code}"
    if isinstance(fault, (TimeoutError, httpx.TimeoutException)):
        return "no connection in time" if isinstance(fault, UNSENT_FAULTS) else "no answer in time"
    return str(fault) or type(fault).__name__


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    default = {"https": 443, "http": 80}.get(url.scheme)
    return url.scheme, url.host.lower(), url.port or default
