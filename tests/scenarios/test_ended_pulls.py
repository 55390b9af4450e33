"""A pull request that is merged or closed while a job of it waits or works: nothing is pushed after it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from sqlalchemy import select, update

from bot.approval_store import ApprovalStore
from bot.audit import Audit
from bot.model import FailureKind, Job, JobState, Phase
from bot.schema import jobs, shelf
from tests.scenarios.test_questions import SETTINGS
from tests.scenarios.test_questions import asked as asked_in
from tests.scenarios.world import REPO, World, world

pytestmark = pytest.mark.timeout(180)


async def opened(box: World, branch: str) -> tuple[int, str]:
    """A pull request of tom's, who may close what is his, and command nobody; and its head."""
    head = await box.github.as_user("maria").push_commit(REPO, branch, {f"{branch}.txt": "a\n"})
    pull = await box.github.as_user("tom").open_pull(REPO, branch, "A feature")
    return int(pull["number"]), head


async def end(box: World, number: int, how: str, branch: str) -> None:
    if how == "closed":
        await box.github.as_user("tom").close(REPO, number)
    else:
        await box.github.as_user("maria").merge(REPO, number)
    if how == "deleted":
        await box.github.as_user("maria").delete_branch(REPO, branch)
    await box.dealt_with()


async def is_kept(box: World, job: Job) -> bool:
    async with box.store.engine.connect() as connection:
        names = (await connection.execute(select(shelf.c.name))).scalars().all()
    return f"{job.id}.work" in names


async def test_what_waits_then_does_not_start_unless_it_only_reads(tmp_path: Path) -> None:
    why = {"merged": "was merged", "deleted": "was merged", "closed": "was closed"}
    todo = {"merged": "Write `/agent`", "deleted": "Write `/agent`", "closed": "Reopen it"}
    async with world(tmp_path) as box:
        maria = box.github.as_user("maria")
        await box.stop_worker()
        pulls = {how: await opened(box, how) for how in why}
        asking, _ = await opened(box, "asking")
        for number, _ in pulls.values():
            await maria.comment(REPO, number, "/agent\n```sh\nseq 4 > numbers.txt\n```")
            await box.job(number)
        await maria.comment(REPO, asking, "/agent ask How many?\n```sh\ncat asking.txt\n```")
        await box.job(asking)
        for how, (number, _) in pulls.items():
            await end(box, number, how, how)
        await end(box, asking, "deleted", "asking")
        await box.start_worker()
        for how, (number, head) in pulls.items():
            job = await box.ended(number)
            assert (job.state, job.phase, job.failure) == (
                JobState.failed,
                Phase.workspace,
                FailureKind.conflict,
            )
            told = "\n".join(box.stickies(number))
            for part in ("its pull request is not open any more", why[how], todo[how], "in its issue"):
                assert part in told
            assert "first commit" not in told
            assert ("/agent retry" in told) is (how == "closed"), "nothing starts in one that was merged"
            assert (await box.github.branches(REPO)).get(how, head) == head
        answered = await box.ended(asking)
        assert answered.state is JobState.succeeded, answered.message


@pytest.mark.parametrize(
    ("how", "asks", "signing"),
    [("closed", "/agent", "none"), ("merged", "/agent", "api"), ("merged", "/agent plan", "none")],
)
async def test_what_works_then_pushes_nothing(how: str, asks: str, signing: str, tmp_path: Path) -> None:
    async with world(tmp_path, commit_signing=signing) as box:
        number, head = await opened(box, "feature")
        gate = tmp_path / "gate"
        steps = f"```sh\nseq 4 > numbers.txt\nuntil [ -e {gate} ]; do sleep 0.1; done\n```"
        await box.github.as_user("maria").comment(REPO, number, f"{asks}\n{steps}")
        async with asyncio.timeout(60):
            while (await box.job(number)).phase is not Phase.agent:
                await asyncio.sleep(0.05)
        await end(box, number, how, "feature")
        gate.touch()
        job = await box.ended(number)
        assert (job.state, job.phase, job.failure) == (JobState.failed, Phase.publish, FailureKind.conflict)
        assert f"The pull request was {how} meanwhile. Nothing was pushed" in job.message
        assert ("Reopen it and write `/agent resume`" in job.message) is (how == "closed")
        assert job.head_sha is None
        assert (await box.github.branches(REPO))["feature"] == head
        assert await box.new_branches() == []
        assert await is_kept(box, job)
        assert await ApprovalStore(box.store.engine, Audit(box.store.engine, box.redactor)).recent() == []


async def test_a_draft_of_its_own_that_was_closed_is_not_pushed_to(tmp_path: Path) -> None:
    async with world(tmp_path, **SETTINGS) as box:
        issue = await asked_in(box)
        number, _ = await opened(box, "draft")
        await end(box, number, "closed", "draft")
        async with box.store.engine.begin() as connection:
            await connection.execute(update(jobs).values(pull_number=number))  # as if it had asked there
        await box.github.as_user("maria").comment(REPO, issue, "/agent resume Blue.")
        job = await box.ended(issue)
        assert (job.state, job.failure) == (JobState.failed, FailureKind.conflict)
        assert "Write `/agent resume` where the work was asked for" in job.message
        assert await box.new_branches() == []
        assert await is_kept(box, job)
