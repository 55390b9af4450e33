"""GitHub's REST API for one App: authentication, limits, retries and paging are taken care of here.

``GitHub`` hands out :class:`GitHubClient` objects, which are gidgethub's ``GitHubAPI`` on httpx: one that speaks
as the App (a JWT, for ``/app/…``) and one for each installation. What they raise is in ``bot.github_errors``.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import re
import time
import urllib.request
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from importlib import metadata
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, quote, urlencode, urljoin, urlsplit

import gidgethub.abc
import httpx
from cachetools import LRUCache
from gidgethub import sansio

from bot.config import Settings
from bot.errors import GitHubUnavailable
from bot.github_auth import (
    AppAuth,
    BearerAuth,
    InstallationAuth,
    InstallationToken,
    Scope,
    ServerClock,
    TokenCache,
)
from bot.github_cache import ETagCache, ETagTransport
from bot.github_errors import (
    GitHubError,
    NotFound,
    Redirected,
    Unauthorized,
    Unprocessable,
    error_for,
    graphql_error,
)
from bot.github_limits import Gate
from bot.github_transport import APIBase, Patience, RetryTransport
from bot.model import Repo
from bot.permissions import READ, within

#: https://docs.github.com/en/rest/about-the-rest-api/api-versions
API_VERSION = "2022-11-28"
ACCEPT = "application/vnd.github+json"
PAGE_SIZE = 100  # the most that GitHub gives
CLIENTS = 1024  # kept: one for each repository and what is done there

_PLACEHOLDER = re.compile(r"\{(\+?)(\w+)\}")


@dataclass(frozen=True, kw_only=True)
class AppIdentity:
    """Who the App is, as an App and as the bot account that comments and commits."""

    id: int
    slug: str
    name: str
    login: str  # "<slug>[bot]"
    user_id: int  # of the bot account
    email: str  # for commits: GitHub links them to the bot account


def path(template: str, query: Mapping[str, str | int] | None = None, **values: str | int) -> str:
    """Fill ``{name}`` (one segment) and ``{+name}`` (several, for refs and file paths), everything quoted.

    ``path("/repos/{owner}/{repo}/git/ref/{+ref}", owner=…, repo=…, ref="heads/fix #1")``. Raises ValueError for
    a value that would name another endpoint (empty, ``.`` or ``..``) and for names that do not match.
    """
    names = {match[2] for match in _PLACEHOLDER.finditer(template)}
    if names != set(values):
        raise ValueError(f"{template} takes {sorted(names)}, given were {sorted(values)}")

    def fill(match: re.Match[str]) -> str:
        many, name = match.groups()
        value = str(values[name])
        if {"", ".", ".."} & set(value.split("/") if many else [value]):
            raise ValueError(f"{name}={value!r} cannot be a part of {template}")
        return quote(value, safe="/" if many else "")

    filled = _PLACEHOLDER.sub(fill, template)
    return f"{filled}?{urlencode(query)}" if query else filled


class GitHubClient(gidgethub.abc.GitHubAPI):
    """gidgethub's API bound to one identity. Use :meth:`path` to build addresses from values.

    All calls raise what ``bot.github_errors`` lists; an address outside the API is never called. Do not
    hand in ``jwt`` or ``oauth_token``: the client knows who it is.
    """

    path = staticmethod(path)

    def __init__(
        self,
        client: httpx.AsyncClient,
        base: APIBase,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        super().__init__(_user_agent(), base_url=base.url)
        self._client = client
        self._base = base
        self._sleep = sleep

    async def _request(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes = b""
    ) -> tuple[int, Mapping[str, str], bytes]:
        self._base.check(url)
        sent = dict(headers)
        if sent.get("accept") == sansio.accept_format():
            sent["accept"] = ACCEPT
        response = await self._client.request(method, url, headers=sent, content=body)
        if response.status_code >= 300:
            raise error_for(
                response.status_code,
                response.headers,
                response.content,
                method=method,
                path=urlsplit(url).path,
            )
        if sent.get("accept") == ACCEPT and response.content:
            self._require_json(response, method, url)
        return response.status_code, response.headers, response.content

    def _require_json(self, response: httpx.Response, method: str, url: str) -> None:
        kind = response.headers.get("content-type", "")
        if kind.partition(";")[0].strip() != "application/json":
            raise GitHubUnavailable(
                f"{method} {urlsplit(url).path} was answered with {kind or 'no content type'} instead of JSON.",
                "Check that CONDUCTOR_GITHUB_API_URL is the API's address (GitHub Enterprise Server: "
                "https://HOST/api/v3).",
            )

    async def _make_request(self, *args: Any, **kwargs: Any) -> tuple[bytes, str | None, int]:
        try:
            return await super()._make_request(*args, **kwargs)
        except ValueError as error:
            if not isinstance(error, (UnicodeDecodeError, json.JSONDecodeError)):
                raise
            raise GitHubUnavailable(
                f"GitHub's answer to {args[0]} {urlsplit(args[1]).path} is broken JSON.", "Try again."
            ) from error

    async def getstatus(self, *args: Any, **kwargs: Any) -> int:
        """The status of a GET, where the status is the answer (for example 204 or 404)."""
        try:
            return await super().getstatus(*args, **kwargs)
        except GitHubError as error:
            return error.status

    async def graphql(self, query: str, **variables: Any) -> Any:
        """Run a GraphQL query or mutation and return its ``data``.

        Review threads and drafts cannot be changed in another way. Raises what ``bot.github_errors.graphql_error``
        makes of the answer's errors: NotFound, Forbidden (the mutations on pull requests need ``contents: write``
        besides ``pull_requests: write``), Unprocessable, RateLimited; OutcomeUnknown when no answer came.
        """
        url = self._base.graphql_url
        status, headers, body = await self._request(
            "POST",
            url,
            {
                "accept": ACCEPT,
                "content-type": "application/json",
                "user-agent": self.requester,
            },
            json.dumps({"query": query, "variables": variables}).encode(),
        )
        try:
            answer = json.loads(body)
            errors, data = answer.get("errors"), answer.get("data")
        except (ValueError, AttributeError) as error:
            raise GitHubUnavailable(
                f"GitHub's answer to POST {urlsplit(url).path} (status {status}) is broken JSON.",
                "Try again.",
            ) from error
        if errors:
            raise graphql_error(errors, headers, path=urlsplit(url).path, now=time.time())
        return data

    async def getlocation(self, url: str) -> str:
        """Where GitHub sends a GET for a download: an address outside the API that is good for a minute.

        It is not called here, and our token is not for it. Raises what other calls raise, and GitHubUnavailable when
        GitHub does not send anywhere. https://docs.github.com/en/rest/actions/workflow-jobs
        """
        url = sansio.format_url(url, {}, base_url=self._base.url)
        try:
            await self._request("GET", url, {"accept": "*/*", "user-agent": self.requester})
        except Redirected as answer:
            if target := answer.headers.get("location"):
                return urljoin(url, target)
            raise
        raise GitHubUnavailable(f"GitHub names no address for {urlsplit(url).path}.", "Try again.")

    async def sleep(self, seconds: float) -> None:
        """Part of gidgethub's interface."""
        await self._sleep(seconds)

    async def getiter(
        self,
        url: str,
        url_vars: Mapping[str, Any] | None = None,
        *,
        accept: str = ACCEPT,
        jwt: str | None = None,
        oauth_token: str | None = None,
        extra_headers: dict[str, str] | None = None,
        iterable_key: str | None = None,
    ) -> AsyncGenerator[Any, None]:
        """Every item of a list, page after page, 100 a page unless ``url`` says otherwise.

        Where GitHub wraps the list in an object (``check_runs``, ``repositories``, ``items`` …) it is found by
        itself; ``iterable_key`` is needed only if the object holds several. A ValueError when there is none.
        """
        next_url: str | None = _with_page_size(url)
        while next_url:
            data: Any
            data, next_url, _ = await self._make_request(
                "GET",
                next_url,
                url_vars,
                b"",
                accept,
                jwt=jwt,
                oauth_token=oauth_token,
                extra_headers=extra_headers,
            )
            url_vars = None  # the next link is complete
            for item in _items(data, iterable_key, url):
                yield item


