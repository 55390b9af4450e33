"""A branch of a job that ended between push and pull request is removed, unless somebody works on it."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import update

from bot.model import JobState
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
