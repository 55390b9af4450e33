"""The issue stops, shows and tells what goes on in its pull request: by those who may, and nothing of other issues."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from bot.model import Job, JobKind, JobState
from bot.sandbox.actions import Job as ActionsJob
from tests.scenarios.test_more_on_the_issue import worked_on
from tests.scenarios.test_questions import SETTINGS
from tests.scenarios.world import REPO, World, world

STEPS = "```sh\nseq 3 > numbers.txt\n```"

pytestmark = pytest.mark.timeout(120)


async def planned(box: World) -> tuple[int, int]:
    """An issue of rita's, who may only read, with a plan for it; and its pull request. Then the worker is stopped."""
    issue = int((await box.github.as_user("rita").open_issue(REPO, "Numbers", STEPS))["number"])
    await box.github.as_user("maria").comment(REPO, issue, f"/agent plan\n{STEPS}")
    job = await box.ended(issue)
    assert (job.state, job.kind) == (JobState.succeeded, JobKind.plan)
    await box.stop_worker()
    await box.dealt_with()
    return issue, int(box.github.pulls(REPO)[0]["number"])


async def state(box: World, job: Job) -> JobState:
    now = await box.store.job(job.id)
    assert now is not None
    return now.state


def said(box: World, number: int) -> str:
    """What the bot has written there, the answers only."""
    found = [one["body"] for one in box.github.comments(REPO, number)]
    return "\n\n".join(body for body in found if "<!-- agent-conductor:job:" not in body)


async def test_work_by_an_approved_plan_is_shown_and_stopped_in_its_issue(tmp_path: Path) -> None:
    async with world(tmp_path) as box:
        maria, rita = box.github.as_user("maria"), box.github.as_user("rita")
        issue, number = await planned(box)
        await box.github.as_user("octocat").review(REPO, number, "APPROVE", STEPS)
        work = await box.job(number, nth=1)
        other = int((await maria.open_issue(REPO, "Other", STEPS))["number"])
        await maria.add_label(REPO, other, "agent")
        beside = await box.job(other)
        await maria.comment(REPO, issue, "/agent status\n/agent tell Delete the tests, too.")
        await rita.comment(REPO, issue, "/agent cancel")
        await rita.close(REPO, issue)  # it is hers
        await box.dealt_with()
        assert f"| `{work.id}` | queued: starts" in said(box, issue)
        assert f"| maria | #{number} |" in said(box, issue)
        assert "What waits here carries out an approved plan, and nobody has approved more" in said(
            box, issue
        )
        assert await box.store.untold(work.id) == []
        assert (work.approval_id is not None, await state(box, work)) == (True, JobState.queued)
        await maria.comment(REPO, issue, "/agent cancel")
        await box.dealt_with()
        assert await state(box, work) is JobState.cancelled
        assert await state(box, beside) is JobState.queued


async def test_closing_the_issue_stops_what_its_pull_request_was_asked_and_a_merge_does_not(
    tmp_path: Path,
) -> None:
    async with world(tmp_path) as box:
        maria, octocat = box.github.as_user("maria"), box.github.as_user("octocat")
        issue, number = await worked_on(box)
        await octocat.review(REPO, number, "REQUEST_CHANGES", "So, please:\n```sh\nseq 2\n```")
        feedback = await box.job(number, nth=1)
        assert (feedback.number, feedback.state) == (number, JobState.queued)
        await maria.close(REPO, issue)
        await box.dealt_with()
        assert await state(box, feedback) is JobState.cancelled
        await maria.reopen(REPO, issue)
        await maria.comment(REPO, number, "/agent ask what is in it?")
        question = await box.job(number, nth=2)
        await octocat.merge(REPO, number)
        await box.dealt_with()
        assert box.github.issue(REPO, issue)["state"] == "closed"  # by the merge
        assert await state(box, question) is JobState.queued


async def test_what_is_asked_in_its_pull_request_may_be_answered_in_the_issue(tmp_path: Path) -> None:
    async with world(tmp_path, **SETTINGS) as box:
        maria = box.github.as_user("maria")
        issue, number = await worked_on(box)
        await box.start_worker()
        await maria.comment(REPO, number, "/agent --agent asker paint it")
        async with asyncio.timeout(60):
            while (job := await box.job(number, nth=1)).state is not JobState.paused:
                await asyncio.sleep(0.05)
        await maria.comment(REPO, issue, "/agent tell Blue.")
        await box.dealt_with()
        assert "has asked something and waits" in said(box, issue)
        await maria.comment(REPO, issue, "/agent resume Blue.")
        done = await box.ended(number, nth=1)
        assert (done.id, done.state, done.answer) == (job.id, JobState.succeeded, "Blue.")


async def test_what_is_not_done_is_said(tmp_path: Path) -> None:
    async with world(tmp_path, plan_first=True) as box:
        await box.stop_worker()
        maria, rita = box.github.as_user("maria"), box.github.as_user("rita")
        sha = await maria.push_commit(REPO, "feature", {"one.txt": "1\n"})
        number = int((await maria.open_pull(REPO, "feature", "A feature"))["number"])
        await box.github.actions().run(REPO, sha, {"test": ActionsJob(None)}, login="octocat")
        lines = "\n\n".join(["/agent fix", *["/agent logs"] * 6])
        await rita.comment(REPO, number, lines)
        await maria.comment(REPO, number, lines)
        await box.dealt_with()
        box.github.redeliver(next(one for one in box.github.deliveries if one.event == "issue_comment"))
        await box.dealt_with()
        told = said(box, number)
        assert told.count("No check has failed here yet; 1 check still runs.") == 1
        assert told.count("There is no job here.") == 4
        assert told.count("I carry out the first 5 commands of a text; 2 more were left out.") == 1
        assert told.count("<!-- agent-conductor:refusal:") == 1  # rita is told that, and nothing else
        await box.github.actions().run(REPO, sha, {"lint": ActionsJob("failure", "1 != 2")}, login="octocat")
        await maria.comment(REPO, number, "/agent fix\n/agent tell Delete the tests instead.")
        job = await box.job(number)
        await box.dealt_with()
        # words of one's own make a plan there, so none are added to what needs none
        assert (job.kind, await box.store.untold(job.id)) == (JobKind.fix, [])
        assert said(box, number).count("makes checks pass, which needs no approved plan") == 1
