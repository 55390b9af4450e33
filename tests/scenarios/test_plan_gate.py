"""Where every job needs an approved plan, no way leads around it: feedback, `fix`, more words, and doing it again."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import update

from bot.approval_store import ApprovalStore
from bot.audit import Audit
from bot.model import Approval, ApprovalKind, ApprovalState, FailureKind, Job, JobKind, JobState, Phase
from bot.sandbox.actions import Job as ActionsJob
from bot.sandbox.faults import Fault
from bot.schema import jobs
from tests.scenarios.test_questions import SETTINGS
from tests.scenarios.test_questions import asked as asked_in
from tests.scenarios.world import REPO, World, world

STEPS = "```sh\nseq 4 > numbers.txt\n```"
FAILS = "```sh\nexit 1\n```"

pytestmark = pytest.mark.timeout(180)


def approvals(box: World) -> ApprovalStore:
    return ApprovalStore(box.store.engine, Audit(box.store.engine, box.redactor))


async def planned(box: World) -> int:
    """The draft pull request with the plan that became of maria's label."""
    maria = box.github.as_user("maria")
    issue = (await maria.open_issue(REPO, "Numbers", STEPS))["number"]
    await maria.add_label(REPO, issue, "agent")
    job = await box.ended(issue)
    assert (job.state, job.kind) == (JobState.succeeded, JobKind.plan)
    await box.dealt_with()
    (pull,) = box.github.pulls(REPO)
    assert pull["draft"]
    return int(pull["number"])


async def approved(box: World, number: int, words: str) -> tuple[Job, int]:
    """The job that octocat's approval started, when it has ended; and the review."""
    review = await box.github.as_user("octocat").review(REPO, number, "APPROVE", words)
    job = await box.ended(number, nth=1)
    assert job.kind is JobKind.task
    await box.dealt_with()
    return job, int(review["id"])


def said(box: World, number: int, words: str) -> bool:
    return any(words in one["body"] for one in box.github.comments(REPO, number))


async def failing_pull(box: World) -> int:
    """A pull request of maria's, one of whose checks fails."""
    maria = box.github.as_user("maria")
    await maria.push_commit(REPO, "feature", {"one.txt": "l\n"})
    pull = await maria.open_pull(REPO, "feature", "A feature")
    await box.github.actions().run(
        REPO, pull["head"]["sha"], {"test": ActionsJob("failure", "'l' != '1'")}, login="octocat"
    )
    await box.dealt_with()
    return int(pull["number"])


# --- feedback


@pytest.mark.parametrize("how", ["cancelled", "expired"])
async def test_feedback_on_a_plan_that_nobody_decided_about_makes_a_plan(how: str, tmp_path: Path) -> None:
    async with world(tmp_path, plan_first=True) as box:
        number = await planned(box)
        if how == "cancelled":
            await box.github.as_user("maria").comment(REPO, number, "/agent cancel")
            await box.dealt_with()
        else:
            (question,) = await approvals(box).recent()
            await approvals(box).end(question, ApprovalState.expired, why="nobody decided in time")
        await box.github.as_user("octocat").review(REPO, number, "REQUEST_CHANGES", STEPS)
        job = await box.ended(number, nth=1)
        assert (job.state, job.kind, job.approval_id) == (JobState.succeeded, JobKind.plan, None)
        assert await box.github.file(REPO, job.branch or "", "numbers.txt") is None
        (question, _) = await approvals(box).recent()
        assert (question.job_id, question.state) == (job.id, ApprovalState.pending)


async def test_feedback_on_what_an_approved_plan_made_is_followed(tmp_path: Path) -> None:
    async with world(tmp_path, plan_first=True) as box:
        number = await planned(box)
        await approved(box, number, STEPS)
        more = "```sh\nseq 5 > numbers.txt\n```"
        await box.github.as_user("octocat").review(REPO, number, "REQUEST_CHANGES", f"Five, please.\n{more}")
        job = await box.ended(number, nth=2)
        assert (job.state, job.kind) == (JobState.succeeded, JobKind.task)
        assert await box.github.file(REPO, job.branch or "", "numbers.txt") == "1\n2\n3\n4\n5"


async def test_feedback_on_approved_work_that_pushed_nothing_makes_a_plan(tmp_path: Path) -> None:
    async with world(tmp_path, plan_first=True) as box:
        number = await planned(box)
        failed, _ = await approved(box, number, FAILS)
        assert failed.state is JobState.failed
        await box.stop_worker()
        await box.github.as_user("octocat").review(REPO, number, "REQUEST_CHANGES", STEPS)
        assert (await box.job(number, nth=2)).kind is JobKind.plan


