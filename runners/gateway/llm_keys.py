"""Keys that take turns when a provider refuses one, and what a refusal means."""

from __future__ import annotations

import enum
import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus

REST = 300.0  # seconds that a refused key rests when the provider does not say how long
LIMITED_REST = 15.0  # the same after a mere rate limit
LONGEST_REST = 3600.0  # whatever the provider says: an operator may have paid meanwhile


class Trouble(enum.Enum):
    """What a refusal means for the next try."""

    request = "request"  # the request itself is refused: nobody else would take it
    key = "key"  # this key is refused: wrong, or its money or quota is used up
    limited = "limited"  # too many requests: another key, or a little later
    provider = "provider"  # the provider has troubles of its own: a little later


@dataclass(frozen=True, kw_only=True)
class Key:
    """A key. ``free``: its calls cost no money, being a subscription's."""

    value: str
    free: bool = False

    def __repr__(self) -> str:
        return "Key(…)"


class KeyRing:
    """The keys of one provider, in order of preference. Which of them rest is known in this process only."""

    def __init__(self, keys: Iterable[Key], *, now: Callable[[], float] = time.monotonic) -> None:
        self._keys = tuple(keys)
        self._rested: dict[str, float] = {}  # key -> when it may be used again
        self._now = now

    def __iter__(self) -> Iterator[Key]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)

    def pick(self, refused: Collection[str] = ()) -> Key | None:
        """The first key that does not rest and is not in ``refused``.

        For a request's first try there is always one, if there are keys at all: when all rest, the one whose rest
        ends first, so that a repaired account is found out. None: no other key is worth a try.
        """
        now = self._now()
        awake = [
            key for key in self._keys if key.value not in refused and self._rested.get(key.value, now) <= now
        ]
        if awake:
            return awake[0]
        if refused or not self._keys:
            return None
        return min(self._keys, key=lambda key: self._rested.get(key.value, now))

    def rest(self, key: Key, seconds: float) -> None:
        """Leave ``key`` alone for a while."""
        self._rested[key.value] = self._now() + min(seconds, LONGEST_REST)


#: Refusals of a key that come with an unusual status: Anthropic without credit and Google with a wrong key say 400.
_KEY_WORDS = re.compile(
    rb"credit balance is too low|API[_ ]key (?:not valid|expired|invalid)|API_KEY_INVALID", re.I
)
#: What tells an account without money from one that is merely too fast: both are 429 at OpenAI.
_QUOTA_WORDS = re.compile(
    rb"insufficient_quota|exceeded your current quota|billing|usage.limit|credit|quota.{0,20}exceeded"
    rb"|exceeded.{0,20}quota",
    re.I,
)
_TEMPORARY = frozenset({408, 409, 425, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529})


def trouble(status: int, body: bytes) -> Trouble:
    """What the refusal ``status`` with ``body`` means."""
    body = body[:8192]
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.PAYMENT_REQUIRED, HTTPStatus.FORBIDDEN):
        return Trouble.key
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return Trouble.key if _QUOTA_WORDS.search(body) else Trouble.limited
    if status == HTTPStatus.BAD_REQUEST and _KEY_WORDS.search(body):
        return Trouble.key
    return Trouble.provider if status in _TEMPORARY else Trouble.request


def rest_of(found: Trouble, retry_after: float | None) -> float:
    """For how many seconds a refused key rests."""
    if retry_after is not None:
        return retry_after
    return LIMITED_REST if found is Trouble.limited else REST


#: Google's way: https://github.com/googleapis/googleapis/blob/master/google/rpc/error_details.proto (RetryInfo)
_RETRY_DELAY = re.compile(rb'"retryDelay"\s*:\s*"(\d{1,6}(?:\.\d{1,9})?)s"')


def retry_after(headers: Mapping[str, str], body: bytes) -> float | None:
    """For how many seconds the provider wants to be left alone; None when it does not say."""
    told = headers.get("retry-after-ms", "")
    if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", told):
        return float(told) / 1000
    told = headers.get("Retry-After", "").strip()
    if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", told):
        return float(told)
    if told:
        try:
            at = parsedate_to_datetime(told)
        except ValueError:
            pass
        else:
            at = at if at.tzinfo else at.replace(tzinfo=UTC)
            return max(0.0, (at - datetime.now(UTC)).total_seconds())
    match = _RETRY_DELAY.search(body[:8192])
    return float(match[1]) if match else None
