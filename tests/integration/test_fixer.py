"""Failed checks of the bot's own commits, fixed without being asked: when, how often, and when not."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncEngine

from bot.check_reader import CheckReader
from bot.facts import FactFinder
from bot.failed_checks import PENDING_PATIENCE
from bot.failing_heads import FailingHeads
from bot.fixer import EVENT, FORGET, Fixer, as_before
from bot.github import GitHub
from bot.github_transport import Patience
from bot.model import Actor, Job, JobKind, JobState, Repo, Request, TargetKind, Trigger, job_id_for
from bot.profiles import Profile, keep
from bot.redact import Redactor
from bot.repo_config import PATH
from bot.sandbox.faults import Fault
from bot.sandbox.sandbox import Sandbox
from bot.schema import failing_heads, jobs
from bot.store import Store
from tests.jobs import asked_job
from tests.made_once import app_key

REPO = "acme/thing"
ON = "fix:\n  automatic: true\n  attempts: 2\n  settle: 60s\n"
LONG_AGO = "2026-01-01T00:00:00Z"


@dataclass
class Place:
    """A pull request with a commit of ours, and what the fixer did about it."""

    sandbox: Sandbox
    engine: AsyncEngine
    store: Store
    fixer: Fixer
    repo: Repo
    number: int
    sha: str
    asked: list[Request] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    refuses: bool = False
    dies: bool = False

    async def submit(self, request: Request) -> Job | None:
        """Accept it as the conductor would: a job whose id is made from the trigger."""
        if self.dies:
            raise RuntimeError("the server was killed")
        self.asked.append(request)
        if self.refuses:
            return None
        job = self.job(
            id=job_id_for(request.trigger.delivery_id),
            kind=request.kind,
            trigger=request.trigger,
            number=request.number,
            target=request.target,
            state=JobState.queued,
        )
        await self.store.add_job(job)
        return job

    async def tell(self, repo: Repo, number: int, trigger: Trigger, text: str) -> None:
        assert (repo, number) == (self.repo, self.number)
        self.told.append(text)

    def unable(self, agent: str) -> str:
        return "the agent `shell` understands nothing" if agent == "shell" else ""

    def job(self, **more: Any) -> Job:
        maria = self.sandbox.world.users["maria"]
        values: dict[str, Any] = {
            "repo": self.repo,
            "number": 99,  # an issue
            "agent": "codex",
            "model": "m1",
            "title": "The task",
            "body": "What was wanted",
            "state": JobState.succeeded,
            "created_at": datetime.now(UTC),
        }
        return asked_job(by=Actor(login="maria", id=maria.id, type="User"), **(values | more))

    async def fails(
        self, conclusion: str = "failure", *, name: str = "test", at: str = LONG_AGO, **more: Any
    ) -> None:
        """A check of another App ends on the commit, and its event arrives."""
        app = self.sandbox.as_app("ci")
        await app.check(REPO, self.sha, name, conclusion, completed_at=at, **more)
        await self.event()

    async def event(self, app_id: int | None = None) -> None:
        app_id = app_id or self.sandbox.world.other_apps["ci"].id
        await self.fixer.completed(self.repo, self.sha, app_id=app_id)

    async def row(self) -> Any:
        query = select(failing_heads).where(failing_heads.c.sha == self.sha)
        async with self.engine.connect() as connection:
            return (await connection.execute(query)).one_or_none()

    async def time_passes(self, seconds: float) -> None:
        """As if everything that is known were older."""
        row, by = await self.row(), timedelta(seconds=seconds)
        change = update(failing_heads).where(failing_heads.c.sha == self.sha)
        async with self.engine.begin() as connection:
            await connection.execute(
                change.values(seen_at=row.seen_at - by, look_at=row.look_at and row.look_at - by)
            )

    async def ended(self, job_id: str, state: JobState = JobState.succeeded, sha: str | None = None) -> None:
        change = update(jobs).where(jobs.c.id == job_id).values(state=str(state), head_sha=sha)
        async with self.engine.begin() as connection:
            await connection.execute(change)

    async def push(self, text: str) -> str:
        """A commit of the bot's: the job that is asked for last pushes it."""
        last = (await self.store.jobs_on(self.repo.id, self.number))[0]
        self.sha = await self.sandbox.as_user("maria").push_commit(REPO, "agent/1", {"a.py": text})
        await self.ended(last.id, sha=self.sha)
        return self.sha


