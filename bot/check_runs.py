"""The one place that writes check runs: a job's, and those of approvals and configuration.

https://docs.github.com/en/rest/checks/runs. A run is found again by its name and external id on its commit, so every
call may be repeated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import structlog
from cachetools import TTLCache

from bot.annotations import Annotation, batches
from bot.github import GitHub, GitHubClient, path
from bot.github_errors import NotFound
from bot.model import Repo
from bot.permissions import SPEAK
from bot.redact import Redactor
from bot.render import clip, oneline

log = structlog.get_logger(__name__)

MAX_TITLE = 120  # characters: more is cut off in the list of checks anyway
#: Runs that are edited again and again while somebody works; after this many seconds they are looked for once more.
_REMEMBERED = 1024
_REMEMBER = 600.0
#: What GitHub makes of a run that nobody completed for 14 days. It is left as it is, and a new one made.
_STALE = "stale"


@dataclass(frozen=True, kw_only=True)
class CheckRun:
    """What a check run shall show. It is completed when it has a ``conclusion``."""

    name: str
    external_id: str  # with the name: which run it is on its commit
    title: str
    summary: str  # Markdown
    status: str = "completed"  # "queued", "in_progress" or "completed"
    conclusion: str | None = None
    text: str = ""  # Markdown, more than the summary
    details_url: str | None = None
    actions: Sequence[Mapping[str, str]] = ()  # at most three buttons
    annotations: Sequence[
        Annotation
    ] = ()  # always in the same order: those that are there are not sent again
    started_at: datetime | None = None
    completed_at: datetime | None = None
    #: There shall be no other of this name on the commit: the newest one is taken over, whatever its external id. Of
    #: several GitHub lets the one that was made last count, and not the one that was written last.
    alone: bool = False


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A check run of ours as it stands on a commit."""

    external_id: str
    conclusion: str | None


@dataclass(frozen=True, kw_only=True)
class _Found:
    id: int
    annotations: int  # that it has already


class CheckRuns:
    """Writes as the App's installation; every text passes the redactor."""

    def __init__(self, github: GitHub, redactor: Redactor) -> None:
        self._github = github
        self._redactor = redactor
        self._known: TTLCache[tuple[int, str, str, str], _Found] = TTLCache(_REMEMBERED, _REMEMBER)

    async def put(self, repo: Repo, sha: str, run: CheckRun) -> int:
        """Make the run on the commit ``sha``, or bring the one that is there to what ``run`` says; returns its id.

        Raises NotFound or Unprocessable when there is no such commit, Forbidden when the App may not.
        """
        client = self._github.repository(repo, SPEAK)
        key = (repo.id, sha, run.name, "" if run.alone else run.external_id)
        # only while it goes on: nobody else ends it, and it has no annotations yet
        lasting = run.conclusion is None and not run.annotations
        known = self._known.get(key) if lasting else None
        found = known or _found(await self._newest(client, repo, sha, run.name, _wanted(run)))
        values = self._values(run)
        groups = batches(run.annotations, found.annotations if found else 0)
        if first := next(groups, None):
            values["output"]["annotations"] = self._data(first)
        if found is None:
            url = self._path(repo, "/check-runs")
            found = _Found(
                id=int((await client.post(url, data=values | {"head_sha": sha}))["id"]), annotations=0
            )
        else:
            try:
                await client.patch(self._path(repo, "/check-runs/{id}", id=found.id), data=values)
            except NotFound:
                if known is None:
                    raise
                del self._known[key]  # it was deleted since we looked
                return await self.put(repo, sha, run)
        for group in groups:
            more = {"title": values["output"]["title"], "summary": values["output"]["summary"]}
            await client.patch(
                self._path(repo, "/check-runs/{id}", id=found.id),
                data={"output": more | {"annotations": self._data(group)}},
            )
        if lasting:
            self._known[key] = found
        else:
            self._known.pop(key, None)
        return found.id

    async def newest(self, repo: Repo, sha: str, name: str) -> Shown | None:
        """The newest run of ours with that name on a commit; None when there is none, or it is stale."""
        found = await self._newest(self._github.repository(repo, SPEAK), repo, sha, name, None)
        if found is None:
            return None
        return Shown(external_id=str(found.get("external_id") or ""), conclusion=found.get("conclusion"))

    def _values(self, run: CheckRun) -> dict[str, Any]:
        clean = self._redactor.text
        output: dict[str, Any] = {
            "title": oneline(clean(run.title), MAX_TITLE),
            "summary": clip(clean(run.summary)),
        }
        if run.text:
            output["text"] = clip(clean(run.text))
        values: dict[str, Any] = {
            "name": run.name,
            "external_id": run.external_id,
            "output": output,
            "actions": [dict(action) for action in run.actions],
        }
        if run.conclusion is not None:
            ended = run.completed_at or datetime.now(UTC)
            values |= {"status": "completed", "conclusion": run.conclusion, "completed_at": _iso(ended)}
        else:
            values["status"] = run.status
        if run.started_at is not None:
            values["started_at"] = _iso(run.started_at)
        if run.details_url:
            values["details_url"] = run.details_url
        return values

    def _data(self, group: Sequence[Annotation]) -> list[dict[str, Any]]:
        told = []
        for annotation in group:
            values = annotation.data()
            for key in ("message", "title"):
                if key in values:
                    values[key] = self._redactor.text(values[key])
            told.append(values)
        return told

    async def _newest(
        self, client: GitHubClient, repo: Repo, sha: str, name: str, external_id: str | None
    ) -> Mapping[str, Any] | None:
        """The newest run of ours with this name and external id (None: any) that is not stale."""
        app_id = (await self._github.identity()).id
        url = path(
            "/repos/{owner}/{repo}/commits/{sha}/check-runs",
            {"check_name": name, "filter": "all", "app_id": app_id},
            owner=repo.owner,
            repo=repo.name,
            sha=sha,
        )
        newest: Mapping[str, Any] | None = None
        async for one in client.getiter(url, iterable_key="check_runs"):
            ours = (one.get("app") or {}).get("id") == app_id
            meant = external_id is None or one.get("external_id") == external_id
            newer = newest is None or one["id"] > newest["id"]
            if ours and meant and newer and one.get("conclusion") != _STALE:
                newest = one
        return newest

    def _path(self, repo: Repo, rest: str, **values: str | int) -> str:
        return path("/repos/{owner}/{repo}" + rest, None, owner=repo.owner, repo=repo.name, **values)


def _wanted(run: CheckRun) -> str | None:
    return None if run.alone else run.external_id


def _found(one: Mapping[str, Any] | None) -> _Found | None:
    if one is None:
        return None
    count = (one.get("output") or {}).get("annotations_count") or 0
    return _Found(id=int(one["id"]), annotations=int(count))


def _iso(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
