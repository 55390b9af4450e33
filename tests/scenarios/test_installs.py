"""The App is installed, suspended, removed, let into repositories; a repository moves: as owners do it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from bot.installation_store import InstallationStore
from bot.model import Job, JobState, Phase
from bot.schema import audit
from tests.scenarios.world import REPO, World, world

LONG = "```sh\necho started > x.txt; sleep 300\n```"
SHORT = "```sh\necho 1 > one.txt\n```"


async def asked(box: World, body: str, repo: str = REPO) -> int:
    """A labelled issue of its own."""
    maria = box.github.as_user("maria")
    number = int((await maria.open_issue(repo, "Work", body))["number"])
    await maria.add_label(repo, number, "agent")
    return number


async def until(box: World, number: int, state: JobState) -> Job:
    async with asyncio.timeout(60):
        while (job := await box.job(number)).state is not state:
            await asyncio.sleep(0.05)
    return job


async def two_jobs(box: World) -> tuple[int, int]:
    """One that runs and one that waits behind it."""
    first = await asked(box, LONG)
    async with asyncio.timeout(60):
        while (await box.job(first)).phase is not Phase.agent:
            await asyncio.sleep(0.05)
    second = await asked(box, SHORT)
    await until(box, second, JobState.queued)
    return first, second


async def all_are_told(box: World) -> None:
    """By housekeeping, some time after a job's end."""
    async with asyncio.timeout(60), box.later():
        while await box.store.unreported_jobs():
            await asyncio.sleep(0.05)


def labels(box: World, repo: str = REPO) -> set[str]:
    repository = box.github.world.repository(*repo.split("/"))
    assert repository is not None
    return {one.name for one in repository.labels.values()}


async def audited(box: World) -> list[str]:
    async with box.store.engine.connect() as connection:
        rows = await connection.execute(audit.select().where(audit.c.kind == "installation"))
        return [str(row.details) for row in rows]


async def test_removed(tmp_path: Path) -> None:
    async with world(tmp_path, slots=1) as box:
        first, second = await two_jobs(box)
        installation = box.github.installation_id
        box.github.as_user("octocat").uninstall_app("acme")
        await box.dealt_with()
        waiting, running = await box.job(second), await until(box, first, JobState.cancelled)
        assert waiting.state is JobState.cancelled
        assert waiting.cancel_requested_by == "octocat, who removed the App"
        assert running.cancel_requested_by == "octocat, who removed the App"
        known = await InstallationStore(box.store.engine).get(installation)
        assert known is not None
        assert known.removed
        await all_are_told(box)  # nobody is there to be told
        assert any("deleted" in one for one in await audited(box))


async def test_suspended_and_back(tmp_path: Path) -> None:
    async with world(tmp_path, slots=1) as box:
        first, second = await two_jobs(box)
        octocat = box.github.as_user("octocat")
        octocat.suspend_app("acme")
        await box.dealt_with()
        for number in (first, second):
            stopped = await until(box, number, JobState.cancelled)
            assert stopped.cancel_requested_by == "octocat, who suspended the App"
        assert await asked(box, SHORT) > second  # nobody hears of it
        octocat.unsuspend_app("acme")
        await box.dealt_with()
        await all_are_told(box)
        for number in (first, second):
            assert "Cancelled** by octocat, who suspended the App" in box.stickies(number)[-1]
        third = await asked(box, SHORT)
        assert (await box.ended(third)).state is JobState.succeeded


