"""The exceptions of the product. Each says what happened and what to do next."""

from __future__ import annotations

from bot.model import FailureKind, Phase


class ConductorError(Exception):
    """Something the user or the operator can act on.

    ``message`` says what happened, ``hint`` names the next step; both are shown as they are.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


class ConfigurationError(ConductorError):
    """A setting is missing, unknown or has an impossible value."""


class InfrastructureError(ConductorError):
    """A part that we depend on (engine, Redis, database, GitHub, disk) did not do its work."""


class GitHubUnavailable(InfrastructureError):
    """GitHub could not be reached or kept failing after all retries."""


class StaleAttempt(ConductorError):
    """A newer attempt owns the job: this one must not publish or report anything (fencing)."""


class JobFailed(ConductorError):
    """The job ends here as failed: in ``phase``, for reason ``kind``, with a sentence for the user."""

    def __init__(self, phase: Phase, kind: FailureKind, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.phase = phase
        self.kind = kind
