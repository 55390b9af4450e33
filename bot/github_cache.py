"""Conditional requests: an answer with an ETag is kept, and a 304 is served from it.

A 304 does not count against the rate limit
(https://docs.github.com/en/rest/using-the-rest-api/best-practices-for-using-the-rest-api).
What is kept are bytes, so no caller can change what the next one reads; the key holds the installation, so no
tenant can read another's.
"""

from __future__ import annotations

from dataclasses import dataclass

import httpx
from cachetools import LRUCache

#: Headers that describe the bytes on the wire and not the decoded body that we keep.
_WIRE_HEADERS = ("content-encoding", "content-length", "transfer-encoding")

_Key = tuple[int | None, str, str, str]


@dataclass(frozen=True)
class _Kept:
    etag: str
    headers: tuple[tuple[str, str], ...]
    body: bytes


class ETagCache:
    """Answers of all installations, the least recently used dropped first; bounded by bytes of bodies."""

    def __init__(self, max_bytes: int = 32 * 2**20) -> None:
        self._kept: LRUCache[_Key, _Kept] = LRUCache(max_bytes, getsizeof=lambda kept: len(kept.body) + 1024)

    def get(self, key: _Key) -> _Kept | None:
        """The answer kept under ``key``."""
        return self._kept.get(key)

    def put(self, key: _Key, kept: _Kept) -> None:
        """Keep an answer, unless it alone is larger than the cache."""
        if self._kept.getsizeof(kept) <= self._kept.maxsize:
            self._kept[key] = kept

    def forget(self, installation: int | None) -> None:
        """Drop every answer of an installation."""
        for key in [key for key in self._kept if key[0] == installation]:
            del self._kept[key]


class ETagTransport(httpx.AsyncBaseTransport):
    """Adds ``If-None-Match`` to GETs that one installation made before and answers a 304 with the body."""

    def __init__(
        self, inner: httpx.AsyncBaseTransport, cache: ETagCache, *, installation: int | None
    ) -> None:
        self._inner = inner
        self._cache = cache
        self._installation = installation

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send ``request``, as a conditional one where an earlier answer is known."""
        if request.method != "GET" or "if-none-match" in request.headers:
            return await self._inner.handle_async_request(request)
        key = (self._installation, request.method, str(request.url), request.headers.get("accept", ""))
        kept = self._cache.get(key)
        if kept is not None:
            # a new request: the authentication flow may send the original once more
            headers = httpx.Headers(request.headers)
            headers["if-none-match"] = kept.etag
            request = httpx.Request(
                request.method, request.url, headers=headers, extensions=request.extensions
            )
        response = await self._inner.handle_async_request(request)
        if response.status_code == 304 and kept is not None:
            # RFC 9111 section 4.3.4: the new headers replace the kept ones (rate limits, Date)
            headers = httpx.Headers(kept.headers)
            headers.update(
                {name: value for name, value in response.headers.items() if name not in _WIRE_HEADERS}
            )
            return httpx.Response(200, headers=headers, content=kept.body, extensions=response.extensions)
        etag = response.headers.get("etag")
        if response.status_code == 200 and etag:
            body = await response.aread()
            headers = httpx.Headers(response.headers)
            for name in _WIRE_HEADERS:
                headers.pop(name, None)
            self._cache.put(key, _Kept(etag, tuple(headers.multi_items()), body))
        return response
