"""Reads the checks of a commit: check runs with their annotations, commit statuses, and the logs of Actions jobs.

Logs lie outside GitHub's API: it names an address that is good for a minute, and our token stays here. What cannot be
read is said in a sentence and never stops the rest.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import httpx
import structlog

from bot.errors import GitHubUnavailable
from bot.failed_checks import (
    FAILED,
    MAX_ANNOTATIONS,
    MAX_CHECKS,
    CheckAnnotation,
    Checks,
    FailedCheck,
    tail_of_log,
)
from bot.github import GitHub, GitHubClient, path
from bot.github_errors import Forbidden, GitHubError, NotFound
from bot.model import Repo
from bot.prompts import visible
from bot.redact import Redactor
from bot.render import code, oneline

log = structlog.get_logger(__name__)

MAX_RUNS = 1_000  # of a commit
KEPT_LOG = 128 * 1024  # bytes of the end of a log that are looked at
MAX_LOG = 50 * 2**20  # bytes that are fetched to get there
LOG_TIMEOUT = 30.0  # seconds for one log, from first byte to last
ALL_LOGS_TIMEOUT = 120.0  # seconds for all of them
_CONNECT_TIMEOUT = 5.0

_ACTIONS = "github-actions"  # the slug of GitHub's own App
#: https://github.com/OWNER/REPO/actions/runs/RUN/job/JOB
_JOB = re.compile(r"/actions/runs/\d+/jobs?/(\d{1,19})$")


class CheckReader:
    """Reads as the App's installation. What it returns has passed the redactor."""

    def __init__(
        self, github: GitHub, redactor: Redactor, *, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        """``transport``: what reaches the hosts of logs; default: the network, by the proxy variables."""
        self._github = github
        self._redactor = redactor
        self._transport = transport

    async def read(self, repo: Repo, sha: str, *, details: bool = True) -> Checks:
        """All checks of a commit but those of this App. ``details``: also annotations and logs of the failed ones.

        Raises GitHubError and GitHubUnavailable when the list of check runs cannot be had.
        """
        client = self._github.reader(repo.installation_id)
        me = (await self._github.identity()).id
        url = path(
            "/repos/{owner}/{repo}/commits/{sha}/check-runs", None, owner=repo.owner, repo=repo.name, sha=sha
        )
        runs: list[Mapping[str, Any]] = []
        async for run in client.getiter(url, iterable_key="check_runs"):
            if (run.get("app") or {}).get("id") != me:
                runs.append(run)
            if len(runs) == MAX_RUNS:
                break
        statuses, unread = await self._statuses(client, repo, sha)
        ended = [_time(run.get("completed_at")) for run in runs] + [
            _time(one.get("updated_at")) for one in statuses if one.get("state") != "pending"
        ]
        newest = max((moment for moment in ended if moment), default=None)
        bad = [run for run in runs if run.get("status") == "completed" and run.get("conclusion") in FAILED]
        failed = [self._check(run) for run in bad]
        if details:
            failed = await self._detailed(client, repo, bad, failed)
        bad_statuses = [one for one in statuses if one.get("state") in FAILED]
        failed += [self._status(one) for one in bad_statuses]
        pending = [self._clean(run["name"]) for run in runs if run.get("status") != "completed"]
        pending += [self._clean(one["context"]) for one in statuses if one.get("state") == "pending"]
        return Checks(
            sha=sha,
            failed=failed,
            pending=pending,
            passed=len(runs) + len(statuses) - len(failed) - len(pending),
            quiet=max(0.0, (datetime.now(UTC) - newest).total_seconds()) if newest else None,
            unread=unread,
        )

    def _check(self, run: Mapping[str, Any]) -> FailedCheck:
        output = run.get("output") or {}
        return FailedCheck(
            name=self._clean(run["name"]),
            conclusion=str(run["conclusion"]),
            by=self._clean((run.get("app") or {}).get("name")),
            title=self._clean(output.get("title")),
            summary=self._clean(output.get("summary")),
            text=self._clean(output.get("text")),
        )

    def _status(self, status: Mapping[str, Any]) -> FailedCheck:
        target = oneline(visible(self._clean(status.get("target_url"))), 300)
        return FailedCheck(
            name=self._clean(status["context"]),
            conclusion=str(status["state"]),
            title=self._clean(status.get("description")),
            unread=f"A commit status has no log here; its own page is {code(target)}." if target else "",
        )

    async def _statuses(
        self, client: GitHubClient, repo: Repo, sha: str
    ) -> tuple[list[Mapping[str, Any]], list[str]]:
        """The newest commit status of each context, and what could not be read.

        https://docs.github.com/en/rest/commits/statuses#get-the-combined-status-for-a-specific-reference
        """
        url = path(
            "/repos/{owner}/{repo}/commits/{sha}/status", None, owner=repo.owner, repo=repo.name, sha=sha
        )
        found: list[Mapping[str, Any]] = []
        try:
            async for one in client.getiter(url, iterable_key="statuses"):
                found.append(one)
                if len(found) == MAX_RUNS:
                    break
        except (GitHubError, GitHubUnavailable) as error:
            log.warning("statuses not read", repo=repo.full_name, error=str(error))
            return found, [f"The commit statuses could not be read: {_why(error, 'statuses: read')}."]
        return found, []

    # --- what a failed check run says in detail

    async def _detailed(
        self,
        client: GitHubClient,
        repo: Repo,
        runs: Sequence[Mapping[str, Any]],
        failed: Sequence[FailedCheck],
    ) -> list[FailedCheck]:
        detailed: list[FailedCheck] = []
        until = asyncio.get_running_loop().time() + ALL_LOGS_TIMEOUT
        for number, (run, check) in enumerate(zip(runs, failed, strict=True)):
            if number < MAX_CHECKS:
                annotations, problem = await self._annotations(client, repo, run)
                check = replace(check, annotations=annotations, unread=problem)
                if (run.get("app") or {}).get("slug") == _ACTIONS:
                    left = until - asyncio.get_running_loop().time()
                    text, problem = await self._log(client, repo, run, min(left, LOG_TIMEOUT))
                    check = replace(check, log=text, unread=" ".join(filter(None, (check.unread, problem))))
            detailed.append(check)
        return detailed

    async def _annotations(
        self, client: GitHubClient, repo: Repo, run: Mapping[str, Any]
    ) -> tuple[list[CheckAnnotation], str]:
        """https://docs.github.com/en/rest/checks/runs#list-check-run-annotations; failures first."""
        if not (run.get("output") or {}).get("annotations_count"):
            return [], ""
        url = path(
            "/repos/{owner}/{repo}/check-runs/{id}/annotations",
            {"per_page": 100},
            owner=repo.owner,
            repo=repo.name,
            id=run["id"],
        )
        try:
            found = await client.getitem(url)
        except (GitHubError, GitHubUnavailable) as error:
            return [], f"Its remarks about lines could not be read: {_why(error, 'checks: read')}."
        rank = {"failure": 0, "warning": 1}
        found.sort(key=lambda one: rank.get(str(one.get("annotation_level")), 2))
        return [
            CheckAnnotation(
                path=self._clean(one.get("path")),
                start_line=int(one.get("start_line") or 1),
                end_line=int(one.get("end_line") or 1),
                level=str(one.get("annotation_level") or "notice"),
                message=self._clean(one.get("message")),
                title=self._clean(one.get("title")),
            )
            for one in found[:MAX_ANNOTATIONS]
        ], ""

    async def _log(
        self, client: GitHubClient, repo: Repo, run: Mapping[str, Any], seconds: float
    ) -> tuple[str, str]:
        """The end of an Actions job's log, or why it could not be read.

        https://docs.github.com/en/rest/actions/workflow-jobs#download-job-logs-for-a-workflow-run
        """
        address = urlsplit(str(run.get("details_url") or ""))
        match = _JOB.search(address.path)
        # a job and its check run have the same id
        job = match[1] if match else str(run["id"])
        url = path(
            "/repos/{owner}/{repo}/actions/jobs/{job}/logs", None, owner=repo.owner, repo=repo.name, job=job
        )
        try:
            async with asyncio.timeout(max(seconds, 0.0)):
                target = await client.getlocation(url)
                tail, whole = await self._fetch(target)
        except NotFound:
            return "", "Its log is not there any more."
        except TimeoutError:
            return "", "Its log could not be read in time."
        except (GitHubError, GitHubUnavailable) as error:
            return "", f"Its log could not be read: {_why(error, 'actions: read')}."
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            # the address is a secret for as long as it is good: the error's text may have it
            log.warning("log not fetched", repo=repo.full_name, error=type(error).__name__)
            return "", "Its log could not be fetched from where GitHub keeps it."
        # before it is cut once more: half a secret is not found
        clean = await asyncio.to_thread(self._redactor.text, tail)
        problem = "" if whole else f"Its log is longer than {MAX_LOG // 2**20} MiB: this is not its end."
        return tail_of_log(clean), problem

    async def _fetch(self, url: str) -> tuple[str, bool]:
        """The end of what is at ``url``, and whether that is really the end.

        No cookies, no token, and no redirection to yet another place.
        """
        timeout = httpx.Timeout(LOG_TIMEOUT, connect=_CONNECT_TIMEOUT)
        kept = bytearray()
        fetched = 0
        async with (
            httpx.AsyncClient(transport=self._transport, timeout=timeout, follow_redirects=False) as outside,
            outside.stream("GET", url, headers={"accept": "text/plain"}) as response,
        ):
            if response.status_code != 200:
                raise httpx.HTTPStatusError(
                    f"status {response.status_code}", request=response.request, response=response
                )
            async for chunk in response.aiter_bytes():
                fetched += len(chunk)
                kept += chunk
                if len(kept) > 2 * KEPT_LOG:
                    del kept[:-KEPT_LOG]
                if fetched > MAX_LOG:
                    break
        tail = bytes(kept[-KEPT_LOG:])
        if fetched > len(tail):
            tail = tail[tail.find(b"\n") + 1 :]
        return tail.decode("utf-8", "replace"), fetched <= MAX_LOG

    def _clean(self, text: object) -> str:
        return self._redactor.text(str(text or "")[:100_000])


def _why(error: GitHubError | GitHubUnavailable, permission: str) -> str:
    if isinstance(error, Forbidden):
        return f"the App lacks the permission `{permission}`"
    return "it is not there" if isinstance(error, NotFound) else "GitHub did not answer as it should"


def _time(value: object) -> datetime | None:
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        return None
    return moment if moment is None or moment.tzinfo else moment.replace(tzinfo=UTC)
