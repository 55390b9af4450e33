"""The next job of a plan's conversation, and whether an approved plan was ever begun with. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from bot.model import (
    DECIDED,
    Approval,
    ApprovalKind,
    ApprovalState,
    Job,
    JobKind,
    Request,
    TargetKind,
    Trigger,
)
from bot.named_jobs import goes_on
from bot.profiles import asked_for
from bot.prompts import approved_plan


def after(approval: Approval, job: Job, kind: JobKind, text: str) -> Request:
    """The job that follows ``job`` when people have decided: in its pull request, for whoever asked for the plan."""
    return Request(
        repo=approval.repo,
        number=approval.pull_number,
        target=TargetKind.pull_request,
        trigger=Trigger(delivery_id=f"approval:{approval.id}", event=DECIDED, actor=job.trigger.actor),
        instructions=text,
        title=job.title,
        body=job.body,
        agent=job.agent,
        model=job.model,
        profile=asked_for(job),
        named=goes_on(job.named),
        # cut to what is allowed by now: nobody asked for that time here
        usual_timeout=job.timeout,
        budget=job.budget,
        kind=kind,
        approval_id=None if kind is JobKind.plan else approval.id,
        left_out=tuple(job.left_out),
        judged=True,
    )


def work_by(plan: Approval, job: Job, *, by: str, words: str) -> Request:
    """The work as planned by ``job``, which ``by`` has approved with ``words``."""
    return after(plan, job, JobKind.task, approved_plan(plan, by=by, words=words))


def not_begun(asked: Sequence[Approval], jobs: Collection[Job]) -> Approval | None:
    """The plan that was approved last and that no job has gone by, of what one job has ``asked`` (the newest first).

    ``jobs``: those in the pull request. None where another answer came after it, or another job is at it. Whether the
    approval still holds on GitHub is found out where every approval is: right before the work starts.
    """
    plan = next((one for one in asked if one.kind is ApprovalKind.plan), None)
    if plan is None or plan.state is not ApprovalState.approved or plan.used_at is not None:
        return None
    return None if any(job.approval_id == plan.id for job in jobs) else plan
