"""Attack class 28 on the whole program: an attempt that lost its job without knowing it changes nothing any more."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from sqlalchemy import select

from bot.errors import StaleAttempt
from bot.github import GitHub
from bot.model import Job, JobState, Phase
from bot.report import Reporter
from bot.sandbox.faults import Fault
from bot.schema import shelf
from tests.scenarios.world import REPO, World, world

pytestmark = pytest.mark.timeout(180)


async def working(box: World, steps: str) -> Job:
    """A job whose agent works."""
    maria = box.github.as_user("maria")
    number = int((await maria.open_issue(REPO, "Work", f"```sh\n{steps}\n```"))["number"])
    await maria.add_label(REPO, number, "agent")
    job = await until(box, number, Phase.agent)
    await shown(box, job, "is working on it**.\n")
    return job


async def shown(box: World, job: Job, words: str) -> None:
    """Wait until the job's comment says so."""
    async with asyncio.timeout(60):
        while not any(words in text for text in told(box, job)):
            await asyncio.sleep(0.005)


async def until(box: World, number: int, phase: Phase) -> Job:
    async with asyncio.timeout(60):
        while (job := await box.job(number)).phase is not phase or (
            phase is Phase.publish and not job.head_sha
        ):
            assert not job.state.final, job.message
            await asyncio.sleep(0.005)
    return job


async def lost(box: World, job: Job) -> Job:
    """Another host takes the job over, as when this one had been silent for too long."""
    taken = await box.store.take_over(job.id, from_fence=job.fence, host="another")
    assert taken is not None
    return taken[0]


async def left(box: World, job: Job) -> None:
    """The first host has noticed and removed everything."""
    folder = box.settings.data_dir.absolute() / "attempts" / f"{job.id}-1"
    async with asyncio.timeout(60):
        while folder.exists():
            await asyncio.sleep(0.02)


async def nothing_changed(box: World, taken: Job, told: list[str]) -> None:
    await box.github.deliveries_settled()
    now = await box.store.job(taken.id)
    assert now is not None
    assert (now.state, now.fence, now.finished_at) == (JobState.running, 2, None)
    assert (now.head_sha, now.pull_number, now.summary, now.failure) == (
        taken.head_sha,
        None,
        taken.summary,
        None,
    )
    assert await box.new_branches() == []
    assert box.github.pulls(REPO) == []
    assert box.github.check_runs(REPO) == []
    assert [comment["body"] for comment in box.github.comments(REPO, taken.number)] == told


def told(box: World, job: Job) -> list[str]:
    return [comment["body"] for comment in box.github.comments(REPO, job.number)]


@pytest.mark.parametrize("end", ["exit 0", "exit 1"])
async def test_28_a_zombie_that_ends_tells_and_pushes_nothing(end: str, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    async with world(tmp_path) as box:
        job = await working(box, f"echo 1 > one.txt; until [ -e {gate} ]; do sleep 0.05; done; {end}")
        before = told(box, job)
        taken = await lost(box, job)
        gate.touch()
        await left(box, job)
        await nothing_changed(box, taken, before)


async def test_28_a_zombie_is_stopped_and_does_not_spend_its_whole_time(tmp_path: Path) -> None:
    async with world(tmp_path) as box:
        job = await working(box, "echo 1 > one.txt; sleep 600")
        before = told(box, job)
        taken = await lost(box, job)
        async with GitHub.from_settings(box.settings) as github:
            with pytest.raises(StaleAttempt):
                await Reporter(github, box.store, box.redactor).progress(job, lines=["I am still at it."])
        await left(box, job)
        await nothing_changed(box, taken, before)
        async with box.store.engine.connect() as connection:
            kept = (await connection.execute(select(shelf.c.name))).scalars().all()
        assert kept == [], "its work would be taken for the newer attempt's"


@pytest.mark.parametrize(("signing", "late"), [("none", "/access_tokens"), ("api", "/git/commits")])
async def test_28_a_zombie_that_is_about_to_push_does_not(signing: str, late: str, tmp_path: Path) -> None:
    """The last moment: all is checked, the commit is made, the token is on its way."""
    gate = tmp_path / "gate"
    async with world(tmp_path, commit_signing=signing) as box:
        job = await working(box, f"echo 1 > one.txt; until [ -e {gate} ]; do sleep 0.05; done")
        box.github.faults.add(Fault(method="POST", path=late, delay=3, times=1))
        gate.touch()
        async with asyncio.timeout(60):
            while box.github.faults.waiting:  # taken by the request that waits now
                await asyncio.sleep(0.005)
        before = told(box, job)
        taken = await lost(box, await box.job(job.number))
        await left(box, job)
        await nothing_changed(box, taken, before)
        writing = [
            one for one in box.github.world.tokens.values() if one.permissions.get("contents") == "write"
        ]
        # the token for the push, if it was made, is revoked; the one for changes through the API is for all of them
        assert [one.permissions for one in writing if "pull_requests" not in one.permissions] == []
        assert all(one.repository_ids is not None and len(one.repository_ids) == 1 for one in writing)


@pytest.mark.parametrize(
    ("asked", "under_way", "late"),
    [
        ("/agent ask", "is looking for the answer**.\n", r"/issues/\d+/comments$"),
        ("/agent review", "is reviewing it**.\n", r"/pulls/\d+/reviews$"),
    ],
    ids=["ask", "review"],
)
async def test_28_a_zombie_that_is_about_to_answer_does_not(
    asked: str, under_way: str, late: str, tmp_path: Path
) -> None:
    """The last moment: it has looked whether its answer or review is there already."""
    gate = tmp_path / "gate"
    async with world(tmp_path) as box:
        maria = box.github.as_user("maria")
        await maria.push_commit(REPO, "feature", {"feature.txt": "one\n"})
        number = int((await maria.open_pull(REPO, "feature", "A feature"))["number"])
        wait = f"until [ -e {gate} ]; do sleep 0.05; done; echo It is good."
        await maria.comment(REPO, number, f"{asked}\n```sh\n{wait}\n```")
        job = await until(box, number, Phase.agent)
        await shown(box, job, under_way)
        box.github.faults.add(Fault(method="GET", path=late, delay=3, times=1))
        gate.touch()
        async with asyncio.timeout(60):
            while box.github.faults.waiting:
                await asyncio.sleep(0.005)
        await shown(box, job, "Checking and publishing")
        before = told(box, job)
        taken = await lost(box, await box.job(number))
        await left(box, job)
        await box.github.deliveries_settled()
        now = await box.store.job(job.id)
        assert now is not None
        assert (now.state, now.fence, now.summary) == (JobState.running, 2, taken.summary)
        assert told(box, job) == before
        assert await maria.request("GET", f"/repos/{REPO}/pulls/{number}/reviews") == []