async def test_let_into_repositories(tmp_path: Path) -> None:
    async with world(tmp_path, slots=1, welcome_issue=True) as box:
        octocat = box.github.as_user("octocat")
        await box.github.create_repo("acme/other", collaborators={"maria": "write"})
        octocat.choose_repositories("acme", [REPO])
        await box.dealt_with()
        assert labels(box, "acme/other") == set()
        octocat.choose_repositories("acme", [REPO, "acme/other"])
        await box.dealt_with()
        assert labels(box, "acme/other") == {"agent", "agent:claude", "agent:codex", "agent:shell"}
        [issue] = box.github.issues("acme/other")
        assert "`agent:NAME`" in issue["body"]
        added = next(one for one in box.github.deliveries if one.event == "installation_repositories")
        box.github.redeliver(added)
        octocat.choose_repositories("acme", [REPO])
        octocat.choose_repositories("acme", None)
        await box.dealt_with()
        assert len(box.github.issues("acme/other")) == 1  # welcomed once


async def test_labels_that_are_there_stay(tmp_path: Path) -> None:
    async with world(tmp_path, slots=1) as box:
        octocat = box.github.as_user("octocat")
        await octocat.request("POST", f"/repos/{REPO}/labels", {"name": "Agent", "color": "ff0000"})
        octocat.uninstall_app("acme")
        octocat.install_app("acme")
        await box.dealt_with()
        assert labels(box) == {"Agent", "agent:claude", "agent:codex", "agent:shell"}
        repository = box.github.world.repository("acme", "hello")
        assert repository is not None
        assert repository.labels["agent"].color == "ff0000"
        assert box.github.issues(REPO) == []  # a welcome only where it is wanted
        number = await asked(box, SHORT)
        assert (await box.ended(number)).state is JobState.succeeded


@pytest.mark.parametrize("setting", [True, False])
async def test_labels_are_made_unless_that_is_switched_off(tmp_path: Path, setting: bool) -> None:
    async with world(tmp_path, slots=1, create_labels=setting) as box:
        octocat = box.github.as_user("octocat")
        octocat.uninstall_app("acme")
        octocat.install_app("acme", [REPO])
        await box.dealt_with()
        assert ("agent" in labels(box)) == setting


async def test_shut_out_of_one_repository(tmp_path: Path) -> None:
    async with world(tmp_path, slots=1) as box:
        await box.github.create_repo("acme/other")
        first, second = await two_jobs(box)
        box.github.as_user("octocat").choose_repositories("acme", ["acme/other"])
        await box.dealt_with()
        for number in (first, second):
            stopped = await until(box, number, JobState.cancelled)
            assert stopped.cancel_requested_by == "octocat, who took the App out of this repository"


async def test_a_renamed_repository_keeps_its_jobs(tmp_path: Path) -> None:
    async with world(tmp_path, slots=1) as box:
        first = await asked(box, SHORT)
        done = await box.ended(first)
        octocat = box.github.as_user("octocat")
        await octocat.rename_repository(REPO, "greetings")
        await box.dealt_with()
        now = await box.store.job(done.id)
        assert now is not None
        assert (now.repo.full_name, now.repo.id) == ("acme/greetings", done.repo.id)
        await box.github.as_user("maria").comment("acme/greetings", first, "/agent retry")
        async with asyncio.timeout(60):
            while len(found := await box.store.jobs_on(done.repo.id, first)) < 2:
                await asyncio.sleep(0.05)
        again = found[0]
        async with asyncio.timeout(60):
            while not (again := await box.store.job(again.id) or again).state.final:
                await asyncio.sleep(0.05)
        assert (again.repo.full_name, again.state) == ("acme/greetings", JobState.succeeded)
        assert again.thread_id == done.thread_id


async def test_a_rename_while_a_job_runs(tmp_path: Path) -> None:
    async with world(tmp_path, slots=1) as box:
        number = await asked(box, "```sh\nsleep 3; echo 1 > one.txt\n```")
        running = await until(box, number, JobState.running)
        await box.github.as_user("octocat").rename_repository(REPO, "greetings")
        async with asyncio.timeout(90):
            while not (ended := await box.store.job(running.id) or running).state.final:
                await asyncio.sleep(0.05)
        assert ended.state is JobState.succeeded
        assert len(box.github.pulls("acme/greetings")) == 1


