"""A plan is approved and its work refused at that moment: the yes is not spent, and is checked before it is used."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import update

from bot.model import ApprovalState, FailureKind, JobKind, JobState, Phase
from bot.schema import jobs
from tests.scenarios.test_plan_gate import STEPS, approvals, planned, said
from tests.scenarios.world import REPO, World, world

pytestmark = pytest.mark.timeout(180)


async def forget_the_hour(box: World) -> None:
    async with box.store.engine.begin() as connection:
        await connection.execute(update(jobs).values(created_at=datetime.now(UTC) - timedelta(hours=2)))


async def refused_at_the_yes(box: World) -> tuple[int, int, int]:
    """The issue and the pull request of a plan that was approved when no more jobs were taken; and the review."""
    number = await planned(box)
    issue = (await box.job(number)).number
    review = await box.github.as_user("octocat").review(REPO, number, "APPROVE", STEPS)
    await box.dealt_with()
    assert said(box, number, "so no more are taken")
    assert len(await box.store.recent_jobs()) == 1
    return issue, number, int(review["id"])


async def test_a_yes_whose_work_was_refused_is_not_spent(tmp_path: Path) -> None:
    async with world(tmp_path, plan_first=True, limit_conversation_hour=1) as box:
        issue, number, _ = await refused_at_the_yes(box)
        maria = box.github.as_user("maria")
        await maria.comment(REPO, issue, "/agent retry")
        await box.dealt_with()
        assert len(await box.store.recent_jobs()) == 1, "the limit still holds, and no other plan is made"
        await forget_the_hour(box)
        await maria.comment(REPO, issue, "/agent retry")
        work = await box.ended(number, nth=1)
        (question,) = await approvals(box).recent()
        assert (work.kind, work.state) == (JobKind.task, JobState.succeeded), work.message
        assert (work.approval_id, question.used_by) == (question.id, work.id)
        assert await box.github.file(REPO, work.branch or "", "numbers.txt") == "1\n2\n3\n4"


@pytest.mark.parametrize("told", [True, False])
async def test_a_yes_that_was_taken_back_since_starts_nothing(told: bool, tmp_path: Path) -> None:
    async with world(tmp_path, plan_first=True, limit_conversation_hour=1) as box:
        issue, number, review = await refused_at_the_yes(box)
        await forget_the_hour(box)
        octocat, url = box.github.as_user("octocat"), box.github.webhook_url
        if not told:
            box.github.webhook_url = None
        await octocat.dismiss_review(REPO, number, review, "No.")
        await box.dealt_with()
        box.github.webhook_url = url
        await octocat.comment(REPO, number, "/agent retry")
        job = await box.ended(issue if told else number, nth=1)
        if told:  # another plan, as of any that was not approved
            assert (job.kind, job.approval_id) == (JobKind.plan, None)
        else:  # it is found out where every approval is looked at: right before it is used
            assert (job.kind, job.phase, job.failure) == (JobKind.task, Phase.policy, FailureKind.refused)
            assert "was dismissed" in job.message
        assert await box.github.file(REPO, job.branch or "", "numbers.txt") is None
        assert ApprovalState.approved not in [one.state for one in await approvals(box).recent()]


async def test_less_time_than_when_it_was_planned_refuses_no_approved_work(tmp_path: Path) -> None:
    async with world(tmp_path, plan_first=True) as box:
        number = await planned(box)
        await box.stop_worker()
        maria = box.github.as_user("maria")
        await maria.push_commit(REPO, "main", {".github/conductor.yml": "limits: {timeout: 60}\n"})
        await box.github.as_user("octocat").review(REPO, number, "APPROVE", STEPS)
        work = await box.job(number, nth=1)
        assert (work.kind, work.timeout) == (JobKind.task, 60)
