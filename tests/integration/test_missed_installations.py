"""What no event told of installations is found in GitHub's list; and what becomes of work whose place is gone."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from structlog.testing import capture_logs

from bot.approval_store import ApprovalStore
from bot.audit import Wanted
from bot.audit_chain import AuditKind, Entry
from bot.conductor import Conductor
from bot.cursors import Cursors
from bot.embedded_redis import EmbeddedRedis
from bot.errors import ConductorError, GitHubUnavailable
from bot.github import GitHub
from bot.github_transport import Patience
from bot.installation_store import Installation, InstallationStore
from bot.installs import INTERVAL, Installs
from bot.model import (
    Actor,
    Approval,
    ApprovalKind,
    ApprovalState,
    FailureKind,
    Job,
    JobState,
    Phase,
    Repo,
    Trigger,
)
from bot.performer import _Attempt
from bot.redact import Redactor
from bot.repository_setup import RepositorySetup
from bot.sandbox.faults import Fault
from bot.sandbox.sandbox import Sandbox
from bot.server import heart
from bot.setup_backlog import CURSOR, SetupBacklog
from tests.jobs import asked_job
from tests.made_once import app_key
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
        repo = Repo(owner="acme", name="hello", id=repository.id, installation_id=self.installation)
        job = asked_job(f"waits-{number}", repo=repo, number=number, thread_id=f"{repository.id}-{number}")
        await self.conductor.store.add_job(job)
        return job.id

    @property
    def approvals(self) -> ApprovalStore:
        return ApprovalStore(self.conductor.store.engine, self.conductor.audit)

    async def asked(self, job_id: str) -> str:
        """Something that a job asks reviewers; the approval's id."""
        job, now = await self.job(job_id), datetime.now(UTC)
        approval = Approval(
            id=f"p-{job_id}",
            kind=ApprovalKind.plan,
            job_id=job_id,
            repo=job.repo,
            pull_number=7,
            subject="May I?",
            sha="a" * 40,
            state=ApprovalState.pending,
            asked_at=now,
            expires_at=now + timedelta(days=1),
        )
        assert await self.approvals.ask(approval)
        return approval.id

    async def state_of(self, approval_id: str) -> ApprovalState:
        found = await self.approvals.approval(approval_id)
        assert found is not None
        return found.state

    async def reasons(self) -> list[str]:
        """What the audit trail has about cancellations."""
        wanted = Wanted(kinds=[AuditKind.job_cancelled])
        found = [one async for one in self.conductor.audit.entries(wanted) if isinstance(one, Entry)]
        return [one.details.get("why", "") for one in found]

    async def job(self, job_id: str) -> Job:
        found = await self.conductor.store.job(job_id)
        assert found is not None
        return found


