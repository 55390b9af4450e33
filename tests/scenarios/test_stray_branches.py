"""A branch of a job that ended between push and pull request is removed, unless somebody works on it."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import update

from bot.github import GitHub
from bot.model import Job, JobState
from bot.report import Reporter
from bot.sandbox.faults import Fault
from bot.schema import jobs
from tests.scenarios.world import REPO, World, world

pytestmark = pytest.mark.timeout(150)


async def pushed(box: World) -> str:
    """The branch of a job that was done."""
    maria = box.github.as_user("maria")
    number = (await maria.open_issue(REPO, "Two", "```sh\necho 2 > two.txt\n```"))["number"]
    await maria.add_label(REPO, number, "agent")
    job = await box.ended(number)
    assert job.branch
    return job.branch


async def lose_the_host(box: World) -> None:
    """The database says what it says when a host was lost right after the push; wait until that was looked after."""
    async with box.store.engine.begin() as connection:
        await connection.execute(
            update(jobs).values(
                state=str(JobState.lost),
                reported=str(JobState.lost),
                pull_number=None,
                finished_at=datetime.now(UTC) - timedelta(minutes=1),
            )
        )
    async with asyncio.timeout(60):
        while await box.store.jobs_with_stray_branches():
            await asyncio.sleep(0.1)


async def test_a_branch_that_nobody_owns_is_removed(tmp_path: Path) -> None:
    async with world(tmp_path) as box:
        branch = await pushed(box)
        await lose_the_host(box)
        assert branch not in await box.github.branches(REPO)


async def test_a_branch_on_which_somebody_went_on_stays(tmp_path: Path) -> None:
    async with world(tmp_path) as box:
        branch = await pushed(box)
        await box.github.as_user("maria").push_commit(REPO, branch, {"mine.txt": "3\n"})
        await lose_the_host(box)
        assert branch in await box.github.branches(REPO)


async def marked(box: World, title: str) -> Job:
    """A plan that was pushed for a review to be on, and whose pull request GitHub did not want."""
    maria = box.github.as_user("maria")
    number = (await maria.open_issue(REPO, title, "```sh\necho 2 > two.txt\n```"))["number"]
    box.github.faults.add(Fault(method="POST", path="/pulls$", status=422))
    await maria.comment(REPO, number, "/agent plan")
    job = await box.ended(number)
    assert (job.state, job.pull_number, job.head_sha) == (JobState.failed, None, None)
    assert (await box.github.branches(REPO))[job.branch or ""] == job.marker_sha
    return job


async def test_a_branch_that_was_to_be_decided_about_is_removed_unless_somebody_went_on(
    tmp_path: Path,
) -> None:
    async with world(tmp_path) as box:
        asked, taken, pushing = [await marked(box, title) for title in ("Asked", "Taken", "Pushing")]
        await box.github.as_user("maria").push_commit(REPO, taken.branch or "", {"mine.txt": "3\n"})
        # it was about to push what was decided, and the push did not come about
        await box.store.note(pushing.id, head_sha="f" * 40)
        stray = await box.store.jobs_with_stray_branches()
        assert {job.id for job in stray} == {asked.id, taken.id, pushing.id}
        # what housekeeping does when their end is some time ago
        async with GitHub.from_settings(box.settings) as github:
            for job in stray:
                await Reporter(github, box.store, box.redactor).remove_branch(job)
        assert await box.new_branches() == [taken.branch]
        assert await box.store.jobs_with_stray_branches() == []
