"""Authentication of a GitHub App: its JWT, and installation tokens that are made once and renewed in time.

https://docs.github.com/en/apps/creating-github-apps/authenticating-with-a-github-app
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from weakref import WeakValueDictionary

import httpx
import jwt
from cachetools import TLRUCache
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from bot.errors import ConfigurationError
from bot.github_limits import date_in

JWT_BACKDATED = 60  # seconds; GitHub's advice against clocks that run ahead of its own
JWT_LIFETIME = 9 * 60  # seconds ahead of our time; GitHub allows ten minutes
RENEW_EARLY = 300  # seconds before an installation token's end
SKEW_WORTH_CORRECTING = 5.0  # seconds


@dataclass(frozen=True)
class InstallationToken:
    """A token of an installation. ``value`` is opaque (GitHub makes it some 500 characters long)."""

    value: str = field(repr=False)
    expires_at: datetime
    permissions: Mapping[str, str]


class ServerClock:
    """Our clock, corrected to GitHub's after GitHub has refused a JWT for its times."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._offset = 0.0

    def now(self) -> float:
        """Seconds since the epoch, as GitHub counts them."""
        return self._clock() + self._offset

    def correct(self, date: float | None) -> bool:
        """Take over the server's ``Date``; whether that moved our clock by more than some seconds."""
        if date is None or abs(date - self.now()) < SKEW_WORTH_CORRECTING:
            return False
        self._offset = date - self._clock()
        return True


class AppAuth(httpx.Auth):
    """Signs requests as the App; after a 401 once more if our clock was wrong.

    Raises ConfigurationError when ``private_key_pem`` holds no RSA private key.
    """

    def __init__(self, app_id: str, private_key_pem: str, clock: ServerClock) -> None:
        self._app_id = str(app_id)
        self._key = _rsa_key(private_key_pem)
        self._clock = clock

    def token(self) -> str:
        """A fresh App JWT."""
        now = int(self._clock.now())
        claims = {"iat": now - JWT_BACKDATED, "exp": now + JWT_LIFETIME, "iss": self._app_id}
        return jwt.encode(claims, self._key, algorithm="RS256")

    async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:
        """Part of httpx's authentication protocol."""
        request.headers["authorization"] = f"Bearer {self.token()}"
        response = yield request
        if response.status_code == 401 and self._clock.correct(date_in(response.headers)):
            request.headers["authorization"] = f"Bearer {self.token()}"
            yield request


@dataclass(frozen=True)
class Scope:
    """What a token is for. No repository: all of them; no permissions: all that the installation has granted.

    ``as_granted``: without those of the permissions that the installation has not granted.
    """

    installation: int
    repository: int | None = None
    permissions: tuple[tuple[str, str], ...] = ()
    as_granted: bool = False

    @classmethod
    def narrowed(
        cls,
        installation: int,
        repository: int | None,
        permissions: Mapping[str, str],
        *,
        as_granted: bool = False,
    ) -> Scope:
        """One repository (None: all) and only these permissions.

        None at all is a ValueError: GitHub would understand it as everything that the installation has.
        """
        if not permissions:
            raise ValueError("a narrowed token needs at least one permission")
        return cls(installation, repository, tuple(sorted(permissions.items())), as_granted)


class TokenCache:
    """Installation tokens by scope: minted once however many ask at once, renewed five minutes early."""

    def __init__(
        self, mint: Callable[[Scope], Awaitable[InstallationToken]], clock: ServerClock, *, size: int = 4096
    ) -> None:
        self._mint = mint
        self._tokens: TLRUCache[Scope, InstallationToken] = TLRUCache(size, ttu=_renewal, timer=clock.now)
        self._locks: WeakValueDictionary[Scope, asyncio.Lock] = WeakValueDictionary()

    async def get(self, scope: Scope, *, instead_of: str | None = None) -> InstallationToken:
        """A token for ``scope`` that is good for some minutes at least, and is not ``instead_of``."""
        token = self._tokens.get(scope)
        if token is not None and token.value != instead_of:
            return token
        # the name keeps the lock alive: the dictionary forgets those that nobody holds
        lock = self._locks.setdefault(scope, asyncio.Lock())
        async with lock:
            token = self._tokens.get(scope)
            if token is None or token.value == instead_of:
                token = await self._mint(scope)
                self._tokens[scope] = token
            return token

    def discard(self, value: str) -> None:
        """Forget a token that was revoked."""
        self._forget(lambda scope: self._tokens[scope].value == value)

    def forget(self, installation: int) -> None:
        """Forget all tokens of an installation, for example because its permissions changed."""
        self._forget(lambda scope: scope.installation == installation)

    def _forget(self, which: Callable[[Scope], bool]) -> None:
        for scope in list(self._tokens):
            if scope in self._tokens and which(scope):
                self._tokens.pop(scope, None)


class InstallationAuth(httpx.Auth):
    """Adds an installation's token; after a 401 once more with a new one."""

    def __init__(self, tokens: TokenCache, scope: Scope) -> None:
        self._tokens = tokens
        self._scope = scope

    async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:
        """Part of httpx's authentication protocol."""
        token = await self._tokens.get(self._scope)
        request.headers["authorization"] = f"Bearer {token.value}"
        response = yield request
        if response.status_code == 401:
            token = await self._tokens.get(self._scope, instead_of=token.value)
            request.headers["authorization"] = f"Bearer {token.value}"
            yield request


class BearerAuth(httpx.Auth):
    """Adds one given token: it speaks about itself (its revocation)."""

    def __init__(self, token: str) -> None:
        self._token = token

    async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:
        """Part of httpx's authentication protocol."""
        request.headers["authorization"] = f"Bearer {self._token}"
        yield request


def _renewal(_scope: Scope, token: InstallationToken, now: float) -> float:
    """When a token minted ``now`` is renewed: early, but never before half its life is over."""
    end = token.expires_at.timestamp()
    return max(end - RENEW_EARLY, (now + end) / 2)


def _rsa_key(pem: str) -> RSAPrivateKey:
    hint = "Set CONDUCTOR_GITHUB_PRIVATE_KEY to the .pem file downloaded from the App's settings page."
    try:
        key = load_pem_private_key(pem.encode(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        # without its cause, whose text could quote the key; a TypeError means that it is encrypted
        raise ConfigurationError(
            "The GitHub App private key is no readable, unencrypted PEM key.", hint
        ) from None
    if not isinstance(key, RSAPrivateKey):
        raise ConfigurationError("The GitHub App private key is no RSA key.", hint)
    return key
