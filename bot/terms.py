"""The terms of one attempt: what it may do through its gateway. Set by the host, never by the container."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


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
