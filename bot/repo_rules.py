"""The parts of a repository's configuration that say who decides: approvals, who may do what, fixing. Pure."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, model_validator

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def seconds(value: object) -> object:
    """``90s``, ``30m``, ``2h`` or ``3d`` in seconds; anything else as it is, for pydantic to judge."""
    match = re.fullmatch(r"(\d{1,6})([smhd])", value) if isinstance(value, str) else None
    return int(match[1]) * _SECONDS[match[2]] if match else value


Duration = Annotated[int, BeforeValidator(seconds)]
#: Logins of GitHub, with the underscore of managed users (`maria_acme`).
#: https://docs.github.com/en/enterprise-cloud@latest/admin/managing-iam/iam-configuration-reference/username-considerations-for-external-authentication
Login = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9](?:[A-Za-z0-9_-]{0,98}[A-Za-z0-9])?$")]
#: A team's slug, of the repository's owner or with the organisation in front: `core` or `acme/core`.
Team = Annotated[
    str,
    StringConstraints(pattern=r"^(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,38})/)?[A-Za-z0-9_][A-Za-z0-9._-]{0,98}$"),
]
#: Of a profile: a file's name without `.md`, and never a path.
_PROFILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")
ProfileName = Annotated[str, StringConstraints(pattern=rf"^{_PROFILE_NAME.pattern}$")]
LabelName = Annotated[str, StringConstraints(min_length=1, max_length=50)]
PathPattern = Annotated[str, StringConstraints(min_length=1, max_length=2000, pattern=r"^[^\x00]*$")]
Permission = Literal["write", "maintain", "admin"]


class Section(BaseModel):
    """What every part of the file has in common: a key that is not known is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class People(Section):
    """Some people: whoever is named, in one of the teams, or a code owner."""

    users: tuple[Login, ...] = Field((), max_length=100, description="logins")
    teams: tuple[Team, ...] = Field(
        (), max_length=30, description="teams of the owner (`core`), or with their organisation (`acme/core`)"
    )
    codeowners: bool = Field(False, description="those that CODEOWNERS names for what is changed")

    @property
    def anybody(self) -> bool:
        """Whether nobody in particular is named."""
        return not (self.users or self.teams or self.codeowners)


class Entitled(People):
    """Who may do something: those with the permission, and of them only the ones that are named, if any are."""

    permission: Permission = Field("write", description="at least write, maintain or admin")


class PlanRule(Section):
    """When a plan must be approved before the work starts: `never`, `always`, or for these labels and paths."""

    always: bool = False
    labels: tuple[LabelName, ...] = Field((), max_length=50, description="of the issue or pull request")
    paths: tuple[PathPattern, ...] = Field(
        (), max_length=200, description="as in `protected`; of pull requests that change them"
    )

    @model_validator(mode="before")
    @classmethod
    def _word(cls, value: Any) -> Any:
        if isinstance(value, str):
            if value not in ("never", "always"):
                raise ValueError("must be never, always, or a mapping with labels and paths")
            return {"always": value == "always"}
        return value


class FinalRule(People):
    """Who must approve a pull request of the bot before its check run `agent/approval` is green."""

    required: int = Field(0, ge=0, le=6, description="approving reviews; 0: there is no such check run")


class ApprovalsConfig(Section):
    """What people decide, and how long they have."""

    plan: PlanRule = Field(PlanRule(), description="never, always, or {labels: […], paths: […]}")
    final: FinalRule = FinalRule()
    request: People = Field(People(), description="who is asked for a review")
    expires: Duration = Field(3 * 86400, ge=600, le=90 * 86400, description="an undecided question ends: 3d")
    remind: Duration = Field(86400, ge=0, le=90 * 86400, description="one reminder after: 1d; 0: none")
    merge: Literal["none", "auto", "queue"] = Field(
        "none", description="after the final approval: nothing, GitHub's auto-merge, or the merge queue"
    )


class WhoConfig(Section):
    """Who may do what. Write permission is always needed; nobody is entitled by this file alone."""

    may_ask: Entitled = Field(Entitled(), description="start jobs")
    may_approve: Entitled = Field(Entitled(), description="decide by a review")
    may_spend: Entitled = Field(Entitled(), description="let a job cost more than its budget")


class FixConfig(Section):
    """What becomes of failed checks on the bot's own pull requests."""

    automatic: bool = Field(False, description="start without being asked")
    attempts: int = Field(3, ge=1, le=10, description="in a row, until a person has a look")
    settle: Duration = Field(120, ge=10, le=3600, description="how long after the last check: 2m")


class ProfilesConfig(Section):
    """The profile that a job of each kind has when nobody names one: one name for all, or one for each kind."""

    task: ProfileName | None = None
    plan: ProfileName | None = None
    review: ProfileName | None = None
    fix: ProfileName | None = None
    ask: ProfileName | None = None

    @model_validator(mode="before")
    @classmethod
    def _word(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        if not is_profile_name(value):
            raise ValueError("must be the name of a profile, or a mapping of kinds of jobs to names")
        return dict.fromkeys(cls.model_fields, value)

    def usual(self, kind: str) -> str | None:
        """The one for a job of ``kind``; None when there is none."""
        found: str | None = getattr(self, kind, None)
        return found


def is_profile_name(text: str) -> bool:
    """Whether a profile may have this name."""
    return _PROFILE_NAME.fullmatch(text) is not None