class GitHub:
    """One GitHub App on one GitHub. Use it as an asynchronous context manager.

    ``api_url`` is ``https://api.github.com`` or ``https://HOST/api/v3``. ``transport`` is what reaches the network
    (default: a connection pool that honours the proxy variables, except for loopback addresses); it is closed
    with this object. ``on_token`` is called with the value of each new token, so that it can be redacted; ``on_mint``
    with what the token is for, before anybody has it: when it raises, the token is not used.
    ``in_flight`` and ``write_spacing`` (seconds) hold for each installation; GitHub allows 100 requests at once and
    advises one second between writes. ``clock`` is the wall clock, ``monotonic`` counts waits.
    """

    def __init__(
        self,
        api_url: str,
        app_id: str,
        private_key_pem: str,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
        patience: Patience | None = None,
        in_flight: int = 20,
        write_spacing: float = 0.1,
        cache_bytes: int = 32 * 2**20,
        on_token: Callable[[str], None] | None = None,
        on_mint: Callable[[Scope, InstallationToken], Awaitable[None]] | None = None,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._base = APIBase(api_url)
        self._patience = patience or Patience()
        self._in_flight = in_flight
        self._write_spacing = write_spacing
        self._on_token = on_token
        self._on_mint = on_mint
        self._clock = clock
        self._monotonic = monotonic
        self._sleep = sleep
        self._server_clock = ServerClock(clock)
        self._app_auth = AppAuth(app_id, private_key_pem, self._server_clock)
        self._tokens = TokenCache(self._mint, self._server_clock)
        self._etags = ETagCache(cache_bytes)
        self._pool = transport or _pool(self._base.url, in_flight=in_flight)
        self._clients: LRUCache[Scope, GitHubClient] = LRUCache(CLIENTS)
        self._transports: dict[
            int, httpx.AsyncBaseTransport
        ] = {}  # by installation: so GitHub's limits count
        # All POSTs of the App itself may be repeated: a token too many, or a delivery twice under its own id, is
        # harmless.
        self._as_app = self._retrying(repeat_posts=True)
        self._app_client = self._client(
            ETagTransport(self._as_app, self._etags, installation=None), self._app_auth
        )
        self._identity: AppIdentity | None = None
        self._identity_lock = asyncio.Lock()

    @classmethod
    def from_settings(cls, settings: Settings, **options: Any) -> Self:
        """The App that ``settings`` describe. Raises ConfigurationError when something is missing."""
        settings.require("github_app_id", "github_private_key")
        return cls(settings.github_api_url, settings.github_app_id, settings.private_key_pem, **options)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._pool.aclose()

    @property
    def app_client(self) -> GitHubClient:
        """The client that speaks as the App itself: ``/app/…`` only."""
        return self._app_client

    def installation(self, installation_id: int) -> GitHubClient:
        """The client of an installation, with all the rights that it has. For tools and tests: see the two below."""
        return self._scoped(Scope(installation_id))

    def reader(self, installation_id: int) -> GitHubClient:
        """A client that may look into every repository of an installation, and change nothing."""
        return self._scoped(Scope.narrowed(installation_id, None, READ, as_granted=True))

    def repository(self, repo: Repo, permissions: Mapping[str, str]) -> GitHubClient:
        """A client for one repository with only these permissions, as far as the installation has granted them.

        Its calls raise NotFound, too, when the repository is not in the installation any more.
        """
        scope = Scope.narrowed(repo.installation_id, repo.id, permissions, as_granted=True)
        return self._scoped(scope)

    def _scoped(self, scope: Scope) -> GitHubClient:
        client = self._clients.get(scope)
        if client is None:
            transport = self._transports.get(scope.installation)
            if transport is None:
                transport = ETagTransport(self._retrying(), self._etags, installation=scope.installation)
                self._transports[scope.installation] = transport
            client = self._client(transport, InstallationAuth(self._tokens, scope))
            self._clients[scope] = client
        return client

    async def token(
        self,
        installation_id: int,
        *,
        repository_id: int,
        permissions: Mapping[str, str],
        fresh: bool = False,
    ) -> InstallationToken:
        """A token for one repository and only these permissions (and ``metadata: read``, which GitHub adds).

        Good for at least five minutes, usually for an hour. ``fresh`` makes one that nobody shares, so that it may
        be revoked. Raises ValueError when ``permissions`` is empty, Unprocessable when the installation has
        not granted them, NotFound when the App was uninstalled.
        https://docs.github.com/en/rest/apps/apps#create-an-installation-access-token-for-an-app
        """
        scope = Scope.narrowed(installation_id, repository_id, permissions)
        return await (self._mint(scope) if fresh else self._tokens.get(scope))

    async def revoke(self, token: InstallationToken) -> None:
        """End a token's life now; no error when it has ended already.

        https://docs.github.com/en/rest/apps/installations#revoke-an-installation-access-token
        """
        self._tokens.discard(token.value)
        try:
            await self._client(self._as_app, BearerAuth(token.value)).delete("/installation/token")
        except Unauthorized:
            return  # it has expired or was revoked before

    def forget(self, installation_id: int) -> None:
        """Drop what is cached for an installation that was removed or whose permissions changed."""
        self._tokens.forget(installation_id)
        self._etags.forget(installation_id)
        for scope in [scope for scope in self._clients if scope.installation == installation_id]:
            self._clients.pop(scope, None)
        self._transports.pop(installation_id, None)

    async def identity(self) -> AppIdentity:
        """Who we are; asked once."""
        async with self._identity_lock:
            if self._identity is None:
                self._identity = await self._ask_identity()
            return self._identity

    async def _ask_identity(self) -> AppIdentity:
        app = await self._app_client.getitem("/app")
        login = f"{app['slug']}[bot]"
        # a JWT is good for /app/… alone; without any installation, public data needs no authentication
        client = self._client(self._as_app, None)
        for installation in await self._app_client.getitem("/app/installations"):
            if not installation.get("suspended_at"):
                client = self.reader(installation["id"])
                break
        user = await client.getitem(path("/users/{login}", login=login))
        return AppIdentity(
            id=app["id"],
            slug=app["slug"],
            name=app["name"],
            login=login,
            user_id=user["id"],
            email=f"{user['id']}+{login}@{_noreply_host(self._base.url)}",
        )

    async def _mint(self, scope: Scope) -> InstallationToken:
        try:
            made = await self._ask_token(scope, dict(scope.permissions))
        except Unprocessable as error:
            if not scope.as_granted:
                raise
            found = await self._app_client.getitem(path("/app/installations/{id}", id=scope.installation))
            granted = within(dict(scope.permissions), found.get("permissions", {}))
            if not granted or granted == dict(scope.permissions):
                raise _not_there(error) from error
            try:
                made = await self._ask_token(scope, granted)
            except Unprocessable as again:
                raise _not_there(again) from again
        token = InstallationToken(
            value=made["token"],
            expires_at=datetime.fromisoformat(made["expires_at"]),
            permissions=made.get("permissions", {}),
        )
        if self._on_token is not None:
            self._on_token(token.value)
        if self._on_mint is not None:
            await self._on_mint(scope, token)
        return token

    async def _ask_token(self, scope: Scope, permissions: Mapping[str, str]) -> Any:
        """One more token: https://docs.github.com/en/rest/apps/apps#create-an-installation-access-token-for-an-app."""
        wanted: dict[str, Any] = {}
        if scope.repository is not None:
            wanted["repository_ids"] = [scope.repository]
        if permissions:
            wanted["permissions"] = dict(permissions)
        url = path("/app/installations/{id}/access_tokens", id=scope.installation)
        return await self._app_client.post(url, data=wanted)

    def _retrying(self, *, repeat_posts: bool = False) -> RetryTransport:
        gate = Gate(
            in_flight=self._in_flight,
            write_spacing=self._write_spacing,
            sleep=self._sleep,
            monotonic=self._monotonic,
        )
        return RetryTransport(
            self._pool,
            gate,
            self._base,
            self._patience,
            repeat_posts=repeat_posts,
            clock=self._server_clock.now,
            sleep=self._sleep,
        )

    def _client(self, transport: httpx.AsyncBaseTransport, auth: httpx.Auth | None) -> GitHubClient:
        # Not closed one by one: our transports own nothing, the pool below them is closed by aclose().
        client = httpx.AsyncClient(
            transport=transport,
            auth=auth,
            timeout=httpx.Timeout(self._patience.request_timeout, connect=self._patience.connect_timeout),
            headers={"X-GitHub-Api-Version": API_VERSION},
            trust_env=False,  # no credentials from a .netrc; the pool knows the proxy
        )
        return GitHubClient(client, self._base, sleep=self._sleep)


def _pool(api_url: str, *, in_flight: int) -> httpx.AsyncHTTPTransport:
    limits = httpx.Limits(max_connections=max(100, in_flight), max_keepalive_connections=20)
    return httpx.AsyncHTTPTransport(limits=limits, proxy=_proxy_for(api_url))


def _proxy_for(api_url: str) -> str | None:
    """The proxy that the environment (``https_proxy``, ``all_proxy``, ``no_proxy``) names for the API."""
    parts = urlsplit(api_url)
    host = parts.hostname or ""
    if _is_loopback(host) or urllib.request.proxy_bypass(host):
        return None
    proxies = urllib.request.getproxies()
    return proxies.get(parts.scheme) or proxies.get("all")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _not_there(error: Unprocessable) -> NotFound:
    """GitHub makes no token for a repository that the installation does not have (any more)."""
    return NotFound(
        status=404,
        reason=error.reason,
        method=error.method,
        path=error.path,
        headers=error.headers,
        errors=error.errors,
        hint="Add the repository to the App's installation, and accept the permissions that the App asks for.",
    )


def _noreply_host(api_url: str) -> str:
    """Where GitHub's no-reply addresses end: on GHES in its own host name.

    https://docs.github.com/en/account-and-profile/reference/email-addresses-reference
    """
    parts = urlsplit(api_url)
    own = parts.path.rstrip("/").endswith("/api/v3")
    return f"users.noreply.{parts.hostname if own else 'github.com'}"


def _with_page_size(url: str) -> str:
    parts = urlsplit(url)
    if "per_page" in parse_qs(parts.query):
        return url
    return f"{url}{'&' if parts.query else '?'}per_page={PAGE_SIZE}"


def _items(data: Any, key: str | None, url: str) -> list[Any]:
    """The list in one page of an answer."""
    if isinstance(data, list):
        return data
    if isinstance(data, dict):
        lists = [value for name, value in data.items() if isinstance(value, list) and key in (None, name)]
        if len(lists) == 1:
            return lists[0]
    raise ValueError(f"the answer to GET {url} holds no list{f' {key!r}' if key else ' of its own'}")


def _user_agent() -> str:
    try:
        version = metadata.version("agent-conductor-app")
    except metadata.PackageNotFoundError:  # run from a checkout that was not installed
        version = "checkout"
    return f"agent-conductor/{version}"
