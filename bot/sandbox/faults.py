"""Faults on demand: the sandbox behaves as GitHub does on a bad day."""

from __future__ import annotations

import re
from dataclasses import dataclass, field


@dataclass
class Fault:
    """What shall go wrong, and for which requests.

    Attributes:
        method: regular expression for the whole HTTP method.
        path: regular expression that must occur in the path (REST and git alike).
        status: answered instead of the real answer; None to let the request through after ``delay``.
        message: of the answer's JSON body.
        headers: of the answer, such as ``{"Retry-After": "3"}``.
        delay: seconds to wait first.
        drop: ``before`` cuts the connection and does nothing; ``after`` does the work and then cuts the
            connection, so that the client cannot know.
        times: how often; None for ever.
    """

    method: str = ".*"
    path: str = ""
    status: int | None = None
    message: str = "The sandbox was told to fail."
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    drop: str | None = None
    times: int | None = 1

    def __post_init__(self) -> None:
        if self.drop not in (None, "before", "after"):
            raise ValueError(f"drop is 'before' or 'after', not {self.drop!r}")
        for pattern in (self.method, self.path):
            re.compile(pattern)  # says now what is wrong with it

    def meets(self, method: str, path: str) -> bool:
        """Whether this request is meant."""
        return re.fullmatch(self.method, method) is not None and re.search(self.path, path) is not None


class Faults:
    """The faults that are still to come, in order."""

    def __init__(self) -> None:
        self.waiting: list[Fault] = []

    def add(self, fault: Fault) -> None:
        """Plan a fault."""
        self.waiting.append(fault)

    def clear(self) -> None:
        """Forget all planned faults."""
        self.waiting.clear()

    def take(self, method: str, path: str) -> Fault | None:
        """The first fault for this request; a used-up one is forgotten."""
        for fault in self.waiting:
            if fault.meets(method, path):
                if fault.times is not None:
                    fault.times -= 1
                    if fault.times <= 0:
                        self.waiting.remove(fault)
                return fault
        return None


def secondary_limit(path: str = "", *, retry_after: int | None = 60, status: int = 403) -> Fault:
    """GitHub's secondary rate limit.

    https://docs.github.com/en/rest/using-the-rest-api/rate-limits-for-the-rest-api#about-secondary-rate-limits
    """
    return Fault(
        path=path,
        status=status,
        message="You have exceeded a secondary rate limit. Please wait a few minutes before you try again.",
        headers={} if retry_after is None else {"Retry-After": str(retry_after)},
    )
