"""What GitHub's refusals and silences are called. Callers match by type; the table is in ``error_for``.

Two families: :class:`GitHubError` is an answer (GitHub understood and said no), ``GitHubUnavailable`` from
``bot.errors`` and its children here mean that no usable answer came, after all retries.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any

from bot.errors import ConductorError, GitHubUnavailable, InfrastructureError


class GitHubError(ConductorError):
    """GitHub answered a request with an error status.

    ``status`` is the HTTP status, ``reason`` GitHub's own message, ``errors`` its list of details (422),
    ``method`` and ``path`` name the request, ``headers`` are the answer's. Takes the place of gidgethub's exceptions,
    which scatter a status over several types.
    """

    default_hint = ""

    def __init__(
        self,
        *,
        status: int,
        reason: str,
        method: str,
        path: str,
        headers: Mapping[str, str] | None = None,
        errors: Sequence[Any] = (),
        hint: str = "",
    ) -> None:
        details = "; ".join(text for text in map(_detail, errors) if text)
        said = f"{reason} ({details})" if details else reason
        super().__init__(f"GitHub answered {status} to {method} {path}: {said}.", hint or self.default_hint)
        self.status = status
        self.headers = headers or {}
        self.reason = reason
        self.errors = tuple(errors)
        self.method = method
        self.path = path


class Unauthorized(GitHubError):
    """401: GitHub does not accept our credentials, also not freshly made ones."""

    default_hint = (
        "Check that CONDUCTOR_GITHUB_APP_ID and CONDUCTOR_GITHUB_PRIVATE_KEY belong to the same App "
        "and that this host's clock is right."
    )


class Forbidden(GitHubError):
    """403 for want of a permission (never a rate limit).

    ``accepted_permissions`` is GitHub's ``X-Accepted-GitHub-Permissions``: alternatives divided by ``;``, each
    a list divided by ``,``. https://docs.github.com/en/rest/using-the-rest-api/troubleshooting-the-rest-api
    """

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        self.accepted_permissions = self.headers.get("x-accepted-github-permissions", "")
        if self.hint:
            return
        if "suspended" in self.reason.lower():
            self.hint = "Unsuspend the App's installation in the organization's or user's settings."
        elif self.accepted_permissions:
            self.hint = (
                f"The App needs one of these permissions: {self.accepted_permissions}. Grant it on the App's "
                "settings page and accept it for the installation."
            )


class NotFound(GitHubError):
    """404 or 410: it is not there, is gone, or our installation may not see it (GitHub does not say which)."""


class Conflict(GitHubError):
    """409: the state of the thing does not allow it, for example a branch that moved."""


class Unprocessable(GitHubError):
    """422: GitHub understood the request and its values are wrong; ``errors`` says which."""


class Redirected(GitHubError):
    """3xx to an address that we do not follow (another host, or no address at all)."""


class OutcomeUnknown(GitHubUnavailable):
    """A write was sent and no answer came: it may have been done, so it was not repeated.

    The caller has to look before it tries again (find the comment by its marker, the branch by its name).
    """


class RateLimited(GitHubUnavailable):
    """A rate limit lasts longer than we are willing to wait. ``until`` is when GitHub will answer again."""

    def __init__(self, message: str, hint: str = "", *, until: datetime) -> None:
        super().__init__(message, hint)
        self.until = until


class ForeignAddress(InfrastructureError):
    """An address outside the configured API: it was not called, because our token would have gone along."""


_BY_STATUS: Mapping[int, type[GitHubError]] = {
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    410: NotFound,
    422: Unprocessable,
}


def error_for(
    status: int, headers: Mapping[str, str], body: bytes, *, method: str, path: str
) -> ConductorError:
    """The exception for an answer that is no success (3xx, 4xx, 5xx)."""
    reason, errors = read_error(body)
    reason = reason or _phrase(status)
    if status >= 500:
        return GitHubUnavailable(
            f"GitHub answered {status} to {method} {path}: {reason}.",
            "GitHub has trouble (see https://www.githubstatus.com); try again in some minutes.",
        )
    kind = Redirected if status < 400 else _BY_STATUS.get(status, GitHubError)
    return kind(status=status, reason=reason, errors=errors, method=method, path=path, headers=headers)


#: What GraphQL calls its errors, and the REST status that means the same.
_GRAPHQL_STATUS = {"NOT_FOUND": 404, "FORBIDDEN": 403, "UNPROCESSABLE": 422}


def graphql_error(
    errors: Sequence[Any], headers: Mapping[str, str], *, path: str, now: float
) -> ConductorError:
    """The exception for a GraphQL answer with ``errors``, which comes with status 200.

    The first error's type decides; its ``status`` is REST's for the same refusal. ``now`` in seconds since the epoch.
    https://docs.github.com/en/graphql/overview/rate-limits-and-query-limits-for-the-graphql-api
    """
    first = errors[0] if errors and isinstance(errors[0], dict) else {}
    reason = str(first.get("message") or "the query failed").rstrip(".")
    if first.get("type") == "RATE_LIMITED":
        reset = str(headers.get("x-ratelimit-reset") or "")
        until = float(reset) if reset.isdecimal() else now + 60
        return RateLimited(
            f"GitHub's GraphQL rate limit is used up: {reason}.",
            until=datetime.fromtimestamp(until, UTC),
        )
    status = _GRAPHQL_STATUS.get(str(first.get("type")), 200)
    kind = _BY_STATUS.get(status, GitHubError)
    return kind(status=status, reason=reason, errors=errors[1:], method="POST", path=path, headers=headers)


def read_error(body: bytes) -> tuple[str, Sequence[Any]]:
    """GitHub's ``message`` and ``errors`` from an error's body; empty when it is not GitHub's JSON."""
    try:
        data = json.loads(body)
    except ValueError:
        return "", ()
    if not isinstance(data, dict):
        return "", ()
    message, errors = data.get("message"), data.get("errors")
    if isinstance(errors, str):
        errors = [errors]
    return (
        message.rstrip(".") if isinstance(message, str) else "",
        errors if isinstance(errors, list) else (),
    )


def _detail(error: Any) -> str:
    """One entry of ``errors``, which is a text or ``{resource, field, code, message}``, in words."""
    if isinstance(error, str):
        return error
    if not isinstance(error, dict):
        return ""
    if error.get("message"):
        return str(error["message"])
    return " ".join(str(error[key]) for key in ("resource", "field", "code") if error.get(key))


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "unknown status"
