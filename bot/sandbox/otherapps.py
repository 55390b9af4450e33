"""Apps of other people: CI that checks commits, and bots that comment and review like everybody."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from bot.sandbox.actions import SLUG, Job, finish_job, start_workflow
from bot.sandbox.api import Api
from bot.sandbox.auth import new_installation_token
from bot.sandbox.github import GitHub
from bot.sandbox.human import Human
from bot.sandbox.present import Json
from bot.sandbox.state import App, InstallationToken, WorkflowRun

#: What another App may do, unless told otherwise: enough for CI and for a bot that talks.
PERMISSIONS: Mapping[str, str] = {
    "metadata": "read",
    "contents": "write",
    "issues": "write",
    "pull_requests": "write",
    "checks": "write",
    "statuses": "write",
    "actions": "read",
}
_TOKEN_LIFE = timedelta(days=365)


class OtherApp(Human):
    """An App that is not the one under test; it acts as its bot, by REST as everybody, in all repositories.

    Args:
        github: the sandbox.
        api: its REST API.
        app: which App.
        permissions: what its token may do.
    """

    def __init__(self, github: GitHub, api: Api, app: App, permissions: Mapping[str, str] = PERMISSIONS):
        super().__init__(github, api, app.bot_login)
        self._token = new_installation_token(app.id)
        github.world.tokens[self._token] = InstallationToken(
            0, dict(permissions), None, github.now() + _TOKEN_LIFE, app=app.slug
        )

    def _credential(self) -> str:
        return self._token

    def _must_be_writer(self, repo: str) -> None:
        self._repository(repo)

    async def check(
        self,
        repo: str,
        sha: str,
        name: str,
        conclusion: str | None = "success",
        *,
        title: str = "",
        summary: str = "",
        text: str | None = None,
        annotations: Sequence[Mapping[str, Any]] = (),
        **more: Any,
    ) -> Json:
        """Show a check run on a commit; without a conclusion it is in progress."""
        wanted: Json = {"name": name, "head_sha": sha, **more}
        wanted |= {"conclusion": conclusion} if conclusion else {"status": "in_progress"}
        if title or summary or annotations:
            wanted["output"] = {
                "title": title or name,
                "summary": summary,
                **({"text": text} if text is not None else {}),
                "annotations": [dict(one) for one in annotations],
            }
        return await self._object("POST", f"/repos/{repo}/check-runs", wanted)

    async def finish_check(self, repo: str, check_run_id: int, conclusion: str, **more: Any) -> Json:
        """End a check run."""
        wanted = {"conclusion": conclusion, **more}
        return await self._object("PATCH", f"/repos/{repo}/check-runs/{check_run_id}", wanted)

    async def status(self, repo: str, sha: str, state: str, *, context: str = "ci", **more: Any) -> Json:
        """Set a commit status: error, failure, pending or success."""
        wanted = {"state": state, "context": context, **more}
        return await self._object("POST", f"/repos/{repo}/statuses/{sha}", wanted)


class Actions(OtherApp):
    """GitHub Actions: workflow runs with jobs and their logs."""

    async def run(
        self, repo: str, sha: str, jobs: Mapping[str, Job], *, name: str = "CI", login: str = "octocat"
    ) -> WorkflowRun:
        """Run a workflow on a commit; jobs without a conclusion go on until ``finish``."""
        return await start_workflow(self._github, self._repository(repo), sha, login, jobs, name=name)

    async def finish(self, repo: str, job_id: int, job: Job) -> None:
        """End a job that goes on."""
        await finish_job(self._github, self._repository(repo), job_id, job)


def new_app(github: GitHub, slug: str, name: str | None = None) -> App:
    """Register another App and open its bot's account; the one that is there if there is one."""
    world = github.world
    if slug in world.other_apps:
        return world.other_apps[slug]
    owner = "github"
    if owner not in world.users:
        github.add_user(owner, "Organization")
    app = App(
        id=world.next_id(),
        client_id=f"Iv23li{slug}",
        slug=slug,
        name=name or ("GitHub Actions" if slug == SLUG else slug),
        owner=owner,
        created_at=github.now(),
        webhook_secret="",
        private_key="",
        events=[],
        permissions=dict(PERMISSIONS),
    )
    world.other_apps[slug] = app
    github.add_user(app.bot_login, "Bot")
    return app
