"""Orders about one job from elsewhere than a comment: the buttons of its check run, and the operator's command line."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from bot.config import Settings
from bot.model import Job, JobState
from bot.sandbox.checks import request_action, tell_run
from bot.sandbox.faults import Fault
from bot.sandbox.human import Human
from tests.scenarios.world import REPO, World, world

LONG = "```sh\necho started > x.txt; sleep 300\n```"
SHORT = "```sh\necho 1 > one.txt\n```"


async def asked(box: World, body: str, login: str = "maria") -> int:
    """A labelled issue of its own."""
    person = box.github.as_user(login)
    number = int((await person.open_issue(REPO, "Work", body))["number"])
    await person.add_label(REPO, number, "agent")
    return number


async def until(box: World, number: int, state: JobState) -> Job:
    async with asyncio.timeout(60):
        while (job := await box.job(number)).state is not state:
            await asyncio.sleep(0.05)
    return job


async def pressed(box: World, login: str, button: str, external_id: str, repo: str = REPO) -> None:
    """What GitHub sends when somebody presses; it shows the buttons to writers only, so this goes round its pages."""
    human: Human = box.github.as_user("maria")
    repository = box.github.world.repository(*repo.split("/"))
    github = human._github
    run = next(reversed(list(repository.check_runs.values())))
    run.external_id = external_id
    if button:
        request_action(github, repository, run, login, button)
    else:
        tell_run(github, repository, run, login, "rerequested")
    await box.dealt_with()


async def with_a_check_run(box: World) -> tuple[int, Job]:
    """A running job in a pull request, whose check run has a button."""
    maria = box.github.as_user("maria")
    await maria.push_commit(REPO, "feature", {"feature.txt": "one\n"})
    number = int((await maria.open_pull(REPO, "feature", "A feature"))["number"])
    await maria.comment(REPO, number, f"/agent run --agent shell work\n{LONG}")
    job = await until(box, number, JobState.running)
    async with asyncio.timeout(60):
        while not box.github.check_runs(REPO):
            await asyncio.sleep(0.05)
    return number, job


async def test_who_may_not_write_may_not_press(tmp_path: Path) -> None:
    async with world(tmp_path, slots=2) as box:
        number, job = await with_a_check_run(box)
        for _ in range(2):
            await pressed(box, "rita", "cancel", job.id)
        await pressed(box, "tom", "cancel", job.id)
        now = await box.store.job(job.id)
        assert now is not None
        assert now.cancel_requested_by is None
        told = [comment["body"] for comment in box.github.comments(REPO, number)]
        refusals = [text for text in told if "stopping work needs write access" in text]
        assert ["@rita" in text for text in refusals] == [True, False]  # each of the two once
        await pressed(box, "maria", "cancel", job.id)
        assert (await box.ended(number)).state is JobState.cancelled
        await pressed(box, "rita", "", job.id)  # "Re-run"
        await pressed(box, "rita", "retry", job.id)
        assert len(await box.store.recent_jobs()) == 1


async def test_a_check_run_names_jobs_of_its_own_repository_only(tmp_path: Path) -> None:
    """The external id is text that anybody's App may choose."""
    async with world(tmp_path, slots=2) as box:
        await with_a_check_run(box)
        repository = box.github.world.repository(*REPO.split("/"))
        number = await asked(box, LONG)
        job = await until(box, number, JobState.running)
        await box.github.create_repo("acme/other")
        other = box.github.world.repository("acme", "other")
        other.check_suites, other.check_runs = repository.check_suites, repository.check_runs
        before = len(await box.store.recent_jobs())
        await pressed(box, "octocat", "cancel", job.id, "acme/other")
        await pressed(box, "octocat", "", job.id, "acme/other")
        await pressed(box, "octocat", "cancel", "jnobody")
        await pressed(box, "octocat", "cancel", "")
        other.check_suites, other.check_runs = {}, {}
        assert (await until(box, number, JobState.running)).cancel_requested_by is None
        assert len(await box.store.recent_jobs()) == before
        await pressed(box, "octocat", "cancel", job.id)
        assert (await box.ended(number)).state is JobState.cancelled


async def conductor(settings: Settings, *arguments: str) -> tuple[int, str]:
    """`conductor jobs …` as a process of its own: exit code and everything it says."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CONDUCTOR_")}
    for name in ("github_api_url", "github_app_id", "github_private_key", "redis_url", "data_dir", "runner"):
        value = getattr(settings, name)
        shown = value.get_secret_value() if hasattr(value, "get_secret_value") else value
        environment[f"CONDUCTOR_{name.upper()}"] = str(shown)
    environment["CONDUCTOR_AGENTS"] = '["shell"]'
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bot", "jobs", *arguments,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        env=environment, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    said, _ = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode or 0, said.decode()


@pytest.mark.timeout(400)  # eight processes, one after the other
async def test_the_operator_stops_and_repeats_jobs(tmp_path: Path) -> None:
    async with world(tmp_path, slots=1) as box:
        first = await asked(box, LONG)
        running = await until(box, first, JobState.running)
        second = await asked(box, SHORT)
        waiting = await box.job(second)

        code, said = await conductor(box.settings, "retry", running.id)
        assert (code, "is still running" in said) == (1, True)
        code, said = await conductor(box.settings, "cancel", waiting.id)
        assert (code, f"{waiting.id} is cancelled." in said) == (0, True)
        code, said = await conductor(box.settings, "cancel", running.id)
        assert (code, f"{running.id} is being stopped." in said) == (0, True)
        for number in (first, second):
            assert (await box.ended(number)).state is JobState.cancelled
            (sticky,) = box.stickies(number)
            assert "🛑 **Cancelled** by the operator" in sticky
        code, said = await conductor(box.settings, "cancel", running.id)
        assert (code, "has ended already: cancelled" in said) == (1, True)

        code, said = await conductor(box.settings, "retry", waiting.id)
        assert (code, f"{waiting.id} once more" in said) == (0, True)
        again = await box.ended(second, nth=1)
        assert (again.state, again.retry_of, again.trigger.actor.login) == (
            JobState.succeeded,
            waiting.id,
            "maria",
        )
        code, said = await conductor(box.settings, "cancel", "jnobody")
        assert (code, "There is no job 'jnobody'." in said) == (1, True)

        box.github.set_role(REPO, "maria", "read")  # what she may not do any more is not done in her name
        code, said = await conductor(box.settings, "retry", waiting.id)
        assert (code, f"A comment in {REPO}#{second} says why." in said) == (1, True)
        assert "needs write access" in box.github.comments(REPO, second)[-1]["body"]


async def test_a_job_is_stopped_while_it_is_still_made_ready(tmp_path: Path) -> None:
    """A first clone, an image, a repository's set-up: each may take minutes."""
    async with world(tmp_path) as box:
        box.github.faults.add(Fault(path=r"hello\.git/info/refs", delay=600))
        number = await asked(box, SHORT)
        async with asyncio.timeout(60):
            while box.github.faults.waiting:  # taken by the fetch, which waits now
                await asyncio.sleep(0.01)
        await box.github.as_user("maria").comment(REPO, number, "/agent cancel")
        job = await box.ended(number, within=60)
        assert (job.state, job.base_sha, job.cancel_requested_by) == (JobState.cancelled, None, "maria")
        assert "**Cancelled** by maria" in box.stickies(number)[0]
        folder = box.settings.data_dir / "attempts" / f"{job.id}-1"
        async with asyncio.timeout(60):
            while folder.exists():
                await asyncio.sleep(0.05)
