"""The terms of one attempt: what it may do through its gateway. Set by the host, never by the container."""

from __future__ import annotations

import math
from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict, Field, field_validator

from bot.network import parse_rule


class SubmoduleTerms(BaseModel):
    """A submodule that the attempt checks out, from a repository that it may therefore fetch."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str  # from the work tree's root
    parent: str = ""  # the path of the submodule that it is in
    name: str  # in the .gitmodules of that one
    repository: str  # owner/name
    repo_id: int
    commit: str
    anonymous: bool = False  # public, and the App is not installed there: fetched without a token


class Grant(BaseModel):
    """What people granted a running job in one approval."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    approval: str  # its id: the same is granted once
    host: str = ""  # a rule of bot.network for one host
    dollars: float = Field(0.0, ge=0, allow_inf_nan=False, description="US dollars more for the job")
    paths: tuple[str, ...] = Field((), description="protected files that the job may change")

    @field_validator("host")
    @classmethod
    def _one_host(cls, value: str) -> str:
        rule = parse_rule(value) if value else None
        if rule is not None and (rule.below or rule.any_port or rule.host == "*" or str(rule) != value):
            raise ValueError(f"{value!r} is not the rule of one host")
        return value


class Terms(BaseModel):
    """For whom an attempt works, where it may go, and what it may spend. Kept on its desk across restarts."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    job_id: str = ""
    thread_id: str = ""
    repo_id: int = 0
    actor_id: int = 0  # whose budget it is: the asker's
    allow: tuple[str, ...] = Field((), description="rules of bot.network: where the egress proxy lets it go")
    budget_job: float | None = Field(None, ge=0, description="US dollars; None: no limit")
    budget_thread: float | None = Field(None, ge=0)
    budget_repository_day: float | None = Field(None, ge=0)
    agent: str = ""  # which agent it runs: by it the LLM proxy finds the provider
    model: str | None = Field(None, description="the model that the job was accepted with")
    lfs: bool = Field(False, description="git LFS objects may be fetched and pushed")
    repository: str = ""  # owner/name, and its installation: whose LFS objects those are
    installation_id: int = 0
    submodules: tuple[SubmoduleTerms, ...] = Field((), description="parents first")
    missing: tuple[str, ...] = Field((), description="submodules that could not be had, and why: for people")
    protected: tuple[str, ...] = Field((), description="the repository's own patterns of bot.protected")
    granted: tuple[Grant, ...] = Field(
        (), description="what people granted since; it is in the fields above already"
    )

    @property
    def granted_paths(self) -> tuple[str, ...]:
        """Protected files that this job may change all the same."""
        return tuple(dict.fromkeys(path for grant in self.granted for path in grant.paths))

    def with_grants(self, grants: Iterable[Grant]) -> Terms:
        """These terms and what ``grants`` add; those that are in them already add nothing."""
        known = {grant.approval for grant in self.granted}
        new = list({grant.approval: grant for grant in grants if grant.approval not in known}.values())
        if not new:
            return self
        more = math.fsum(grant.dollars for grant in new)
        return self.model_copy(
            update={
                "allow": tuple(dict.fromkeys((*self.allow, *(grant.host for grant in new if grant.host)))),
                "budget_job": None if self.budget_job is None else self.budget_job + more,
                "granted": (*self.granted, *new),
            }
        )
