"""Which drafts nobody needs any more, on SQLite and on PostgreSQL."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from bot.approval_store import ApprovalStore
from bot.audit import Audit
from bot.model import (
    Approval,
    ApprovalKind,
    ApprovalState,
    Job,
    JobKind,
    JobState,
    TargetKind,
)
from bot.redact import Redactor
from bot.store import Store
from tests.jobs import HELLO, asked_job

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
ISSUE, PULL, MARKER = 1, 7, "a" * 40


def job(name: str, state: JobState, **changes: Any) -> Job:
    return asked_job(name, **{"state": state, "created_at": NOW, "thread_id": name} | changes)


def opener(state: JobState, **changes: Any) -> Job:
    """The job that opened the draft."""
    return job("opener", state, **{"pull_number": PULL, "marker_sha": MARKER} | changes)


def follower(state: JobState, **changes: Any) -> Job:
    """One that was asked for in the draft."""
    return job("follower", state, number=PULL, target=TargetKind.pull_request, **changes)


def asked(state: ApprovalState, kind: ApprovalKind = ApprovalKind.plan, **changes: Any) -> Approval:
    values: dict[str, Any] = {
        "id": f"p-{state}-{kind}",
        "kind": kind,
        "job_id": "opener",
        "repo": HELLO,
        "pull_number": PULL,
        "subject": "?",
        "sha": MARKER,
        "state": state,
        "asked_at": NOW,
        "expires_at": NOW + timedelta(days=1),
    }
    return Approval(**values | changes)


PLANNED = opener(JobState.succeeded, kind=JobKind.plan)
EXPIRED, WITHDRAWN = asked(ApprovalState.expired), asked(ApprovalState.withdrawn)
LATER = NOW + timedelta(hours=1)

IDLE: dict[str, tuple[list[Job], list[Approval]]] = {
    **{
        f"its job ended: {state}": ([opener(state)], [])
        for state in (JobState.failed, JobState.cancelled, JobState.timed_out, JobState.lost)
    },
    "nothing was changed": ([opener(JobState.succeeded)], []),
    "the plan expired": ([PLANNED], [EXPIRED]),
    "the plan was taken back": ([PLANNED], [WITHDRAWN]),
    "the second plan expired": (
        [PLANNED, follower(JobState.succeeded, kind=JobKind.plan)],
        [asked(ApprovalState.refused), asked(ApprovalState.expired, job_id="follower", asked_at=LATER)],
    ),
    "nobody approved the patch": (
        [opener(JobState.succeeded, held_back="{}")],
        [asked(ApprovalState.expired, ApprovalKind.protected)],
    ),
    "done afresh": (
        [PLANNED, job("again", JobState.running, retry_of="opener", number=9)],
        [asked(ApprovalState.refused)],
    ),
    "for a fork's pull request": (
        [opener(JobState.failed, number=3, target=TargetKind.pull_request, fork=True)],
        [],
    ),
}
NEEDED: dict[str, tuple[list[Job], list[Approval]]] = {
    "it works": ([opener(JobState.running)], []),
    "the plan waits": ([PLANNED], [asked(ApprovalState.pending)]),
    "the plan waits once more": ([PLANNED], [EXPIRED, asked(ApprovalState.pending, asked_at=LATER)]),
    "the plan is approved": ([PLANNED], [asked(ApprovalState.approved)]),
    "the plan was refused": ([PLANNED], [asked(ApprovalState.refused)]),
    "the patch was refused": (
        [opener(JobState.succeeded, held_back="{}")],
        [asked(ApprovalState.refused, ApprovalKind.protected)],
    ),
    "somebody is at it": ([opener(JobState.failed), follower(JobState.queued)], []),
    "work was pushed": ([PLANNED, follower(JobState.succeeded, head_sha="b" * 40)], [EXPIRED]),
    "its own work was pushed": ([opener(JobState.failed, head_sha="b" * 40)], []),
    "the approved work failed": (  # a retry goes on there
        [PLANNED, follower(JobState.failed)],
        [
            asked(ApprovalState.approved, used_at=NOW),
            asked(ApprovalState.withdrawn, ApprovalKind.network, job_id="follower", asked_at=LATER),
        ],
    ),
    "it was closed before": ([opener(JobState.failed, marker_sha=None)], []),
    "in somebody's own pull request": (
        [opener(JobState.failed, number=PULL, target=TargetKind.pull_request)],
        [],
    ),
}


async def found(engine: AsyncEngine, jobs: list[Job], approvals: list[Approval]) -> list[str]:
    store = Store(engine)
    for one in jobs:
        assert await store.add_job(one)
        if one.state.final:
            await store.mark_reported(one.id, one.state)
    kept = ApprovalStore(engine, Audit(engine, Redactor()))
    for approval in approvals:
        assert await kept.ask(approval)
    return [one.id for one in await store.jobs_with_idle_drafts()]


@pytest.mark.parametrize("case", IDLE)
async def test_nobody_needs_it(engine: AsyncEngine, case: str) -> None:
    assert await found(engine, *IDLE[case]) == ["opener"]


@pytest.mark.parametrize("case", NEEDED)
async def test_it_stays(engine: AsyncEngine, case: str) -> None:
    assert await found(engine, *NEEDED[case]) == []


async def test_first_the_end_is_told(engine: AsyncEngine) -> None:
    store = Store(engine)
    assert await store.add_job(opener(JobState.failed))
    assert await store.jobs_with_idle_drafts() == []
