"""Approvals in the whole program: what happens between a review and its use, at once, and too late."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from bot.approval_store import ApprovalStore
from bot.audit import Audit
from bot.model import Approval, FailureKind, JobState, Phase
from tests.scenarios.world import REPO, World, world

STEPS = "```sh\nseq 4 > numbers.txt\n```"


async def plan(box: World) -> int:
    """The draft pull request with a plan that maria asked for."""
    maria = box.github.as_user("maria")
    issue = (await maria.open_issue(REPO, "Numbers", STEPS))["number"]
    await maria.comment(REPO, issue, "/agent plan")
    job = await box.ended(issue)
    assert job.state is JobState.succeeded, job.message
    await box.dealt_with()
    (pull,) = (one for one in box.github.pulls(REPO) if one["number"] == job.pull_number)
    assert pull["draft"]
    return int(pull["number"])


async def planned(box: World) -> int:
    """The same, and nobody works any more."""
    number = await plan(box)
    await box.stop_worker()
    return number


async def approvals(box: World) -> list[Approval]:
    return await ApprovalStore(box.store.engine, Audit(box.store.engine, box.redactor)).recent()


#: What may happen to the review of mona, who maintains the repository -> what the job says of it then.
TAKEN_BACK = {
    "pushed": "The branch has moved to",
    "dismissed": "The review of mona was dismissed.",
    "refused": "octocat requested changes.",
    "edited": "The review of mona was edited after it had decided.",
    "lost access": "That needs write access to this repository; @mona has read.",
    "suspended": "@mona's account is suspended.",
    "closed": "The pull request was closed.",
}


@pytest.mark.parametrize("how", TAKEN_BACK)
async def test_what_is_taken_back_before_the_work_starts_is_not_started(how: str, tmp_path: Path) -> None:
    async with world(tmp_path) as box:
        box.github.add_user("mona")
        box.github.set_role(REPO, "mona", "maintain")
        number = await planned(box)
        mona, octocat = box.github.as_user("mona"), box.github.as_user("octocat")
        review = await mona.review(REPO, number, "APPROVE", STEPS)
        await box.dealt_with()
        assert (await box.job(number, nth=1)).state is JobState.queued
        assert [(str(one.state), one.decided_by) for one in await approvals(box)] == [("approved", "mona")]
        # what follows is not told before it is used
        url, box.github.webhook_url = box.github.webhook_url, None
        match how:
            case "pushed":
                branch = box.github.pulls(REPO)[0]["head"]["ref"]
                await octocat.push_commit(REPO, branch, {"evil.txt": "not what was planned"})
            case "dismissed":
                await octocat.dismiss_review(REPO, number, review["id"], "No.")
            case "refused":
                await octocat.review(REPO, number, "REQUEST_CHANGES", "Wait.")
            case "edited":
                await mona.edit_review(REPO, number, review["id"], STEPS.replace("4", "5"))
            case "lost access":
                box.github.set_role(REPO, "mona", "read")
            case "suspended":
                box.github.suspend_user("mona")
            case "closed":
                await octocat.close(REPO, number)
        await box.start_worker()
        job = await box.ended(number, nth=1)
        assert (job.state, job.phase, job.failure) == (JobState.failed, Phase.policy, FailureKind.refused)
        assert "does not hold any more" in job.message
        assert TAKEN_BACK[how] in job.message
        assert await box.github.file(REPO, job.branch or "", "numbers.txt") is None
        assert [str(one.state) for one in await approvals(box)] == ["stale"]
        assert len(await box.store.recent_jobs()) == 2
        box.github.webhook_url = url


async def test_two_approvals_at_once_start_the_work_once(tmp_path: Path) -> None:
    async with world(tmp_path) as box:
        box.github.set_role(REPO, "tom", "maintain")
        number = await planned(box)
        await asyncio.gather(
            *(box.github.as_user(who).review(REPO, number, "APPROVE", STEPS) for who in ("octocat", "tom"))
        )
        await box.dealt_with()
        await box.start_worker()
        assert (await box.ended(number, nth=1)).state is JobState.succeeded
        assert len(await box.store.recent_jobs()) == 2
        assert [str(one.state) for one in await approvals(box)] == ["approved"]


async def test_a_review_that_is_delivered_late_and_twice_counts_once(tmp_path: Path) -> None:
    async with world(tmp_path) as box:
        number = await planned(box)
        url, box.github.webhook_url = box.github.webhook_url, None
        await box.github.as_user("octocat").review(REPO, number, "APPROVE", STEPS)
        assert [str(one.state) for one in await approvals(box)] == ["pending"]
        box.github.webhook_url = url
        missed = next(one for one in box.github.deliveries if one.event == "pull_request_review")
        for _ in range(2):
            box.github.redeliver(missed)
        await box.dealt_with()
        await box.start_worker()
        assert (await box.ended(number, nth=1)).state is JobState.succeeded
        assert len(await box.store.recent_jobs()) == 2


async def test_who_closes_the_pull_request_ends_the_question(tmp_path: Path) -> None:
    async with world(tmp_path) as box:
        number = await planned(box)
        octocat = box.github.as_user("octocat")
        await octocat.close(REPO, number)
        await box.dealt_with()
        assert [str(one.state) for one in await approvals(box)] == ["withdrawn"]
        await octocat.reopen(REPO, number)
        await octocat.review(REPO, number, "APPROVE", STEPS)
        await box.dealt_with()
        assert len(await box.store.recent_jobs()) == 1


async def test_cancelling_withdraws_what_was_asked(tmp_path: Path) -> None:
    async with world(tmp_path) as box:
        number = await planned(box)
        maria = box.github.as_user("maria")
        await maria.comment(REPO, number, "/agent cancel")
        await box.dealt_with()
        assert [str(one.state) for one in await approvals(box)] == ["withdrawn"]
        assert any("is withdrawn" in one["body"] for one in box.github.comments(REPO, number))
        await box.github.as_user("octocat").review(REPO, number, "APPROVE", STEPS)
        await box.dealt_with()
        assert len(await box.store.recent_jobs()) == 1


async def test_a_reader_cancels_nothing_that_was_asked(tmp_path: Path) -> None:
    async with world(tmp_path) as box:
        number = await planned(box)
        await box.github.as_user("rita").comment(REPO, number, "/agent cancel")
        await box.dealt_with()
        assert [str(one.state) for one in await approvals(box)] == ["pending"]
