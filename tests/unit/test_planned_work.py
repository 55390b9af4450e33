"""Which approved plan a retry may begin with."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from bot.model import Approval, ApprovalKind, ApprovalState, JobKind, JobState
from bot.planned_work import not_begun, work_by
from tests.jobs import asked_job

NOW = datetime(2026, 11, 1, tzinfo=UTC)
JOB = asked_job(kind=JobKind.plan, state=JobState.succeeded)
PLAN = Approval(
    id="p1",
    kind=ApprovalKind.plan,
    job_id=JOB.id,
    repo=JOB.repo,
    pull_number=7,
    subject="Count.",
    sha="a" * 40,
    state=ApprovalState.approved,
    asked_at=NOW,
    expires_at=NOW + timedelta(days=3),
)


def changed(**changes: Any) -> Approval:
    return dataclasses.replace(PLAN, **changes)


def test_what_nobody_has_begun_is_begun() -> None:
    other = JOB.evolve(approval_id="p0")
    host = changed(id="p2", kind=ApprovalKind.network, state=ApprovalState.refused)
    assert not_begun([host, PLAN], [JOB, other]) is PLAN


@pytest.mark.parametrize("state", [state for state in ApprovalState if state is not ApprovalState.approved])
def test_what_is_not_approved_is_not_begun(state: ApprovalState) -> None:
    assert not_begun([changed(state=state)], []) is None
    assert not_begun([changed(id="p2", state=state), PLAN], []) is None, "an older yes"


def test_what_was_used_or_is_at_work_is_not_begun_again() -> None:
    assert not_begun([changed(used_at=NOW, used_by="j1")], []) is None
    assert not_begun([PLAN], [JOB.evolve(approval_id=PLAN.id)]) is None
    assert not_begun([changed(kind=ApprovalKind.text)], []) is None
    assert not_begun([], []) is None


def test_the_time_of_the_plan_is_no_wish() -> None:
    request = work_by(PLAN, JOB, by="octocat", words="Four.")
    assert (request.timeout, request.usual_timeout) == (None, JOB.timeout)
    assert (request.approval_id, request.number) == (PLAN.id, PLAN.pull_number)
    assert "Count." in request.instructions
    assert "Four." in request.instructions
