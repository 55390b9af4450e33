"""Where GraphQL is asked, and what its errors are called."""

from __future__ import annotations

import pytest

from bot.errors import ConductorError
from bot.github_errors import (
    Forbidden,
    ForeignAddress,
    GitHubError,
    NotFound,
    RateLimited,
    Unprocessable,
    graphql_error,
)
from bot.github_transport import APIBase


@pytest.mark.parametrize(
    ("api", "graphql"),
    [
        ("https://api.github.com", "https://api.github.com/graphql"),
        ("https://ghe.example.com/api/v3/", "https://ghe.example.com/api/graphql"),
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000/graphql"),
    ],
)
def test_the_endpoint(api: str, graphql: str) -> None:
    base = APIBase(api)
    assert base.graphql_url == graphql
    base.check(graphql)
    with pytest.raises(ForeignAddress):
        base.check(graphql.replace("://", "://elsewhere."))
    if "/api/v3" in api:
        with pytest.raises(ForeignAddress):
            base.check(f"{graphql}/more")


@pytest.mark.parametrize(
    ("errors", "kind", "status"),
    [
        ([{"type": "NOT_FOUND", "message": "m"}], NotFound, 404),
        ([{"type": "FORBIDDEN", "message": "m"}], Forbidden, 403),
        ([{"type": "UNPROCESSABLE", "message": "m"}], Unprocessable, 422),
        ([{"message": "Parse error"}], GitHubError, 200),
        (["text"], GitHubError, 200),
    ],
)
def test_errors(errors: list[object], kind: type[ConductorError], status: int) -> None:
    error = graphql_error(errors, {}, path="/graphql", now=0)
    assert type(error) is kind
    assert error.status == status


@pytest.mark.parametrize(("headers", "until"), [({"x-ratelimit-reset": "4000"}, 4000), ({}, 1060)])
def test_a_rate_limit_says_until_when(headers: dict[str, str], until: float) -> None:
    error = graphql_error([{"type": "RATE_LIMITED", "message": "m"}], headers, path="/graphql", now=1000)
    assert isinstance(error, RateLimited)
    assert error.until.timestamp() == until
