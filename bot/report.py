"""The only writer to GitHub: reactions, comments, check runs and pull requests.

Every method brings GitHub to a wanted state and may be repeated: texts of ours are found again by their hidden
marker, check runs by their external id, pull requests by their branch.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import structlog

from bot.errors import GitHubUnavailable
from bot.github import GitHub, GitHubClient, path
from bot.github_errors import Forbidden, GitHubError, NotFound, Unprocessable
from bot.model import Job, JobState, Repo, TargetKind, Trigger
from bot.network import explain
from bot.redact import Redactor
from bot.render import clip, marker, next_step, oneline, quiet_line, render, waiting_words
from bot.store import Store

log = structlog.get_logger(__name__)

CHECK_NAME = "agent"
#: A job younger than this without a comment: whoever accepted it is just writing one. A second is not to be made.
FIRST_COMMENT = timedelta(seconds=10)
#: At most 20, 40 and 20 characters; a press comes back as `check_run.requested_action` with the identifier.
#: https://docs.github.com/en/rest/guides/using-the-rest-api-to-interact-with-checks#check-runs-and-requested-actions
CANCEL_BUTTON = {"label": "Cancel", "description": "Stop this job", "identifier": "cancel"}
RETRY_BUTTON = {"label": "Retry", "description": "Do this job once more", "identifier": "retry"}
#: Conclusions of https://docs.github.com/en/rest/checks/runs#create-a-check-run
_CONCLUSIONS = {
    JobState.succeeded: "success",
    JobState.failed: "failure",
    JobState.cancelled: "cancelled",
    JobState.timed_out: "timed_out",
    JobState.lost: "failure",
}


class Reporter:
    """Writes as the App's installation; every text passes the redactor."""

    def __init__(
        self, github: GitHub, store: Store, redactor: Redactor, *, may_allow: Sequence[str] = ()
    ) -> None:
        """``may_allow``: EGRESS_MAY_ALLOW, so that people are told what they may add themselves."""
        self._github = github
        self._store = store
        self._redactor = redactor
        self._may_allow = may_allow

    # --- what people see of a job

    async def acknowledge(self, job: Job) -> None:
        """👀 on the command or the issue: seen."""
        await self.react(job.repo, job.number, job.trigger, "eyes")

    async def sticky(self, job: Job, *, progress: Sequence[str] = (), fresh: bool = False) -> None:
        """Create or edit the job's one comment, and remember its id. ``fresh``: there cannot be one yet."""
        while True:
            await self._write_sticky(job, progress, fresh=fresh)
            now = await self._store.job(job.id)
            if now is None or now.state is job.state:
                return
            # it went on in between, and whoever told that may have been overwritten: the newer state must stay
            job, progress, fresh = now, (), False

    async def _write_sticky(self, job: Job, progress: Sequence[str], *, fresh: bool) -> None:
        waits = ""
        if job.state is JobState.queued:
            waits = waiting_words(job, await self._store.waiting(job))
        body = self._clean(
            render(
                "comments/sticky.md.j2",
                job=job,
                marker=marker("job", job.id),
                waits=waits,
                progress=[self._redactor.text(line) for line in progress],
                next_step=next_step(job),
                took=_took(job),
                blocked=explain(job.blocked, self._may_allow),
            )
        )
        mark = marker("job", job.id)
        if fresh:
            comment_id = await self._create_comment(self._client(job.repo), job.repo, job.number, body)
        else:
            known = job.comment_id or await self._first_comment(job)
            comment_id = await self._upsert_comment(job.repo, job.number, mark, body, known=known)
        if comment_id != job.comment_id or waits != job.waits:
            await self._store.note(job.id, comment_id=comment_id, waits=waits)

    async def _first_comment(self, job: Job) -> int | None:
        """The comment that somebody else may be creating right now, when the job is that young."""
        while datetime.now(UTC) - job.created_at < FIRST_COMMENT:
            now = await self._store.job(job.id)
            if now is not None and now.comment_id is not None:
                return now.comment_id
            await asyncio.sleep(0.1)
        return None

    async def started(self, job: Job) -> None:
        """🚀 on the command or the issue: an agent works on it."""
        await self.react(job.repo, job.number, job.trigger, "rocket")

    async def ask(self, job: Job) -> None:
        """Tell whoever asked for the job that its agent has a question, in a comment of its own: those are noticed.

        Then remember that it was told.
        """
        if job.asked_at is None:
            raise ValueError("the job asks nothing")
        mark = marker("question", f"{job.id}/{_iso(job.asked_at)}")
        body = self._clean(render("comments/question.md.j2", marker=mark, job=job))
        await self._upsert_comment(job.repo, job.number, mark, body, known=None)
        await self._store.mark_reported(job.id, job.state)

    async def check(self, job: Job, sha: str) -> None:
        """Create or update the job's check run on ``sha``: in progress, or completed with the job's end."""
        output = {
            "title": oneline(self._redactor.text(_title(job)), 120),
            "summary": self._clean(
                render(
                    "check/summary.md.j2",
                    job=job,
                    next_step=next_step(job),
                    took=_took(job),
                    blocked=explain(job.blocked, self._may_allow),
                )
            ),
        }
        button = RETRY_BUTTON if job.state.final else CANCEL_BUTTON
        values: dict[str, Any] = {
            "name": CHECK_NAME,
            "external_id": job.id,
            "output": output,
            "actions": [button],
        }
        if job.state.final:
            conclusion = _CONCLUSIONS[job.state]
            if job.state is JobState.succeeded and job.held_back:
                # a person has to look at the patch: the change is not all there without it
                conclusion = "neutral" if job.head_sha else "action_required"
            elif job.state is JobState.succeeded and not job.head_sha:
                conclusion = "neutral"
            values |= {
                "status": "completed",
                "conclusion": conclusion,
                "completed_at": _iso(job.finished_at or datetime.now(UTC)),
            }
        else:
            values |= {"status": "queued" if job.state is JobState.queued else "in_progress"}
        if job.started_at:
            values["started_at"] = _iso(job.started_at)
        client = self._client(job.repo)
        found = await self._find_check(client, job, sha)
        if found is None:
            url = self._path(job.repo, "/check-runs")
            found = int((await client.post(url, data=values | {"head_sha": sha}))["id"])
        else:
            await client.patch(self._path(job.repo, "/check-runs/{id}", id=found), data=values)
        if found != job.check_run_id:
            await self._store.note(job.id, check_run_id=found)

    async def pull_request(self, job: Job, *, title: str, base: str, closes: bool = True) -> int:
        """Open the pull request of the job's branch, or find the one that is there. Returns its number.

        ``closes``: merging it closes the job's issue.
        """
        if not job.branch:
            raise ValueError("the job has no branch")
        client = self._client(job.repo)
        title = oneline(quiet_line(self._redactor.text(title)), 200)
        body = self._clean(
            render("comments/pull_request.md.j2", job=job, marker=marker("pull", job.id), closes=closes)
        )
        found = await self._find_pull(client, job)
        if found is not None:
            return found
        try:
            created = await client.post(
                self._path(job.repo, "/pulls"),
                data={"title": title, "head": job.branch, "base": base, "body": body},
            )
        except Unprocessable:
            # somebody (or our own repeated step) opened it in between
            found = await self._find_pull(client, job)
            if found is None:
                raise
            return found
        return int(created["number"])

    async def remove_branch(self, job: Job) -> None:
        """Remove the branch that a job pushed and never opened a pull request for, if nobody has touched it."""
        if job.branch:
            client = self._client(job.repo)
            try:
                found = await client.getitem(
                    self._path(job.repo, "/git/ref/heads/{+branch}", branch=job.branch)
                )
                if found["object"]["sha"] == job.head_sha:
                    await client.delete(self._path(job.repo, "/git/refs/heads/{+branch}", branch=job.branch))
                    log.info("removed a stray branch", branch=job.branch, **job.log_context())
            except NotFound:
                pass  # it was never pushed
        await self._store.note(job.id, head_sha=None)

    async def finished(self, job: Job, *, also_on: str | None = None) -> None:
        """Show a job's end everywhere: comment, check runs. Then remember that it was shown."""
        for sha in dict.fromkeys(
            sha for sha in (job.head_sha, also_on if job.target is TargetKind.pull_request else None) if sha
        ):
            try:
                await self.check(job, sha)
            except (NotFound, Unprocessable, Forbidden) as error:
                # the commit may be gone, or the App may not have checks: the comment still tells
                log.warning("check run not written", sha=sha, error=str(error), **job.log_context())
        await self.sticky(job)
        await self._store.mark_reported(job.id, job.state)

    # --- answers to people

    async def refuse(
        self, repo: Repo, number: int, trigger: Trigger, sentences: Sequence[str], *, once: str = ""
    ) -> None:
        """Say no politely, once for each person and issue, or once for all that has the key ``once``."""
        key = once or f"refused:{repo.id}:{number}:{trigger.actor.id}:{_digest(sentences)}"
        if not await self._store.say_once(key, trigger.delivery_id):
            return
        mark = marker("refusal", trigger.delivery_id)
        body = render(
            "comments/refusal.md.j2", marker=mark, login=trigger.actor.login, sentences=list(sentences)
        )
        try:
            await self._upsert_comment(repo, number, mark, self._clean(body), known=None)
        except Exception:
            await self._store.unsay(key)  # the delivery is tried again, and then it must be said
            raise

    async def reply(self, repo: Repo, number: int, trigger: Trigger, text: str, *, ordinal: int = 0) -> None:
        """Answer a command, once for each delivery."""
        mark = marker("reply", f"{trigger.delivery_id}/{ordinal}")
        body = self._clean(render("comments/reply.md.j2", marker=mark, text=text))
        await self._upsert_comment(repo, number, mark, body, known=None)

    async def react(self, repo: Repo, number: int, trigger: Trigger, content: str) -> None:
        """Put a reaction on what triggered us. Best effort: a reaction is never worth a failed job."""
        if trigger.comment_id is None:
            url = self._path(repo, "/issues/{number}/reactions", number=number)
        elif trigger.comment_kind == "review":
            url = self._path(repo, "/pulls/comments/{id}/reactions", id=trigger.comment_id)
        else:
            url = self._path(repo, "/issues/comments/{id}/reactions", id=trigger.comment_id)
        try:
            await self._client(repo).post(url, data={"content": content})
        except (GitHubError, GitHubUnavailable) as error:
            log.warning("no reaction", content=content, error=str(error))

    # --- finding what is there

    async def _upsert_comment(
        self, repo: Repo, number: int, mark: str, body: str, *, known: int | None
    ) -> int:
        client = self._client(repo)
        if known is None:
            known = await self._find_comment(client, repo, number, mark)
        if known is not None:
            try:
                await client.patch(self._path(repo, "/issues/comments/{id}", id=known), data={"body": body})
            except NotFound:
                log.info("our comment was deleted; writing a new one", comment=known)
            else:
                return known
        return await self._create_comment(client, repo, number, body)

    async def _create_comment(self, client: GitHubClient, repo: Repo, number: int, body: str) -> int:
        url = self._path(repo, "/issues/{number}/comments", number=number)
        return int((await client.post(url, data={"body": body}))["id"])

    async def _find_comment(self, client: GitHubClient, repo: Repo, number: int, mark: str) -> int | None:
        me = (await self._github.identity()).user_id
        url = self._path(repo, "/issues/{number}/comments", number=number)
        async for comment in client.getiter(url):
            if (comment.get("user") or {}).get("id") == me and mark in (comment.get("body") or ""):
                return int(comment["id"])
        return None

    async def _find_check(self, client: GitHubClient, job: Job, sha: str) -> int | None:
        url = path(
            "/repos/{owner}/{repo}/commits/{sha}/check-runs",
            {"check_name": CHECK_NAME, "filter": "all"},
            owner=job.repo.owner,
            repo=job.repo.name,
            sha=sha,
        )
        async for run in client.getiter(url, iterable_key="check_runs"):
            if run.get("external_id") == job.id:
                return int(run["id"])
        return None

    async def _find_pull(self, client: GitHubClient, job: Job) -> int | None:
        url = path(
            "/repos/{owner}/{repo}/pulls",
            {"head": f"{job.repo.owner}:{job.branch}", "state": "all"},
            owner=job.repo.owner,
            repo=job.repo.name,
        )
        async for pull in client.getiter(url):
            if pull["head"]["ref"] == job.branch:
                return int(pull["number"])
        return None

    def _client(self, repo: Repo) -> GitHubClient:
        return self._github.installation(repo.installation_id)

    def _path(self, repo: Repo, rest: str, **values: str | int) -> str:
        return path("/repos/{owner}/{repo}" + rest, None, owner=repo.owner, repo=repo.name, **values)

    def _clean(self, text: str) -> str:
        return clip(self._redactor.text(text))


def _digest(sentences: Sequence[str]) -> str:
    """A short stable key of what is said."""
    return hashlib.sha256("\0".join(sentences).encode()).hexdigest()[:16]


def _took(job: Job) -> float:
    if job.started_at is None:
        return 0
    return ((job.finished_at or datetime.now(UTC)) - job.started_at).total_seconds()


def _iso(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _done(job: Job) -> str:
    if job.held_back:
        return (
            f"Done by {job.agent}; a part waits for a person"
            if job.head_sha
            else "A patch waits for a person"
        )
    return f"Done by {job.agent}" if job.head_sha else "Finished without a change"


def _title(job: Job) -> str:
    return {
        JobState.queued: f"Waiting for a free slot for {job.agent}",
        JobState.running: f"{job.agent} is working on it",
        JobState.paused: "A person was asked",
        JobState.succeeded: _done(job),
        JobState.failed: job.message or "Failed",
        JobState.cancelled: "Cancelled",
        JobState.timed_out: "Out of time",
        JobState.lost: "The worker host went away",
    }[job.state]