async def test_a_label_that_wants_a_plan_holds_in_the_issue_s_pull_request_too(tmp_path: Path) -> None:
    async with world(tmp_path) as box:
        maria = box.github.as_user("maria")
        rules = "approvals:\n  plan: {labels: [risky]}\n"
        await maria.push_commit(REPO, "main", {".github/conductor.yml": rules})
        issue = (await maria.open_issue(REPO, "Numbers", STEPS))["number"]
        await maria.add_label(REPO, issue, "risky")
        await maria.add_label(REPO, issue, "agent")
        assert (await box.ended(issue)).kind is JobKind.plan
        await box.dealt_with()
        (pull,) = box.github.pulls(REPO)
        assert pull["labels"] == []
        await box.stop_worker()
        await maria.comment(REPO, int(pull["number"]), f"/agent\n{STEPS}")
        job = await box.job(int(pull["number"]), nth=1)
        assert (job.kind, job.approval_id) == (JobKind.plan, None)


# --- fix


async def test_a_fix_with_words_of_one_s_own_makes_a_plan_and_without_any_it_fixes(tmp_path: Path) -> None:
    async with world(tmp_path, plan_first=True) as box:
        await box.stop_worker()
        number = await failing_pull(box)
        maria = box.github.as_user("maria")
        await maria.comment(REPO, number, "/agent fix")
        plain = await box.job(number)
        assert plain.kind is JobKind.fix
        assert "'l' != '1'" in plain.instructions
        await maria.comment(REPO, number, "/agent fix and delete the tests")
        wordy = await box.job(number, nth=1)
        assert (wordy.kind, wordy.approval_id) == (JobKind.plan, None)
        assert "delete the tests" in wordy.instructions
        assert "'l' != '1'" in wordy.instructions


async def test_words_for_a_fix_that_stopped_make_a_plan(tmp_path: Path) -> None:
    async with world(tmp_path, plan_first=True) as box:
        await box.stop_worker()
        number = await failing_pull(box)
        maria = box.github.as_user("maria")
        await maria.comment(REPO, number, "/agent fix")
        await box.job(number)
        await maria.comment(REPO, number, "/agent cancel")
        await box.ended(number)
        await maria.comment(REPO, number, "/agent resume and delete the tests")
        job = await box.job(number, nth=1)
        assert (job.kind, job.go_on) == (JobKind.plan, False)


# --- more words


async def test_what_carries_out_an_approved_plan_is_told_nothing_that_nobody_approved(tmp_path: Path) -> None:
    async with world(tmp_path, plan_first=True) as box:
        number = await planned(box)
        await box.github.as_user("octocat").review(REPO, number, "APPROVE", "```sh\nsleep 60\n```")
        async with asyncio.timeout(60):
            while (job := await box.job(number, nth=1)).phase is not Phase.agent:
                await asyncio.sleep(0.05)
        assert job.approval_id is not None
        maria = box.github.as_user("maria")
        await maria.comment(REPO, number, "/agent tell Delete the tests instead.")
        await box.dealt_with()
        said = [one["body"] for one in box.github.comments(REPO, number)]
        assert "carries out an approved plan, and nobody has approved more" in said[-1]
        assert await box.store.untold(job.id) == []
        await maria.comment(REPO, number, "/agent cancel")
        await box.ended(number, nth=1)


# --- once more


async def test_words_for_approved_work_that_stopped_make_a_new_plan_of_both(tmp_path: Path) -> None:
    async with world(tmp_path) as box:  # also where no plan is wanted: somebody asked for one
        maria = box.github.as_user("maria")
        issue = (await maria.open_issue(REPO, "Numbers", STEPS))["number"]
        await maria.comment(REPO, issue, f"/agent plan count to four\n{STEPS}")
        await box.ended(issue)
        await box.dealt_with()
        number = int(box.github.pulls(REPO)[0]["number"])
        failed, _ = await approved(box, number, FAILS)
        assert failed.state is JobState.failed
        await box.stop_worker()
        await maria.comment(REPO, number, "/agent resume and delete the tests")
        job = await box.job(number, nth=2)
        assert (job.kind, job.approval_id, job.go_on) == (JobKind.plan, None, False)
        (question,) = await approvals(box).recent()
        for part in ("count to four", question.subject, "and delete the tests"):
            assert part in job.instructions
        assert "Carry out the plan" not in job.instructions
        await box.dealt_with()
        assert said(box, number, "This is planned anew: nobody has approved what is new.")


