"""What a job asks reviewers: put where a review can decide about it, and checked again before it is used.

On a branch of ours an empty commit is made for it, in a draft pull request: a review is bound to that commit, and
whatever is pushed after it makes the review stale. On somebody else's branch the review is bound to the head as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import structlog

from bot.agent_requests import NotGrantable, grant_of
from bot.approval_desk import ApprovalDesk, ApprovalVoid
from bot.branches import PREFIX
from bot.config import Settings
from bot.errors import JobFailed
from bot.model import Approval, ApprovalKind, ApprovalState, Attempt, FailureKind, Job, Phase
from bot.publisher import Publisher
from bot.store import Store
from bot.terms import Grant

log = structlog.get_logger(__name__)


class Proposals:
    """Asks for approvals on behalf of attempts, and takes up what was approved."""

    def __init__(self, *, settings: Settings, store: Store, publisher: Publisher, desk: ApprovalDesk) -> None:
        self._settings = settings
        self._store = store
        self._publisher = publisher
        self._desk = desk

    async def propose(
        self,
        job: Job,
        attempt: Attempt,
        repository: Path,
        kind: ApprovalKind,
        subject: str,
        *,
        title: str,
        details: Mapping[str, Any] | None = None,
        at: str | None = None,
    ) -> Job:
        """Ask about ``subject`` (Markdown). Returns the changed job; may be repeated after a crash.

        ``at``: the commit that the job has just pushed; by default an empty one is made where the branch is ours.
        """
        pending = await self._desk.approvals.pending_of(job.id)
        if pending is not None and (pending.kind, pending.subject) == (kind, subject):
            return job.evolve(pull_number=job.pull_number or _pull(job, pending.pull_number))
        number = job.pull_number if job.own_branch else job.number
        if at is None and (job.branch or "").startswith(f"{PREFIX}/"):
            before = job.marker_sha
            job = await self._publisher.mark(job, attempt, repository, title=title, words=subject)
            if before and job.marker_sha and before != job.marker_sha:
                await self._publisher.left(job, before, now=job.marker_sha)
            if number is not None and kind in (ApprovalKind.plan, ApprovalKind.protected):
                await self._publisher.describe(job, number, title=title)
            elif number is None:
                await self._store.check_fence(job.id, attempt.fence)
                number = await self._publisher.open_pull(job, title=title, draft=True)
                job = job.evolve(pull_number=number)
                await self._store.note(job.id, fence=attempt.fence, pull_number=number)
        elif at is None:
            await self._publisher.check_open(job)
        sha = at or job.marker_sha or job.base_sha
        if number is None or sha is None:
            raise ValueError("the job has no pull request to ask on")
        await self._store.check_fence(job.id, attempt.fence)
        await self._desk.ask(job, kind, subject, sha=sha, pull_number=number, details=details)
        return job

    async def check(self, job: Job) -> Approval | None:
        """Make sure that what ``job`` carries out is approved, right before it starts. Raises JobFailed."""
        if job.approval_id is None:
            return None
        try:
            return await self._desk.use(job.approval_id, by=job.id)
        except ApprovalVoid as error:
            raise JobFailed(Phase.policy, FailureKind.refused, error.message, error.hint) from error

    async def covers(self, job: Job) -> bool:
        """Whether what :meth:`check` found approved is what ``job`` begins from: somebody may push in between."""
        if job.approval_id is None:
            return True
        return await self._desk.covers(job.approval_id, by=job.id, sha=job.base_sha or "")

    async def asked_by(self, job: Job) -> Job | None:
        """The job that asked for the approval of what ``job`` carries out."""
        approval = await self._desk.approvals.approval(job.approval_id or "")
        return await self._store.job(approval.job_id) if approval is not None else None

    async def grants(self, job: Job) -> tuple[list[Grant], list[str]]:
        """What reviewers have granted this job, each checked again; and a sentence for each that does not hold."""
        granted, void = [], []
        for approval in await self._desk.approvals.of_job(job.id):
            if approval.state is not ApprovalState.approved or approval.kind is ApprovalKind.plan:
                continue
            try:
                await self._desk.use(approval.id, by=job.id)
                grant = grant_of(approval.id, approval.kind, approval.details, self._settings)
            except (ApprovalVoid, NotGrantable) as error:
                log.warning("an approval does not hold", approval=approval.id, error=error.message)
                void.append(error.message)
            else:
                granted += [grant] if grant is not None else []
        return granted, void

    async def withdraw(self, job: Job) -> None:
        """The job has ended: nobody need decide any more about what it wanted while it worked."""
        await self._desk.withdraw(job.id)


def _pull(job: Job, number: int) -> int | None:
    """``number``, unless it is the pull request that the job is about: then it has none of its own."""
    return number if job.own_branch else None
