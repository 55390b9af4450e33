"""More work that is asked for in an issue goes on in its open pull request: the asker, the rules and the races."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from bot.model import Job, JobKind, JobState, TargetKind
from tests.scenarios.world import REPO, World, world

STEPS = "```sh\nseq 3 > numbers.txt\n```"
MORE = "```sh\nseq 4 > numbers.txt\n```"

pytestmark = pytest.mark.timeout(180)


async def worked_on(box: World, *, by: str = "maria", label: str = "agent:shell") -> tuple[int, int]:
    """An issue and the pull request that came of maria's label. Then the worker is stopped."""
    issue = int((await box.github.as_user(by).open_issue(REPO, "Numbers", STEPS))["number"])
    await box.github.as_user("maria").add_label(REPO, issue, label)
    assert (await box.ended(issue)).state is JobState.succeeded
    await box.stop_worker()
    await box.dealt_with()
    return issue, int(box.github.pulls(REPO)[0]["number"])


async def jobs_in(box: World, number: int) -> list[Job]:
    """The jobs that go on in a pull request, oldest first."""
    repo_id = box.github.world.repository(*REPO.split("/")).id
    return [job for job in reversed(await box.store.jobs_on(repo_id, number)) if job.number == number]


async def test_two_at_once_a_redelivery_and_the_commands_of_the_issue(tmp_path: Path) -> None:
    async with world(tmp_path, default_agent="claude", agents=["claude", "shell"]) as box:
        issue, number = await worked_on(box)
        maria, octocat = box.github.as_user("maria"), box.github.as_user("octocat")
        await asyncio.gather(
            maria.comment(REPO, issue, f"/agent more\n{MORE}"),
            octocat.comment(REPO, issue, f"/agent and more\n{MORE}"),
        )
        await box.dealt_with()
        jobs = await jobs_in(box, number)
        assert {job.trigger.actor.login for job in jobs} == {"maria", "octocat"}
        for job in jobs:  # in the same conversation, by who worked there, and with the issue's words
            assert (job.target, job.asked_in, job.agent) == (TargetKind.pull_request, issue, "shell")
            assert (job.thread_id, job.title, job.body) == (f"{job.repo.id}-{issue}", "Numbers", STEPS)
        said = [one["body"] for one in box.github.comments(REPO, issue)]
        for delivery in [one for one in box.github.deliveries if one.event == "issue_comment"]:
            box.github.redeliver(delivery)
        await box.dealt_with()
        assert [job.id for job in await jobs_in(box, number)] == [job.id for job in jobs]
        assert [one["body"] for one in box.github.comments(REPO, issue)] == said
        assert len([one for one in said if f"This goes on in #{number}, on its branch." in one]) == 2
        await maria.comment(REPO, issue, "/agent status")
        await maria.comment(REPO, issue, "/agent cancel")
        await box.dealt_with()
        assert [job.state for job in await jobs_in(box, number)] == [JobState.cancelled] * 2
        status = next(
            one["body"] for one in box.github.comments(REPO, issue) if "| job |" in one["body"].lower()
        )
        assert all(job.id in status for job in jobs)
        # what is done once more in the issue is what was asked for there last
        await maria.comment(REPO, issue, "/agent retry")
        await box.dealt_with()
        again = (await jobs_in(box, number))[-1]
        assert (again.retry_of, again.asked_in) == (jobs[-1].id, issue)


async def test_the_rules_of_the_issue_hold(tmp_path: Path) -> None:
    async with world(tmp_path) as box:
        maria = box.github.as_user("maria")
        rules = "approvals:\n  plan: {labels: [risky]}\n"
        await maria.push_commit(REPO, "main", {".github/conductor.yml": rules})
        issue, number = await worked_on(box, by="rita")
        await maria.comment(REPO, issue, f"/agent more\n{MORE}")
        await box.dealt_with()
        await maria.add_label(REPO, issue, "risky")
        await box.dealt_with()
        await maria.comment(REPO, issue, f"/agent even more\n{MORE}")
        await box.dealt_with()
        first, second = await jobs_in(box, number)
        assert (first.kind, second.kind) == (JobKind.task, JobKind.plan)
        # a command endorses no words of an outsider's, whose issue it is
        assert (first.body, first.title) == ("", f"Issue #{issue}")
        assert "by `rita`, who may not write to this repository" in first.left_out[0]
        assert box.github.pulls(REPO)[0]["labels"] == []