@pytest.fixture
async def place(tmp_path: Path, engine: AsyncEngine, store: Store) -> AsyncIterator[Place]:
    async with Sandbox.start(private_key=app_key(), state_dir=tmp_path / "github") as sandbox:
        people = {"octocat": "admin", "maria": "write"}
        await sandbox.create_repo(REPO, files={"a.py": "x\n", PATH: ON}, collaborators=people)
        repository = sandbox.world.repository("acme", "thing")
        repo = Repo(owner="acme", name="thing", id=repository.id, installation_id=sandbox.installation_id)
        key = Path(sandbox.private_key_path).read_text()
        patience = Patience(tries=1)
        async with GitHub(sandbox.url, str(sandbox.app_id), key, patience=patience) as github:
            sha = await sandbox.as_user("maria").push_commit(REPO, "agent/1", {"a.py": "y\n"})
            pull = await github.installation(sandbox.installation_id).post(
                "/repos/acme/thing/pulls", data={"title": "T", "head": "agent/1", "base": "main", "body": ""}
            )
            place = Place(
                sandbox=sandbox,
                engine=engine,
                store=store,
                fixer=None,  # type: ignore[arg-type]
                repo=repo,
                number=pull["number"],
                sha=sha,
            )
            place.fixer = Fixer(
                github=github,
                store=store,
                heads=FailingHeads(engine),
                facts=FactFinder(github),
                checks=CheckReader(github, Redactor()),
                submit=place.submit,
                tell=place.tell,
                unable=place.unable,
            )
            await store.add_job(place.job(head_sha=sha, pull_number=place.number, branch="agent/1"))
            yield place
        assert [str(problem) for problem in sandbox.problems] == []


async def test_a_failure_of_our_commit_starts_a_job(place: Place) -> None:
    await place.fails(title="1 failed", summary="assert 1 == 2")
    (request,) = place.asked
    assert (request.kind, request.target, request.number) == (
        JobKind.fix,
        TargetKind.pull_request,
        place.number,
    )
    assert (request.agent, request.usual_agent, request.usual_model) == (None, "codex", "m1")
    assert request.title == "The task"
    assert request.trigger.event == EVENT
    assert request.trigger.actor.login == "maria"  # who asked for the work, and must still be allowed to
    assert "assert 1 == 2" in request.instructions
    assert place.told == []


async def test_a_commit_status_that_failed_starts_a_job(place: Place) -> None:
    await place.sandbox.as_app("ci").status(
        REPO,
        place.sha,
        "failure",
        context="jenkins",
        description="Broken",
        target_url="https://ci.example.com/7",
    )
    await place.fixer.completed(place.repo, place.sha)
    assert place.asked == []  # another may come at once
    (status,) = place.sandbox.world.repository("acme", "thing").statuses
    status.created_at -= timedelta(hours=1)
    await place.fixer.completed(place.repo, place.sha)
    (request,) = place.asked
    assert request.kind is JobKind.fix
    assert all(words in request.instructions for words in ("`jenkins`", "Broken", "https://ci.example.com/7"))


async def test_once_for_a_commit_however_often_its_event_comes(place: Place) -> None:
    await place.fails()
    await place.event()
    await place.fails(name="lint")
    await place.fixer.sweep()
    assert len(place.asked) == 1
    await place.ended(job_id_for(place.asked[0].trigger.delivery_id))
    await place.event()  # the fix changed nothing, and the checks ran again
    assert len(place.asked) == 1


@pytest.mark.parametrize("text", ["fix:\n  automatic: false\n", "agent: codex\n", "fix: [1\n"])
async def test_not_where_it_is_not_wanted(place: Place, text: str) -> None:
    await place.sandbox.as_user("octocat").push_commit(REPO, "main", {PATH: text})
    await place.fails()
    assert place.asked == []
    assert (await place.row()).look_at is None


