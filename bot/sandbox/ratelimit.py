"""GitHub's primary rate limit: so many requests an hour for each caller.

https://docs.github.com/en/rest/using-the-rest-api/rate-limits-for-the-rest-api
"""

from __future__ import annotations

from collections import Counter
from datetime import datetime

_HOUR = 3600


class RateLimit:
    """Counts requests by caller in windows of one hour.

    Args:
        limit: requests an hour; may be changed at any time.
        refusal: status of a refused request; GitHub uses 403 and 429.
    """

    def __init__(self, limit: int = 5000, refusal: int = 403):
        self.limit = limit
        self.refusal = refusal
        self._used: Counter[str] = Counter()
        self._window = 0

    def exhausted(self, caller: str, now: datetime) -> bool:
        """Whether the caller has none left."""
        self._turn(now)
        return self._used[caller] >= self.limit

    def count(self, caller: str, now: datetime) -> None:
        """Take one off."""
        self._turn(now)
        self._used[caller] += 1

    def resource(self, caller: str, now: datetime) -> dict[str, int]:
        """The numbers as ``GET /rate_limit`` tells them."""
        self._turn(now)
        used = self._used[caller]
        return {
            "limit": self.limit,
            "used": used,
            "remaining": max(0, self.limit - used),
            "reset": (self._window + 1) * _HOUR,
        }

    def headers(self, caller: str, now: datetime) -> dict[str, str]:
        """The numbers as every answer's headers tell them."""
        resource = self.resource(caller, now)
        name = "graphql" if caller.startswith("graphql ") else "core"
        return {f"X-RateLimit-{key.title()}": str(value) for key, value in resource.items()} | {
            "X-RateLimit-Resource": name
        }

    def _turn(self, now: datetime) -> None:
        window = int(now.timestamp()) // _HOUR
        if window != self._window:
            self._window = window
            self._used.clear()