async def test_a_retry_goes_by_the_approval_while_it_holds_and_then_plans_anew(tmp_path: Path) -> None:
    async with world(tmp_path, plan_first=True) as box:
        number = await planned(box)
        failed, review = await approved(box, number, FAILS)
        assert failed.state is JobState.failed
        assert failed.failure is not FailureKind.refused
        octocat = box.github.as_user("octocat")
        # who has approved it may have it done once more: nothing new is asked for; also where it was asked for first
        plan = await box.job(number)
        await octocat.comment(REPO, plan.number, "/agent retry")
        again = await box.ended(number, nth=2)
        assert (again.kind, again.approval_id) == (JobKind.task, failed.approval_id)
        assert again.phase is not Phase.policy
        (question,) = await approvals(box).recent()
        assert question.used_by == again.id
        await octocat.dismiss_review(REPO, number, review, "No.")
        await box.dealt_with()
        await octocat.comment(REPO, number, "/agent retry")
        refused = await box.ended(number, nth=3)
        assert (refused.kind, refused.phase, refused.failure) == (
            JobKind.task,
            Phase.policy,
            FailureKind.refused,
        )
        assert "was dismissed" in refused.message
        assert "`/agent retry`" in refused.message
        await octocat.comment(REPO, number, "/agent retry")
        anew = await box.ended(number, nth=4)
        assert (anew.kind, anew.approval_id, anew.state) == (JobKind.plan, None, JobState.succeeded)
        await box.dealt_with()
        assert said(box, number, "This is planned anew: its approval did not hold any more.")


async def test_what_was_pushed_is_not_done_once_more_by_the_old_approval(tmp_path: Path) -> None:
    async with world(tmp_path, plan_first=True) as box:
        number = await planned(box)
        done, _ = await approved(box, number, STEPS)
        assert done.state is JobState.succeeded
        await box.stop_worker()
        await box.github.as_user("maria").comment(REPO, number, "/agent retry")
        job = await box.job(number, nth=2)
        assert (job.kind, job.approval_id) == (JobKind.plan, None)
        await box.dealt_with()
        assert said(box, number, "This is planned anew: what was approved is done.")


async def test_a_push_after_the_last_look_at_the_approval_is_not_built_upon(tmp_path: Path) -> None:
    async with world(tmp_path, plan_first=True) as box:
        number = await planned(box)
        await box.stop_worker()
        await box.github.as_user("octocat").review(REPO, number, "APPROVE", STEPS)
        job = await box.job(number, nth=1)
        box.github.faults.add(Fault(path="info/refs", delay=3.0))  # the branch is fetched after that look
        await box.start_worker()
        async with asyncio.timeout(60):
            while (await box.job(number, nth=1)).phase is not Phase.workspace:
                await asyncio.sleep(0.01)
        branch = next(pull["head"]["ref"] for pull in box.github.pulls(REPO) if pull["number"] == number)
        pushed = await box.github.as_user("maria").push_commit(REPO, branch, {"evil.txt": "x"})
        done = await box.ended(number, nth=1)
        assert (done.id, done.state, done.failure) == (job.id, JobState.failed, FailureKind.conflict)
        assert (await box.github.branches(REPO))[branch] == pushed


# --- time


async def test_a_question_for_reviewers_has_its_own_time(tmp_path: Path) -> None:
    async with world(tmp_path, hibernate_after=0, answer_days=2, **SETTINGS) as box:
        without = await asked_in(box, hibernated=True)
        number = await asked_in(box, hibernated=True)
        waits, now = await box.job(number), datetime.now(UTC)
        question = Approval(
            id="p1",
            kind=ApprovalKind.text,
            job_id=waits.id,
            repo=waits.repo,
            pull_number=number,
            subject="May I?",
            sha="a" * 40,
            state=ApprovalState.pending,
            asked_at=now,
            expires_at=now + timedelta(days=9),
        )
        assert await approvals(box).ask(question)
        await approvals(box).settle(question)
        async with box.store.engine.begin() as connection:
            await connection.execute(update(jobs).values(asked_at=now - timedelta(days=3)))
        # the newest is looked at first: when the other one is over, this one was seen
        assert (await box.given_up(without)).state is JobState.timed_out
        assert (await box.job(number)).state is JobState.paused
        ended = await approvals(box).end(question, ApprovalState.withdrawn, why="it is over")
        assert ended is not None
        await approvals(box).settle(ended)
        assert (await box.given_up(number)).state is JobState.timed_out


async def test_where_the_pull_request_is_closed_the_agent_hears_of_that(tmp_path: Path) -> None:
    async with world(tmp_path, **SETTINGS) as box:
        issue = await asked_in(box)
        waits, now = await box.job(issue), datetime.now(UTC)
        rita = box.github.as_user("rita")  # who may read, and opened a pull request of her own
        await box.github.as_user("maria").push_commit(REPO, "hers", {"a.txt": "a"})
        pull = await rita.open_pull(REPO, "hers", "Hers")
        question = Approval(
            id="p1",
            kind=ApprovalKind.text,
            job_id=waits.id,
            repo=waits.repo,
            pull_number=pull["number"],
            subject="May I?",
            sha=pull["head"]["sha"],
            state=ApprovalState.pending,
            asked_at=now,
            expires_at=now + timedelta(days=9),
        )
        assert await approvals(box).ask(question)
        await rita.close(REPO, pull["number"])
        async with asyncio.timeout(60):
            while (job := await box.job(issue)).answer is None:
                await asyncio.sleep(0.05)
        assert job.answer.startswith("The pull request was closed. Nobody can decide about it now")
        assert (await box.ended(issue)).state is JobState.succeeded