async def done_again(box: World, before: Job, repo: str) -> Job:
    """A job done once more, as maria asks for it where the repository is now."""
    await box.github.as_user("maria").comment(repo, before.number, "/agent retry")
    async with asyncio.timeout(60):
        while not (found := await box.store.jobs_on(before.repo.id, before.number)) or (
            found[0].id == before.id or not found[0].state.final
        ):
            await asyncio.sleep(0.05)
    return found[0]


async def test_a_transferred_repository_keeps_its_jobs(tmp_path: Path) -> None:
    """It goes to an account that has the App, too: another installation, with tokens of its own."""
    async with world(tmp_path, slots=1) as box:
        octocat = box.github.as_user("octocat")
        there = octocat.install_app("octocat")
        done = await box.ended(await asked(box, SHORT))
        await octocat.transfer_repository(REPO, "octocat")
        await box.dealt_with()
        now = await box.store.job(done.id)
        assert now is not None
        assert (now.repo.full_name, now.repo.id) == ("octocat/hello", done.repo.id)
        assert (done.repo.installation_id, now.repo.installation_id) == (box.github.installation_id, there)
        again = await done_again(box, done, "octocat/hello")
        assert (again.repo.full_name, again.state) == ("octocat/hello", JobState.succeeded)
        assert again.thread_id == done.thread_id
        assert labels(box, "octocat/hello") >= {"agent", "agent:shell"}
        former = [one for one in await audited(box) if "repository.transferred" in one]
        assert len(former) == 1
        assert REPO in former[0]


async def test_a_transfer_while_a_job_runs_and_another_waits(tmp_path: Path) -> None:
    """What they may do was granted by the account that has it no more; whoever has it now can ask for it again."""
    async with world(tmp_path, slots=1) as box:
        octocat = box.github.as_user("octocat")
        octocat.install_app("octocat")
        numbers = await two_jobs(box)
        before = [await box.job(number) for number in numbers]
        await octocat.transfer_repository(REPO, "octocat")
        await box.dealt_with()
        for job in before:
            async with asyncio.timeout(60):
                while not (stopped := await box.store.job(job.id) or job).state.final:
                    await asyncio.sleep(0.05)
            assert stopped.state is JobState.cancelled
            # two events tell of it, and either may come first
            assert stopped.cancel_requested_by in (
                "octocat, who took the App out of this repository",
                "octocat, who moved this repository to another account",
            )
        await all_are_told(box)
        assert list(await box.github.branches("octocat/hello")) == ["main"]
        again = await done_again(box, before[1], "octocat/hello")
        assert (again.repo.full_name, again.state) == ("octocat/hello", JobState.succeeded)


async def test_a_transfer_to_an_account_without_the_app(tmp_path: Path) -> None:
    async with world(tmp_path, slots=1) as box:
        numbers = await two_jobs(box)
        before = [await box.job(number) for number in numbers]
        await box.github.as_user("octocat").transfer_repository(REPO, "octocat")
        await box.dealt_with()
        for job in before:
            async with asyncio.timeout(60):
                while not (stopped := await box.store.job(job.id) or job).state.final:
                    await asyncio.sleep(0.05)
            assert stopped.state is JobState.cancelled
        await all_are_told(box)  # nobody is there to be told
        assert await asked(box, SHORT, "octocat/hello")  # nobody hears of it
        await box.dealt_with()
        assert len(await box.store.recent_jobs()) == len(before)


async def test_permissions_are_accepted(tmp_path: Path) -> None:
    async with world(tmp_path, slots=1) as box:
        more = {**dict(box.github.world.app.permissions), "workflows": "write"}
        box.github.as_user("octocat").accept_permissions("acme", more)
        await box.dealt_with()
        known = await InstallationStore(box.store.engine).get(box.github.installation_id)
        assert known is not None
        assert known.permissions["workflows"] == "write"
