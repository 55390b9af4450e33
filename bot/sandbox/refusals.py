"""How GitHub says no."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

DOCUMENTATION = "https://docs.github.com/rest"


class Refusal(Exception):
    """An answer that is an error.

    Args:
        status: HTTP status.
        message: the sentence for ``message``.
        errors: for ``errors``, objects or sentences; None to leave it out.
        headers: more headers.
        more: more of the body.
    """

    def __init__(
        self,
        status: int,
        message: str,
        errors: Sequence[Mapping[str, Any] | str] | None = None,
        headers: Mapping[str, str] | None = None,
        more: Mapping[str, Any] | None = None,
    ):
        super().__init__(message)
        self.status = status
        self.message = message
        self.errors = errors
        self.headers = dict(headers or {})
        self.more = dict(more or {})

    def body(self) -> dict[str, Any]:
        """The answer's JSON."""
        body: dict[str, Any] = {
            "message": self.message,
            "documentation_url": DOCUMENTATION,
            "status": str(self.status),
            **self.more,
        }
        if self.errors is not None:
            body["errors"] = list(self.errors)
        return body


def not_found() -> Refusal:
    """What does not exist, and what the caller may not see."""
    return Refusal(404, "Not Found")


def bad_credentials() -> Refusal:
    """A token that is unknown, expired or revoked."""
    return Refusal(401, "Bad credentials")


def invalid(resource: str, field: str, code: str = "invalid", message: str | None = None) -> Refusal:
    """422 with one error; codes as in https://docs.github.com/en/rest/using-the-rest-api/troubleshooting-the-rest-api."""
    error = {"resource": resource, "field": field, "code": code}
    if message is not None:
        error["message"] = message
    return Refusal(422, "Validation Failed", [error])


def custom(resource: str, message: str) -> Refusal:
    """422 with one error that is a sentence."""
    return Refusal(422, "Validation Failed", [{"resource": resource, "code": "custom", "message": message}])
