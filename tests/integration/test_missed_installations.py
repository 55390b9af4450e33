"""What no event told of installations is found in GitHub's list."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from bot.conductor import Conductor
from bot.embedded_redis import EmbeddedRedis
from bot.errors import GitHubUnavailable
from bot.github import GitHub
from bot.github_transport import Patience
from bot.installation_store import Installation, InstallationStore
from bot.installs import INTERVAL, Installs
from bot.model import Actor, Job, JobState, Repo, TargetKind, Trigger
from bot.redact import Redactor
from bot.repository_setup import RepositorySetup
from bot.sandbox.faults import Fault
from bot.sandbox.sandbox import Sandbox
from bot.server import heart
from tests.scenarios.world import settings_for


class Time:
    """Seconds, as the test wants them."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Box:
    """The parts, and questions to them."""

    github: Sandbox
    conductor: Conductor
    installs: Installs
    states: InstallationStore
    time: Time
    installation: int

    async def look(self) -> None:
        """An hour later."""
        self.time.now += INTERVAL
        await self.installs.look()

    async def queued(self, number: int = 1) -> str:
        """A job of acme/hello that waits."""
        repository = self.github.world.repository("acme", "hello")
        assert repository is not None
        job = Job(
            id=f"waits-{number}",
            repo=Repo(
                owner="acme",
                name="hello",
                id=repository.id,
                installation_id=self.installation,
            ),
            number=number,
            target=TargetKind.issue,
            trigger=Trigger(
                delivery_id=f"d{number}", event="x", actor=Actor(login="maria", id=1, type="User")
            ),
            agent="shell",
            model=None,
            instructions="",
            title="",
            body="",
            timeout=60,
            state=JobState.queued,
            created_at=datetime.now(UTC),
            thread_id=f"{repository.id}-{number}",
        )
        await self.conductor.store.add_job(job)
        return job.id

    async def job(self, job_id: str) -> Job:
        found = await self.conductor.store.job(job_id)
        assert found is not None
        return found


@pytest.fixture
async def box(tmp_path: Path) -> AsyncIterator[Box]:
    async with contextlib.AsyncExitStack() as stack:
        sandbox = await stack.enter_async_context(Sandbox.start())
        await sandbox.as_user("maria").open_issue("acme/hello", "T")
        redis = await stack.enter_async_context(EmbeddedRedis(tmp_path / "redis"))
        settings = settings_for(sandbox, tmp_path, redis.url, None)
        conductor, _ = await stack.enter_async_context(heart(settings, Redactor()))
        github = await stack.enter_async_context(GitHub.from_settings(settings, patience=Patience(tries=1)))
        time, states = Time(), InstallationStore(conductor.store.engine)
        installs = Installs(
            conductor=conductor,
            github=github,
            states=states,
            setup=RepositorySetup(github, conductor.store, agents=("shell",)),
            create_labels=True,
            welcome_issue=False,
            monotonic=time,
        )
        yield Box(sandbox, conductor, installs, states, time, sandbox.installation_id)


async def test_what_is_there_is_learned(box: Box) -> None:
    await box.look()
    [known] = await box.states.all()
    assert (known.id, known.account, known.account_type) == (
        box.github.installation_id,
        "acme",
        "Organization",
    )
    assert known.permissions == box.github.world.app.permissions
    repository = box.github.world.repository("acme", "hello")
    assert repository is not None
    assert repository.labels == {}  # the bot may have been there for years


async def test_a_suspension_that_nobody_told(box: Box) -> None:
    await box.look()
    waiting = await box.queued()
    box.github.world.installations[box.github.installation_id].suspended_at = datetime.now(UTC)
    await box.look()
    stopped = await box.job(waiting)
    assert (stopped.state, stopped.cancel_requested_by) == (
        JobState.cancelled,
        "conductor, the App is suspended",
    )
    assert [job.id for job in await box.conductor.store.unreported_jobs()] == [waiting]  # told afterwards
    second = await box.queued(2)
    await box.look()
    assert (await box.job(second)).state is JobState.queued  # only the change counts


async def test_a_removal_that_nobody_told(box: Box) -> None:
    waiting, gone = await box.queued(), box.github.installation_id
    await box.look()
    box.github.world.installations.clear()
    await box.look()
    assert (await box.job(waiting)).cancel_requested_by == "conductor, the App was removed"
    assert await box.conductor.store.unreported_jobs() == []
    known = await box.states.get(gone)
    assert known is not None
    assert known.removed
    # one that ran then ends later
    late = await box.queued(2)
    await box.conductor.store.cancel_unowned(late)
    await box.installs.forget_removed()
    assert await box.conductor.store.unreported_jobs() == []


async def test_missing_permissions_are_named(box: Box) -> None:
    installation = box.github.world.installations[box.github.installation_id]
    installation.permissions = {"metadata": "read", "contents": "read"}
    with capture_logs() as logs:
        await box.look()
        await box.look()
    [told] = [one for one in logs if one["event"] == "the App lacks permissions"]
    assert told["missing"].startswith(
        "actions: read, checks: write, contents: write, issues: write, members: read"
    )


async def test_it_looks_once_an_hour(box: Box) -> None:
    await box.installs.look()
    box.github.faults.add(Fault(path="/app/installations", status=404, times=None))
    box.time.now += INTERVAL - 1
    await box.installs.look()
    box.github.faults.clear()
    box.github.faults.add(Fault(path="/app/installations", drop="before", times=None))
    with pytest.raises(GitHubUnavailable):
        await box.look()


class Meanwhile(InstallationStore):
    """A database in which another server writes down an installation after this one has read GitHub's list."""

    box: Box

    async def all(self) -> list[Installation]:
        if len(self.box.github.world.installations) == 1:
            number = self.box.github.as_user("octocat").install_app("octocat")
            await self.put(Installation(id=number, account="octocat", permissions={}))
        return await super().all()


async def test_one_that_came_while_the_list_was_read_is_not_taken_for_removed(box: Box) -> None:
    states = Meanwhile(box.conductor.store.engine)
    states.box = box
    async with GitHub.from_settings(box.conductor.settings) as github:
        setup = RepositorySetup(github, box.conductor.store, agents=("shell",))
        installs = Installs(
            conductor=box.conductor,
            github=github,
            states=states,
            setup=setup,
            create_labels=False,
            welcome_issue=False,
        )
        await installs.look()
    assert {one.account: one.removed for one in await box.states.all()} == {"acme": False, "octocat": False}


async def test_a_look_that_failed_is_repeated_at_once(box: Box) -> None:
    box.github.faults.add(Fault(path=r"/app/installations$", drop="before"))
    with pytest.raises(GitHubUnavailable):
        await box.installs.look()
    assert await box.states.all() == []
    await box.installs.look()
    assert len(await box.states.all()) == 1