@pytest.fixture
async def box(tmp_path: Path) -> AsyncIterator[Box]:
    async with contextlib.AsyncExitStack() as stack:
        sandbox = await stack.enter_async_context(Sandbox.start(private_key=app_key()))
        await sandbox.as_user("maria").open_issue("acme/hello", "T")
        redis = await stack.enter_async_context(EmbeddedRedis(tmp_path / "redis"))
        settings = settings_for(sandbox, tmp_path, redis.url, None)
        conductor, _ = await stack.enter_async_context(heart(settings, Redactor()))
        github = await stack.enter_async_context(GitHub.from_settings(settings, patience=Patience(tries=1)))
        time, states = Time(), InstallationStore(conductor.store.engine)
        installs = Installs(
            conductor=conductor,
            approvals=ApprovalStore(conductor.store.engine, conductor.audit),
            github=github,
            states=states,
            setup=RepositorySetup(github, conductor.store, agents=("shell",)),
            backlog=SetupBacklog(
                Cursors(conductor.store.engine), conductor.store.locks, pause=timedelta(seconds=0)
            ),
            create_labels=True,
            welcome_issue=False,
            at_once=1,
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
            approvals=ApprovalStore(box.conductor.store.engine, box.conductor.audit),
            github=github,
            states=states,
            setup=setup,
            backlog=SetupBacklog(Cursors(box.conductor.store.engine), box.conductor.store.locks),
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


# --- where nothing can be done any more


def event(kind: str) -> Trigger:
    return Trigger(delivery_id="d-gone", event=kind, actor=Actor(login="octocat", id=2, type="User"))


async def test_more_repositories_than_are_set_up_at_once_follow(box: Box) -> None:
    """One after the other, also while GitHub does not answer for one of them, and while one is gone."""

    def labelled() -> set[str]:
        return {name for name in names if box.github.world.repository("acme", name).labels}

    names = ["hello", "gone", "down", "last"]
    repos = []
    for name in names:
        if name != "hello":
            await box.github.create_repo(f"acme/{name}")
        repository = box.github.world.repository("acme", name)
        repos.append(Repo(owner="acme", name=name, id=repository.id, installation_id=box.installation))
    repos[1] = dataclasses.replace(repos[1], name="never-was")
    await box.look()
    [installation] = await box.states.all()
    await box.installs.installed(installation, repos, event("installation.created"))
    assert labelled() == {"hello"}
    backlog = SetupBacklog(Cursors(box.conductor.store.engine), box.conductor.store.locks)
    assert await backlog.first() is None  # not before its pause is over
    await box.installs.set_up_next()
    assert labelled() == {"hello"}
    box.github.faults.add(Fault(method="POST", path="/repos/acme/down/labels", status=503))
    with pytest.raises(GitHubUnavailable):
        await box.installs.set_up_next()
    await box.installs.set_up_next()
    assert labelled() == {"hello", "last"}
    await backlog.add([repos[2]], "again")  # it waits already
    await box.installs.set_up_next()
    assert labelled() == {"hello", "down", "last"}
    before = await Cursors(box.conductor.store.engine).get(CURSOR)
    await box.installs.set_up_next()
    assert await Cursors(box.conductor.store.engine).get(CURSOR) == before
    assert before is not None
    assert before[0] == "[]"


async def test_a_line_of_repositories_that_makes_no_sense_is_begun_anew(box: Box) -> None:
    await Cursors(box.conductor.store.engine).set(CURSOR, '[{"id": "x"}]')
    await box.installs.set_up_next()
    assert await Cursors(box.conductor.store.engine).get(CURSOR) is not None
    hello = Repo(owner="acme", name="hello", id=1, installation_id=box.installation)
    backlog = SetupBacklog(
        Cursors(box.conductor.store.engine), box.conductor.store.locks, pause=timedelta(seconds=0)
    )
    await backlog.add([hello], "d1")
    assert await backlog.first() == (hello, "d1")


async def test_a_removal_withdraws_what_was_asked_there(box: Box) -> None:
    asked = await box.asked(await box.queued())
    await box.look()
    assert await box.state_of(asked) is ApprovalState.pending
    box.github.world.installations.clear()
    await box.look()
    assert await box.state_of(asked) is ApprovalState.withdrawn


@pytest.mark.parametrize("what", ["archived", "deleted"])
async def test_a_repository_that_is_closed_down_stops_its_work(box: Box, what: str) -> None:
    waiting = await box.queued()
    asked, job = await box.asked(waiting), await box.job(waiting)
    other = job.repo.id + 1
    why = f"who {what} the repository"
    elsewhere = Repo(owner="acme", name="other", id=other, installation_id=box.installation)
    await box.installs.closed_down(elsewhere, event(f"repository.{what}"), why)
    assert (await box.job(waiting)).state is JobState.queued
    assert await box.state_of(asked) is ApprovalState.pending
    for _ in range(2):  # the event may come twice
        await box.installs.closed_down(job.repo, event(f"repository.{what}"), why)
    stopped = await box.job(waiting)
    assert (stopped.state, stopped.cancel_requested_by) == (JobState.cancelled, f"octocat, {why}")
    assert await box.reasons() == [f"octocat, {why}"]
    assert await box.state_of(asked) is ApprovalState.withdrawn
    assert await box.conductor.store.unreported_jobs() == []  # nobody can be told


async def test_an_issue_that_is_gone_stops_its_work_alone(box: Box) -> None:
    first, second = await box.queued(1), await box.queued(2)
    asked, job = await box.asked(first), await box.job(first)
    await box.installs.issue_gone(job.repo, 1, event("issues.transferred"), "who transferred the issue")
    assert (await box.job(first)).state is JobState.cancelled
    assert await box.state_of(asked) is ApprovalState.withdrawn
    assert await box.reasons() == ["octocat, who transferred the issue"]
    assert (await box.job(second)).state is JobState.queued


@pytest.mark.parametrize("wanted", [True, False])
async def test_what_fails_while_it_is_cancelled_is_cancelled(box: Box, wanted: bool) -> None:
    """A suspended App is refused everything before the worker hears why."""
    store = box.conductor.store
    job_id = await box.queued()
    claimed = await store.claim_next("host")
    assert claimed is not None
    if wanted:
        assert await store.request_cancel(job_id, "octocat, who suspended the App")
    ends: list[tuple[JobState, FailureKind | None]] = []

    async def end(
        state: JobState, phase: object = None, kind: FailureKind | None = None, error: object = None
    ) -> None:
        ends.append((state, kind))

    attempt = SimpleNamespace(host=SimpleNamespace(store=store), job=claimed[0], end=end)
    refused = ConductorError("This installation has been suspended.")
    await _Attempt.fail(attempt, Phase.publish, FailureKind.configuration, refused)  # type: ignore[arg-type]
    expected = (JobState.cancelled, None) if wanted else (JobState.failed, FailureKind.configuration)
    assert ends == [expected]


async def test_what_an_agent_asks_for_in_vain_is_recorded_once(box: Box) -> None:
    job = await box.job(await box.queued())
    refused = [[("request_approval", "Nobody can allow that.")], []]
    desk = SimpleNamespace(take_refused=lambda: refused.pop(0))
    attempt = SimpleNamespace(host=SimpleNamespace(audit=box.conductor.audit), job=job)
    for _ in range(2):
        await _Attempt.record_refused(attempt, desk)  # type: ignore[arg-type]
    wanted = Wanted(kinds=[AuditKind.agent_refused])
    found = [one async for one in box.conductor.audit.entries(wanted) if isinstance(one, Entry)]
    assert [(one.job_id, one.details) for one in found] == [
        (
            job.id,
            {"agent": "shell", "tool": "request_approval", "why": "Nobody can allow that."},
        )
    ]
