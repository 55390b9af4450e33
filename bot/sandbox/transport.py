"""An httpx transport that holds a client's traffic with GitHub against GitHub's own description."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import urlsplit

import httpx

from bot.sandbox.description import JSON, GitHubDescription, Problem, problems_text
from bot.sandbox.graphql_api import check_query

#: On github.com and on GitHub Enterprise Server.
_GRAPHQL = frozenset({("POST", "/graphql"), ("POST", "/api/graphql")})


class ContractError(AssertionError):
    """A request or an answer does not match GitHub's official API description.

    Fix the request; if the description itself has moved on, make a new extract with ``python -m
    bot.sandbox.extract``.
    """


class ValidatingTransport(httpx.AsyncBaseTransport):
    """Checks every request before and every answer after the wrapped transport.

    Args:
        inner: the transport that does the work.
        description: GitHub's description.
        prefix: path that precedes the API's own paths, such as ``/api/v3`` on GitHub Enterprise Server.
        on_problem: called with one text for each faulty request or answer, instead of raising
        ``ContractError``.
    """

    def __init__(
        self,
        inner: httpx.AsyncBaseTransport,
        description: GitHubDescription,
        *,
        prefix: str = "",
        on_problem: Callable[[str], None] | None = None,
    ):
        self._inner = inner
        self._description = description
        self._prefix = prefix
        self._on_problem = on_problem

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Check, pass on, check.

        Raises:
            ContractError: traffic departs from the description and there is no ``on_problem``.
        """
        url = request.url.raw_path.decode("ascii").removeprefix(self._prefix)
        body = await request.aread()
        kind = request.headers.get("content-type", JSON if not body else "")
        if (request.method, urlsplit(url).path) in _GRAPHQL:
            self._report(request, check_query(body))
            return await self._inner.handle_async_request(request)
        _, problems = self._description.check_request(request.method, url, body, kind)
        self._report(request, problems)
        response = await self._inner.handle_async_request(request)
        answer = await response.aread()
        _, problems = self._description.check_response(
            request.method, url, response.status_code, answer, response.headers.get("content-type")
        )
        self._report(request, problems)
        return response

    def _report(self, request: httpx.Request, problems: list[Problem]) -> None:
        if not problems:
            return
        text = f"{request.method} {request.url}\n{problems_text(problems)}"
        if self._on_problem is None:
            raise ContractError(text)
        self._on_problem(text)

    async def aclose(self) -> None:
        """Close the wrapped transport."""
        await self._inner.aclose()
