"""The only writer to GitHub: reactions, comments, check runs and pull requests.

Every method brings GitHub to a wanted state and may be repeated: texts of ours are found again by their hidden
marker, check runs by their external id, pull requests by their branch.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import structlog
from cachetools import TTLCache

from bot.agent_requests import ToDo
from bot.annotations import of_job
from bot.audit import Audit, Wanted
from bot.audit_chain import AuditKind, Entry
from bot.check_report import check_name, check_run
from bot.check_runs import CheckRuns
from bot.endings import PlanState, became, next_step, said, why
from bot.errors import GitHubUnavailable
from bot.github import GitHub, GitHubClient, path
from bot.github_errors import Forbidden, GitHubError, NotFound, Unprocessable
from bot.model import Job, JobKind, JobState, Repo, TargetKind, Trigger
from bot.network import explain
from bot.permissions import CHANGE, SPEAK
from bot.reasons import Reason, as_markdown, from_data
from bot.redact import Redactor
from bot.render import clip, marker, oneline, quiet, quiet_line, render, waiting_words
from bot.store import Store
from bot.thread_replies import comments_on_diff, is_there, reply

log = structlog.get_logger(__name__)

#: A job younger than this without a comment: whoever accepted it is just writing one. A second is not to be made.
FIRST_COMMENT = timedelta(seconds=10)

_PULL_MARK = re.compile(r"<!-- agent-conductor:pull:(j[0-9a-f]{12})/([0-9a-f]{16}) -->")
_READY = """
mutation($pull: ID!) { markPullRequestReadyForReview(input: {pullRequestId: $pull}) { pullRequest { isDraft } } }
"""
_REACT = """
mutation($review: ID!, $content: ReactionContent!) {
  addReaction(input: {subjectId: $review, content: $content}) { reaction { id } }
}
"""


class Reporter:
    """Writes as the App's installation; every text passes the redactor."""

    def __init__(
        self,
        github: GitHub,
        store: Store,
        redactor: Redactor,
        *,
        may_allow: Sequence[str] = (),
        web_url: str = "https://github.com",
        answers_hour: int = 0,
        audit: Audit | None = None,
    ) -> None:
        """``may_allow``: EGRESS_MAY_ALLOW, so that people are told what they may add themselves.

        ``web_url``: where GitHub's pages are. ``answers_hour``: of :meth:`reply`, for a person in a repository; 0: no
        limit. ``audit`` gets what is closed and removed.
        """
        self.checks = CheckRuns(github, redactor)
        self._github = github
        self._store = store
        self._redactor = redactor
        self._may_allow = may_allow
        self._web_url = web_url.rstrip("/")
        self._answers = answers_hour
        self._audit = audit
        self._silent: TTLCache[str, bool] = TTLCache(1000, ttl=3600)
        self._because: TTLCache[str, str] = TTLCache(200, ttl=3600)

    # --- what people see of a job

    async def acknowledge(self, job: Job) -> None:
        """👀 on the command or the issue: seen."""
        await self.react(job.repo, job.asked_in, job.trigger, "eyes")

    async def sticky(
        self, job: Job, *, progress: Sequence[str] = (), todo: Sequence[ToDo] = (), fresh: bool = False
    ) -> None:
        """Create or edit the job's one comment, and remember its id. ``fresh``: there cannot be one yet."""
        while True:
            plan = await self._plan(job)
            await self._write_sticky(job, progress, todo, plan, fresh=fresh)
            now = await self._store.job(job.id)
            if now is None or (now.state is job.state and await self._plan(now) == plan):
                return
            # it went on in between, and whoever told that may have been overwritten: the newer state must stay
            job, progress, todo, fresh = now, (), (), False

    async def _write_sticky(
        self,
        job: Job,
        progress: Sequence[str],
        todo: Sequence[ToDo],
        plan: PlanState | None,
        *,
        fresh: bool,
    ) -> None:
        waits = ""
        if job.state is JobState.queued:
            waits = waiting_words(job, await self._store.waiting(job))
        mark = marker("job", job.id)
        values = self._about(job, progress, todo, await self._review(job), plan)
        body = self._clean(render("comments/sticky.md.j2", marker=mark, waits=waits, **values))
        if fresh:
            comment_id = await self._create_comment(self._client(job.repo), job.repo, job.number, body)
        else:
            known = job.comment_id or await self._first_comment(job)
            comment_id = await self._upsert_comment(job.repo, job.number, mark, body, known=known)
        if comment_id != job.comment_id or waits != job.waits:
            await self._store.note(job.id, comment_id=comment_id, waits=waits)

    async def _review(self, job: Job) -> int | None:
        """The pull request in which somebody must decide before a paused job goes on."""
        return await self._store.review_of(job.id) if job.state is JobState.paused else None

    async def _plan(self, job: Job) -> PlanState | None:
        """What became of the plan that a job has made."""
        made = job.kind is JobKind.plan and job.state is JobState.succeeded
        return await self._store.plan_of(job.id) if made else None

    def _about(
        self,
        job: Job,
        progress: Sequence[str],
        todo: Sequence[ToDo],
        review: int | None,
        plan: PlanState | None = None,
    ) -> dict[str, Any]:
        """What the comment and the check run of a job are made of."""
        return {
            "job": job,
            "progress": [self._redactor.text(line) for line in progress],
            "todo": todo,
            "why": why(job),
            "said": said(job),
            "review": review,
            "plan": plan,
            "became": became(job, plan),
            "next_step": next_step(job, review=review, plan=plan),
            "took": _took(job),
            "blocked": explain(job.blocked, self._may_allow),
        }

    async def progress(self, job: Job, *, lines: Sequence[str] = (), todo: Sequence[ToDo] = ()) -> None:
        """Show what an agent is doing: in the job's comment and, where it has a commit to stand on, its check run.

        Raises StaleAttempt when a newer attempt owns the job: what this one does is not the job's any more.
        """
        await self._store.check_fence(job.id, job.fence)
        await self.sticky(job, progress=lines, todo=todo)
        for sha in shown_on(job):
            await self.check(job, sha, progress=lines, todo=todo)

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
        await self.react(job.repo, job.asked_in, job.trigger, "rocket")

    async def ask(self, job: Job) -> None:
        """Tell whoever asked for the job that its agent has a question, in a comment of its own: those are noticed.

        Then remember that it was told.
        """
        if job.asked_at is None:
            raise ValueError("the job asks nothing")
        mark = marker("question", f"{job.id}/{_iso(job.asked_at)}")
        body = self._clean(render("comments/question.md.j2", marker=mark, job=job))
        await self._say(job.repo, job.number, job.trigger, mark, body)
        await self._store.mark_reported(job.id, job.state)

    async def check(
        self,
        job: Job,
        sha: str,
        *,
        progress: Sequence[str] = (),
        todo: Sequence[ToDo] = (),
    ) -> None:
        """Create or update the job's check run on ``sha``: how far it is, or its end with remarks beside files.

        A kind of job that has no check run gets none. Raises NotFound, Unprocessable or Forbidden when the commit is
        gone or the App may not.
        """
        name = check_name(job.kind)
        if name is None:
            return
        while True:
            comment = self._comment_url(job)
            plan = await self._plan(job)
            about = self._about(job, progress, todo, await self._review(job), plan)
            summary = render("check/summary.md.j2", comment=comment, **about)
            run = check_run(
                name,
                job,
                summary=summary,
                details_url=comment,
                todo=todo,
                became=became(job, plan),
                annotations=of_job(job, explain(job.blocked, self._may_allow)),
            )
            run = replace(run, text=await self._reasons(job))
            found = await self.checks.put(job.repo, sha, run)
            if found != job.check_run_id:
                await self._store.note(job.id, check_run_id=found)
            now = await self._store.job(job.id)
            if now is None or now.state is job.state or job.state.final:
                return
            # as with the comment: what was told meanwhile must not be covered by what was before
            job, progress, todo = now, (), ()

    async def checks_of(self, job: Job) -> None:
        """Show how far a job is on every commit that it has a check run on (:func:`shown_on`)."""
        for sha in shown_on(job):
            await self.check(job, sha)

    async def left(self, job: Job, sha: str, *, now: str) -> None:
        """The job's check run stands on ``sha``, and nothing more will be told there: it goes on at commit ``now``."""
        name = check_name(job.kind)
        if name is None:
            return
        comment = self._comment_url(job)
        about = self._about(job, (), (), None)
        run = replace(
            check_run(
                name,
                job,
                summary=render("check/summary.md.j2", comment=comment, **about),
                details_url=comment,
            ),
            title=f"Goes on at {now[:12]}",
            conclusion="neutral",
            actions=(),
        )
        try:
            await self.checks.put(job.repo, sha, run)
        except (GitHubError, GitHubUnavailable) as error:
            log.warning("check run not ended", sha=sha, error=str(error), **job.log_context())

    async def _reasons(self, job: Job) -> str:
        """Why the job was accepted, for its check run: folded, as the audit trail has it; "" when that is not there."""
        known = self._because.get(job.id)
        if known is None and self._audit is not None:
            wanted = Wanted(job_id=job.id, kinds=[AuditKind.job_accepted])
            found = [one for one in await self._audit.newest(wanted, 1) if isinstance(one, Entry)]
            known = ""
            if found and found[0].decision is not None:
                with suppress(KeyError, TypeError):  # one that was too large to be kept
                    tree = as_markdown(from_data(found[0].decision))
                    known = render("comments/reasons.md.j2", reasons=tree)
            self._because[job.id] = known
        return known or ""

    def _comment_url(self, job: Job) -> str | None:
        """Where the job's comment is, for people."""
        if job.comment_id is None:
            return None
        kind = "pull" if job.target is TargetKind.pull_request else "issues"
        return f"{self._web_url}/{job.repo.full_name}/{kind}/{job.number}#issuecomment-{job.comment_id}"

    async def pull_request(
        self, job: Job, *, title: str, base: str, closes: bool = True, draft: bool = False
    ) -> int:
        """Open the pull request of the job's branch, or find the one that is there. Returns its number.

        ``closes``: merging it closes the job's issue; ``draft``: as a draft, where the repository has such.
        """
        if not job.branch:
            raise ValueError("the job has no branch")
        client = self._client(job.repo)
        found = await self._find_pull(client, job)
        if found is not None:
            return found
        data = {
            "title": self._title(title),
            "body": self._pull_text(job, closes=closes, unfinished=draft),
            "head": job.branch,
            "base": base,
            "draft": draft,
        }
        try:
            created = await client.post(self._path(job.repo, "/pulls"), data=data)
        except Unprocessable as error:
            # somebody (or our own repeated step) opened it in between
            found = await self._find_pull(client, job)
            if found is not None:
                return found
            if not draft or "draft" not in str(error).lower():
                raise
            # private repositories have no drafts on some of GitHub's plans
            created = await client.post(self._path(job.repo, "/pulls"), data=data | {"draft": False})
        return int(created["number"])

    async def describe(self, job: Job, number: int, *, title: str, closes: bool = True) -> None:
        """Let a draft of ours have ``title`` and the text that is true now: what ``job`` plans or asks.

        A text that people have changed stays theirs.
        """
        client = self._github.repository(job.repo, CHANGE)
        pull = await client.getitem(self._path(job.repo, "/pulls/{number}", number=number))
        opener = await self._opener(job.repo, number)
        if opener is not None and _unfinished(pull):
            await self._rewrite(client, pull, job, opener, title=title, closes=closes)

    async def ready(
        self, job: Job, number: int, *, title: str, closes: bool = True, says: Job | None = None
    ) -> None:
        """Let a draft of ours be a pull request like any other, with what was done as its title and text.

        REST cannot do that: https://docs.github.com/en/graphql/reference/mutations#markpullrequestreadyforreview
        One that is no draft (any more) gets only the text, when that was to become true by this job. A text that people
        have changed stays theirs. ``says``: the job whose words these are, by default ``job`` itself.
        """
        client = self._github.repository(job.repo, CHANGE)
        pull = await client.getitem(self._path(job.repo, "/pulls/{number}", number=number))
        opener = await self._opener(job.repo, number)
        if opener is None:
            return
        meant = job.approval_id or opener.id == job.id
        if says is not None:  # what it told before: else somebody else's words stand there
            meant = _written_by(str(pull.get("body") or "")) == says.id
        if pull.get("draft") or meant:
            await self._rewrite(client, pull, says or job, opener, title=title, closes=closes)
        if pull.get("draft"):
            await client.graphql(_READY, pull=pull["node_id"])

    async def _opener(self, repo: Repo, number: int) -> Job | None:
        """The job that opened a pull request; None: it is not ours."""
        here = await self._store.jobs_on(repo.id, number)
        return next((one for one in reversed(here) if one.pull_number == number), None)

    async def _rewrite(
        self,
        client: GitHubClient,
        pull: Mapping[str, Any],
        says: Job,
        opener: Job,
        *,
        title: str,
        closes: bool,
    ) -> None:
        before, changes = str(pull.get("body") or ""), {}
        body = self._pull_text(says, opener=opener, closes=closes)
        if _written_by(before) is not None and _flat(before) != _flat(body):
            changes["body"] = body
        if _unfinished(pull) and pull["title"] != self._title(title):
            changes["title"] = self._title(title)
        if changes:
            url = self._path(says.repo, "/pulls/{number}", number=int(pull["number"]))
            await client.patch(url, data=changes)

    def _title(self, title: str) -> str:
        return oneline(quiet_line(self._redactor.text(title)), 200)

    def _pull_text(
        self, job: Job, *, closes: bool, opener: Job | None = None, unfinished: bool = False
    ) -> str:
        """What a pull request says. Its hidden first line tells whose words it has, and what they were."""
        text = self._clean(
            render(
                "comments/pull_request.md.j2",
                job=job,
                origin=opener or job,
                closes=closes,
                unfinished=unfinished,
            )
        )
        return f"{marker('pull', f'{job.id}/{_digest([_flat(text)])}')}\n{text}"

    async def close_draft(self, job: Job) -> None:
        """Close the draft that a job opened and nothing came of, with one sentence; unless somebody has pushed to it.

        Its branch is removed, too, unless later jobs worked there: then they can be done once more when it is reopened.
        """
        number = job.pull_number
        if number is None:
            raise ValueError("the job has no pull request")
        here = await self._store.jobs_on(job.repo.id, number)
        about = await self._store.jobs_on(job.repo.id, job.number)
        again = next((one for one in about if one.retry_of == job.id), None)
        followed = any(one.number == number for one in here)
        client = self._github.repository(job.repo, CHANGE)
        url = self._path(job.repo, "/pulls/{number}", number=number)
        try:
            pull = await client.getitem(url)
        except NotFound:
            pull = {"state": "gone"}
        ours = {one.marker_sha for one in here if one.marker_sha}
        if pull["state"] == "open" and pull["head"]["sha"] in ours:
            mark = marker("closed", job.id)
            body = render("comments/closed.md.j2", marker=mark, job=job, followed=followed, again=again)
            await self.comment(job.repo, number, mark, body)
            await self._record(AuditKind.pull_closed, job, pull=number)
            await client.patch(url, data={"state": "closed"})
            log.info("closed a draft that nothing came of", pull=number, **job.log_context())
            if not followed:
                await self._remove_branch(job, {pull["head"]["sha"]})
        await self._store.note(job.id, marker_sha=None)

    async def remove_branch(self, job: Job) -> None:
        """Remove the branch that a job pushed and never opened a pull request for, if nobody has touched it."""
        # where it is; a push to it that was noted may not have come about: then it is at the marker still
        if job.branch and (ours := {sha for sha in (job.head_sha, job.marker_sha) if sha}):
            await self._remove_branch(job, ours)
        await self._store.note(job.id, head_sha=None, marker_sha=None)

    async def _remove_branch(self, job: Job, ours: Collection[str]) -> None:
        """Remove a job's branch if it is at one of the commits ``ours``."""
        client, branch = self._github.repository(job.repo, CHANGE), job.branch or ""
        try:
            found = await client.getitem(self._path(job.repo, "/git/ref/heads/{+branch}", branch=branch))
            sha = str(found["object"]["sha"])
            if sha not in ours:
                return
            await self._record(AuditKind.branch_removed, job, sha=sha, branch=branch)
            await client.delete(self._path(job.repo, "/git/refs/heads/{+branch}", branch=branch))
        except NotFound:
            return  # it was never pushed, or somebody was faster
        log.info("removed a stray branch", branch=branch, **job.log_context())

    async def _record(self, kind: AuditKind, job: Job, *, sha: str | None = None, **details: Any) -> None:
        if self._audit is not None:
            await self._audit.of_job(kind, job, sha=sha, **details)

    async def finished(self, job: Job, *, also_on: str | None = None) -> None:
        """Show a job's end everywhere: comment, check runs. Then remember that it was shown."""
        began = also_on if job.target is TargetKind.pull_request else None
        for sha in dict.fromkeys(sha for sha in (job.head_sha, job.marker_sha, began) if sha):
            try:
                await self.check(job, sha)
            except (NotFound, Unprocessable, Forbidden) as error:
                # the commit may be gone, or the App may not have checks: the comment still tells
                log.warning("check run not written", sha=sha, error=str(error), **job.log_context())
        await self.sticky(job)
        await self._store.mark_reported(job.id, job.state)

    async def plan_settled(self, job_id: str) -> None:
        """Show in the comment and the check run of a job what became of the plan that it made, if it has ended."""
        job = await self._store.job(job_id)
        if job is not None and await self._plan(job) is not None:
            await self.finished(job, also_on=job.base_sha)

    # --- answers to people

    async def refuse(
        self,
        repo: Repo,
        number: int,
        trigger: Trigger,
        sentences: Sequence[str],
        *,
        once: str = "",
        hourly: bool = False,
        because: Reason | None = None,
    ) -> None:
        """Say no politely, once for each person and issue, or once for all that has the key ``once``.

        ``hourly``: again in another hour, to somebody who may have mended meanwhile what was in the way. ``because``:
        everything that was asked to decide that, which is shown folded.
        """
        key = once or f"refused:{repo.id}:{number}:{trigger.actor.id}:{_digest(sentences)}"
        if hourly:
            key = f"{key}:{datetime.now(UTC).strftime('%Y-%m-%dT%H')}"
        if not await self._store.say_once(key, trigger.delivery_id):
            return
        mark = marker("refusal", trigger.delivery_id)
        body = render(
            "comments/refusal.md.j2",
            marker=mark,
            login=trigger.actor.login,
            sentences=list(sentences),
            reasons=as_markdown(because) if because is not None else "",
        )
        try:
            await self._say(repo, number, trigger, mark, self._clean(body))
        except Exception:
            await self._store.unsay(key)  # the delivery is tried again, and then it must be said
            raise

    async def reply(self, repo: Repo, number: int, trigger: Trigger, text: str, *, ordinal: int = 0) -> None:
        """Answer a command, once for each delivery; in a storm of them only the first ones, and then one more."""
        if self._answers:
            hour = datetime.now(UTC).strftime("%Y-%m-%dT%H")
            key, by = f"answers:{repo.id}:{trigger.actor.id}:{hour}", f"{trigger.delivery_id}/{ordinal}"
            place = None if key in self._silent else await self._store.place(key, by, most=self._answers + 1)
            if place is None:
                self._silent[key] = True  # so that the rest of a storm costs nothing any more
                return
            if place == self._answers:
                text = (
                    f"I have answered {quiet(trigger.actor.login)} {self._answers} times here within the hour, and "
                    "stay silent until the next one begins. Work that is asked for is still done."
                )
        mark = marker("reply", f"{trigger.delivery_id}/{ordinal}")
        body = self._clean(render("comments/reply.md.j2", marker=mark, text=text))
        await self._say(repo, number, trigger, mark, body)

    async def _say(self, repo: Repo, number: int, trigger: Trigger, mark: str, body: str) -> None:
        """Answer where somebody wrote: in the thread of the diff or, where there is none (any more), below."""
        if trigger.thread is not None:
            client, me = self._client(repo), (await self._github.identity()).user_id
            try:
                if not is_there(await comments_on_diff(client, repo, number), mark, me):
                    await reply(client, repo, number, trigger.thread, body, mark=mark, me=me)
            except (NotFound, Unprocessable) as error:
                log.info("the thread is gone", thread=trigger.thread, error=str(error))
            else:
                return
        await self._upsert_comment(repo, number, mark, body, known=None)

    async def comment(
        self, repo: Repo, number: int, mark: str, body: str, *, known: int | None = None
    ) -> int:
        """Write the one comment of ours that has the hidden line ``mark``, or edit it; returns its id.

        ``known``: its id, for when somebody may have taken that line out.
        """
        return await self._upsert_comment(repo, number, mark, self._clean(body), known=known)

    async def react(self, repo: Repo, number: int, trigger: Trigger, content: str) -> None:
        """Put a reaction (👀 ``eyes``, 🚀 ``rocket`` …) on what triggered us.

        Best effort: a reaction is never worth a failed job.
        """
        try:
            if trigger.comment_kind == "review_body":
                await self._react_to_review(repo, number, trigger, content)
            else:
                await self._client(repo).post(
                    self._reactions_of(repo, number, trigger), data={"content": content}
                )
        except (GitHubError, GitHubUnavailable) as error:
            log.warning("no reaction", content=content, error=str(error))

    async def _react_to_review(self, repo: Repo, number: int, trigger: Trigger, content: str) -> None:
        # REST knows reactions to the comments of a review's diff only
        client, review = self._client(repo), str(trigger.comment_id)
        url = self._path(repo, "/pulls/{number}/reviews/{id}", number=number, id=review)
        await client.graphql(_REACT, review=(await client.getitem(url))["node_id"], content=content.upper())

    def _reactions_of(self, repo: Repo, number: int, trigger: Trigger) -> str:
        if trigger.comment_id is None:
            return self._path(repo, "/issues/{number}/reactions", number=number)
        comments = "pulls" if trigger.comment_kind == "review" else "issues"
        return self._path(repo, f"/{comments}/comments/{{id}}/reactions", id=trigger.comment_id)

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
        return self._github.repository(repo, SPEAK)

    def _path(self, repo: Repo, rest: str, **values: str | int) -> str:
        return path("/repos/{owner}/{repo}" + rest, None, owner=repo.owner, repo=repo.name, **values)

    def _clean(self, text: str) -> str:
        return clip(self._redactor.text(text))