async def test_the_pull_request_cannot_switch_it_on(place: Place) -> None:
    await place.sandbox.as_user("octocat").push_commit(REPO, "main", {PATH: "agent: codex\n"})
    await place.push("z\n")
    await place.sandbox.as_user("maria").push_commit(REPO, "agent/1", {PATH: ON})
    await place.fails()
    assert place.asked == []


async def test_not_a_commit_of_somebody_else(place: Place) -> None:
    place.sha = await place.sandbox.as_user("maria").push_commit(REPO, "agent/1", {"a.py": "by hand\n"})
    await place.fails()
    assert place.asked == []
    assert await place.row() is None  # and nothing is asked of GitHub or remembered


async def test_not_an_older_commit_of_ours(place: Place) -> None:
    await place.sandbox.as_user("maria").push_commit(REPO, "agent/1", {"a.py": "by hand\n"})
    await place.fails()
    assert place.asked == []
    assert "went on to" in (await place.row()).said


async def test_not_for_a_failure_of_our_own_check_runs(place: Place) -> None:
    await place.sandbox.as_app("ci").check(REPO, place.sha, "fine", "success", completed_at=LONG_AGO)
    await place.event(app_id=place.sandbox.app_id)
    assert await place.row() is None
    await place.event()
    assert place.asked == []
    assert (await place.row()).said == "no check failed"


async def test_not_in_a_closed_pull_request(place: Place) -> None:
    await place.sandbox.as_user("maria").request(
        "PATCH", f"/repos/{REPO}/pulls/{place.number}", {"state": "closed"}
    )
    await place.fails()
    assert place.asked == []


