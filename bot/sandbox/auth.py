"""Who is calling: the App by its JSON web token, an installation by its token, or a person by theirs."""

from __future__ import annotations

import base64
import binascii
import secrets
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import jwt
from cryptography.hazmat.primitives import serialization

from bot.sandbox.github import GitHub
from bot.sandbox.permissions import ROLES
from bot.sandbox.refusals import Refusal, bad_credentials
from bot.sandbox.state import InstallationToken, Repository

MAX_JWT_LIFE = 600
"""Seconds that an App's JSON web token may live, by GitHub's rule."""

_CLOCK_SKEW = 5
_USER_TOKEN_SUFFIX = "-token"  # noqa: S105 - the tokens of made-up people on this machine


@dataclass(frozen=True)
class Actor:
    """An authenticated caller; ``login`` is the account in whose name things happen."""

    kind: Literal["app", "installation", "user"]
    login: str
    token: InstallationToken | None = None
    token_text: str = ""

    @property
    def rate_key(self) -> str:
        """Whose rate limit is used up: the installation's, not the single token's."""
        if self.token is None:
            return f"{self.kind} {self.login}"
        return f"installation {self.token.app or self.token.installation_id}"


def user_token(login: str) -> str:
    """The token with which a made-up person calls the sandbox."""
    return login + _USER_TOKEN_SUFFIX


def new_installation_token(app_id: int) -> str:
    """A token in GitHub's form since April 2026: ``ghs_APPID_JWT``, about 520 characters, two dots."""
    head, claims, signature = (secrets.token_urlsafe(size) for size in (27, 200, 150))
    return f"ghs_{app_id}_{head}.{claims}.{signature}"


def authenticate(github: GitHub, authorization: str) -> Actor:
    """Find out who sends this ``Authorization`` header.

    Args:
        github: where accounts and tokens are known.
        authorization: ``Bearer X``, ``token X`` or Basic with the token as its password.

    Raises:
        Refusal: 401, in GitHub's words.
    """
    scheme, _, credential = authorization.strip().partition(" ")
    credential = credential.strip()
    if scheme.lower() == "basic":
        try:
            credential = base64.b64decode(credential, validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            raise bad_credentials() from None
    if not credential:
        raise Refusal(401, "Requires authentication")
    token = github.world.tokens.get(credential)
    if token is not None:
        if token.expires_at <= github.now():
            raise bad_credentials()
        if token.app is not None:
            return Actor("installation", github.world.other_apps[token.app].bot_login, token, credential)
        if token.installation_id not in github.world.installations:
            raise bad_credentials()
        return Actor("installation", github.world.app.bot_login, token, credential)
    if credential.endswith(_USER_TOKEN_SUFFIX):
        user = github.world.users.get(credential.removesuffix(_USER_TOKEN_SUFFIX))
        if user is None or user.type != "User":
            raise bad_credentials()
        if user.suspended_at is not None:
            raise Refusal(403, "Sorry. Your account was suspended.")
        return Actor("user", user.login)
    if credential.count(".") == 2 and not credential.startswith("ghs_"):
        return _app(github, credential)
    raise bad_credentials()


def can_see(github: GitHub, actor: Actor, repository: Repository) -> bool:
    """Whether the repository exists as far as this caller can tell."""
    if actor.kind == "user":
        return ROLES[github.world.role(repository, actor.login)] > 0
    if actor.token is None:
        return github.world.installation_for(repository) is not None
    if actor.token.app is not None:
        return True  # other people's Apps are installed everywhere
    covering = github.world.installation_for(repository)
    narrowed_away = actor.token.repository_ids is not None and repository.id not in actor.token.repository_ids
    return covering is not None and covering.id == actor.token.installation_id and not narrowed_away


def _app(github: GitHub, credential: str) -> Actor:
    undecodable = Refusal(401, "A JSON web token could not be decoded")
    app = github.world.app
    try:
        # the times are checked below, by the sandbox's own clock
        claims = jwt.decode(
            credential,
            _public_key(app.private_key),
            algorithms=["RS256"],
            options={"verify_exp": False, "verify_iat": False, "verify_nbf": False},
        )
    except jwt.PyJWTError:
        raise undecodable from None
    now = github.now().timestamp()
    expires, issued = claims.get("exp"), claims.get("iat")
    if not isinstance(expires, int | float) or expires <= now:
        raise Refusal(
            401,
            "'Expiration time' claim ('exp') must be a numeric value representing the future time at which the "
            "assertion expires",
        )
    if expires > now + MAX_JWT_LIFE + _CLOCK_SKEW:
        raise Refusal(401, "'Expiration time' claim ('exp') is too far in the future")
    if not isinstance(issued, int | float) or issued > now + _CLOCK_SKEW:
        raise Refusal(
            401,
            "'Issued at' claim ('iat') must be an Integer representing the time that the assertion was issued",
        )
    if str(claims.get("iss")) not in (str(app.id), app.client_id):
        raise Refusal(401, "'Issuer' claim ('iss') must be an Integer")
    return Actor("app", app.bot_login)


@lru_cache(maxsize=4)
def _public_key(private_key: str) -> bytes:
    key = serialization.load_pem_private_key(private_key.encode(), password=None)
    return key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