def shown_on(job: Job) -> list[str]:
    """Commits on which a job that has not ended has its check run: the pull request's as it found it, and its own."""
    began = job.base_sha if job.target is TargetKind.pull_request else None
    return list(dict.fromkeys(sha for sha in (began, job.marker_sha) if sha))


def _written_by(body: str) -> str | None:
    """The id of the job whose words a pull request's text is, exactly; None when people have changed it."""
    first, _, text = body.partition("\n")
    found = _PULL_MARK.fullmatch(first.strip())
    return found[1] if found and found[2] == _digest([_flat(text)]) else None


def _unfinished(pull: Mapping[str, Any]) -> bool:
    """Whether a pull request of ours has no work in it yet: where a repository has no drafts, its title tells that."""
    return bool(pull.get("draft")) or str(pull["title"]).startswith(("Plan: ", "Asks: "))


def _flat(text: str) -> str:
    """``text`` whatever becomes of its line ends on the way."""
    return "\n".join(line.rstrip() for line in text.splitlines()).strip()


def _digest(sentences: Sequence[str]) -> str:
    """A short stable key of what is said."""
    return hashlib.sha256("\0".join(sentences).encode()).hexdigest()[:16]


def _took(job: Job) -> float:
    if job.started_at is None:
        return 0
    return ((job.finished_at or datetime.now(UTC)) - job.started_at).total_seconds()


def _iso(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