async def test_others_may_still_start(place: Place) -> None:
    await place.fails(at=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"))
    assert place.asked == []
    row = await place.row()
    assert timedelta(0) < row.look_at - datetime.now(UTC) <= timedelta(seconds=60)
    await place.fixer.sweep()  # not yet
    assert place.asked == []


async def test_others_still_run(place: Place) -> None:
    app = place.sandbox.as_app("ci")
    slow = await app.check(REPO, place.sha, "slow", None)
    await place.fails()
    assert place.asked == []
    assert (await place.row()).look_at is not None
    await app.finish_check(REPO, slow["id"], "success", completed_at=LONG_AGO)
    await place.event()  # of the slow one, which went well
    assert len(place.asked) == 1


async def test_one_that_never_ends_is_waited_for_by_housekeeping_alone(place: Place) -> None:
    await place.sandbox.as_app("ci").check(REPO, place.sha, "stuck", None)
    await place.fails()
    await place.time_passes(PENDING_PATIENCE + 1)
    await place.fixer.sweep()
    assert len(place.asked) == 1
    assert "Not ended yet: `stuck`." in place.asked[0].instructions


async def test_a_job_that_runs_here_is_not_disturbed(place: Place) -> None:
    await place.store.add_job(place.job(id="j2", state=JobState.running))
    place.sandbox.faults.add(fault := Fault(path="/commits/", status=500, times=None))
    await place.fails()
    assert place.asked == []
    assert (await place.row()).look_at is not None
    place.sandbox.faults.waiting.remove(fault)
    # it ended without a push
    await place.ended("j2")
    await place.time_passes(120)
    await place.fixer.sweep()
    assert len(place.asked) == 1


async def test_it_stops_after_the_tries_that_are_allowed_and_says_so_once(place: Place) -> None:
    for number in range(2):
        await place.fails(title=f"failure {chr(97 + number) * 5}")
        await place.push(f"try {number}\n")
    assert len(place.asked) == 2
    await place.fails(title="failure ccccc")
    assert len(place.asked) == 2
    (text,) = place.told
    assert "2 tries in a row did not help" in text
    assert place.sha in text


async def test_it_stops_when_a_try_changed_nothing_about_the_failure(place: Place) -> None:
    await place.fails(title="assert 1 == 2", summary="took 3.2 s")
    await place.push("no help\n")
    await place.fails(title="assert 1 == 2", summary="took 4.7 s")
    assert len(place.asked) == 1
    assert "the same checks fail as before" in place.told[0]


async def test_a_person_who_asks_for_something_gives_new_tries(place: Place) -> None:
    for number in range(2):
        await place.fails(title=f"failure {chr(97 + number) * 5}")
        await place.push(f"try {number}\n")
    await place.store.add_job(
        place.job(id="j7", number=place.number, target=TargetKind.pull_request, state=JobState.queued)
    )
    await place.push("a person's wish\n")
    await place.fails(title="failure ddddd")
    assert len(place.asked) == 3


@pytest.mark.parametrize("state", [JobState.cancelled, JobState.failed, JobState.timed_out])
async def test_it_stops_when_the_last_job_ended_badly(place: Place, state: JobState) -> None:
    await place.store.add_job(place.job(id="j2", state=state))
    await place.fails()
    assert place.asked == []
    assert (await place.row()).look_at is None


async def works(place: Place, agent: str, **more: Any) -> None:
    """A job in the pull request that is done by now, and has pushed nothing."""
    values = {"id": f"j-{agent}-{len(more)}", "agent": agent, "model": "m2", "number": place.number} | more
    await place.store.add_job(place.job(target=TargetKind.pull_request, **values))


async def test_the_agent_that_worked_here_last_goes_on(place: Place) -> None:
    await works(place, "claude")
    await works(place, "gemini", kind=JobKind.ask)  # changed nothing
    await works(place, "qwen", number=99, pull_number=98)  # the same issue, another pull request
    await place.fails()
    (request,) = place.asked
    assert (request.usual_agent, request.usual_model) == ("claude", "m2")


async def test_a_profile_that_somebody_named_goes_on_with_the_agent_that_was_taken(place: Place) -> None:
    named = keep(Profile(name="mine", text="Be brief.", agent="codex", asked=True))
    await works(place, "claude", config=named)
    await place.fails()
    (request,) = place.asked
    assert (request.profile, request.agent, request.model) == ("mine", "claude", "m2")
    (worker,) = [one for one in await place.store.recent_jobs() if one.agent == "claude"]
    other = as_before(request.evolve(profile=None, agent="qwen", model=None), worker)
    assert (other.profile, other.agent, other.model) == ("mine", "qwen", None)


async def test_an_agent_that_runs_commands_is_not_told_what_failed_and_people_are_told_why(
    place: Place,
) -> None:
    await works(place, "shell")
    await place.fails()
    assert place.asked == []
    (told,) = place.told
    assert f"Checks of {place.sha} fail" in told
    assert "the agent `shell` understands nothing. Write `/agent fix --agent NAME`" in told
    assert (await place.row()).look_at is None


async def test_what_was_only_read_since_makes_no_difference(place: Place) -> None:
    await place.store.add_job(place.job(id="j2", kind=JobKind.ask, state=JobState.failed))
    await place.fails()
    assert len(place.asked) == 1


async def test_a_refused_one_is_not_asked_for_again(place: Place) -> None:
    place.refuses = True
    await place.fails()
    await place.event()
    await place.fixer.sweep()
    assert len(place.asked) == 1


async def test_a_server_that_dies_in_between_starts_it_after_all_and_once(place: Place) -> None:
    place.dies = True
    with pytest.raises(RuntimeError):
        await place.fails()
    place.dies = False
    await place.fixer.sweep()
    await place.fixer.sweep()
    assert len(place.asked) == 1


async def test_github_in_trouble_is_asked_again(place: Place) -> None:
    place.sandbox.faults.add(Fault(path="/check-runs", method="GET", status=500))
    await place.fails()
    assert place.asked == []
    await place.time_passes(61)
    await place.fixer.sweep()
    assert len(place.asked) == 1


async def test_an_old_failure_is_forgotten(place: Place) -> None:
    await place.sandbox.as_app("ci").check(REPO, place.sha, "stuck", None)
    await place.fails()
    await place.time_passes(FORGET.total_seconds() + 1)
    await place.fixer.sweep()
    assert place.asked == []
    assert (await place.row()).look_at is None


async def test_a_pull_request_that_is_gone(place: Place) -> None:
    place.sandbox.faults.add(Fault(path=f"/pulls/{place.number}", status=404, message="Not Found"))
    await place.fails()
    assert place.asked == []
    assert (await place.row()).look_at is None
