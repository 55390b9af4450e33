"""A day without the bot: whatever people asked for while it was stopped is served after its start, each once."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import func, select

from bot.catching_up import CURSOR
from bot.cursors import Cursors
from bot.model import Actor, Job, JobState, Repo, TargetKind, Trigger
from bot.sandbox.state import Comment, ReviewComment
from bot.schema import deliveries
from tests.scenarios.processes import Processes, processes
from tests.scenarios.world import REPO, World

WITHIN = 150.0  # seconds


@dataclass
class Day:
    """What people did, by what must come of it."""

    jobs: list[int] = field(default_factory=list)  # issues and pull requests that must have one queued job
    cancelled: list[int] = field(default_factory=list)  # and issues whose one job must be cancelled
    answers: Counter[int] = field(default_factory=Counter)  # comments of the bot that are no job's
    silent: list[int] = field(default_factory=list)  # issues on which the bot has nothing to say
    asked: int = 0  # commands, labels and reviews


async def work_before(box: World) -> list[int]:
    """Pull requests that the bot made the day before, three of them."""
    maria = box.github.as_user("maria")
    repository = box.github.world.repository("acme", "hello")
    assert repository is not None
    pulls = []
    for name in "abc":
        number = int((await maria.open_issue(REPO, f"Write {name}"))["number"])
        await maria.push_commit(REPO, f"agent/{name}", {f"{name}.txt": f"{name}\n"})
        pulls.append(int((await maria.open_pull(REPO, f"agent/{name}", f"Write {name}"))["number"]))
        job = Job(
            id=f"j-before-{name}",
            repo=Repo(
                owner="acme", name="hello", id=repository.id, installation_id=box.github.installation_id
            ),
            number=number,
            target=TargetKind.issue,
            trigger=Trigger(
                delivery_id=f"before-{name}",
                event="issues.labeled",
                actor=Actor(login="maria", id=box.github.world.users["maria"].id, type="User"),
            ),
            agent="shell",
            model=None,
            instructions="",
            title=f"Write {name}",
            body="",
            timeout=60,
            base=None,
            retry_of=None,
            state=JobState.succeeded,
            created_at=datetime.now(UTC),
            branch=f"agent/{name}",
            pull_number=pulls[-1],
        )
        assert await box.store.add_job(job)
        await box.store.mark_reported(job.id, job.state)
    await box.github.deliveries_settled()
    return pulls


async def live(box: World, pulls: list[int]) -> Day:
    """A day of three people."""
    day = Day()
    maria, octocat, rita = (box.github.as_user(login) for login in ("maria", "octocat", "rita"))

    async def issue(title: str) -> int:
        return int((await maria.open_issue(REPO, title, "Say hello"))["number"])

    for _ in range(16):
        number = await issue("A label")
        await octocat.add_label(REPO, number, "agent")
        day.jobs.append(number)
    for _ in range(10):
        number = await issue("A command")
        await maria.comment(REPO, number, "/agent say hello")
        await rita.comment(REPO, number, "Nice!")
        day.jobs.append(number)
    for word in (
        "status",
        "help",
        "cancel",
        "retry",
        "resume",
        "run --agent nobody go",
        "--timeout soon go",
    ) * 2:
        number = await issue("A question")
        await maria.comment(REPO, number, f"/agent {word}")
        day.answers[number] += 1
    for _ in range(3):
        number = await issue("A stranger")
        await rita.comment(REPO, number, "/agent say hello")
        await rita.comment(REPO, number, "/agent say hello, please")  # and is told once
        day.answers[number] += 1
    for _ in range(3):
        number = await issue("Changed my mind")
        await maria.add_label(REPO, number, "agent")
        await maria.remove_label(REPO, number, "agent")
        day.cancelled.append(number)
    number = await issue("Changed my mind, in words")
    await maria.comment(REPO, number, "/agent say hello")
    await maria.comment(REPO, number, "/agent cancel")
    day.cancelled.append(number)
    await maria.push_commit(REPO, "feature", {"new.txt": "one\n"})
    pull = int((await maria.open_pull(REPO, "feature", "A change"))["number"])
    for _ in range(4):
        remark = {"path": "new.txt", "line": 1, "body": "/agent status"}
        await octocat.review(REPO, pull, "COMMENT", "See below.", comments=[remark])
        day.answers[pull] += 1
    for number in pulls:
        await octocat.review(REPO, number, "REQUEST_CHANGES", "In capitals.\n```sh\necho A > a.txt\n```")
        await octocat.review(REPO, number, "COMMENT", "And have a nice day.")  # is only talk
        day.jobs.append(number)
    for _ in range(3):
        number = await issue("Nothing of ours")
        await maria.add_label(REPO, number, "bug")
        comment = await maria.comment(REPO, number, "What is `/agent help` good for?")
        await maria.edit_comment(REPO, comment["id"], "/agent help")
        day.silent.append(number)
    day.asked = len(day.jobs) + 2 * len(day.cancelled) + 14 + 3 * 2 + 4
    assert day.asked >= 50
    await box.github.deliveries_settled()
    return day


async def looked(box: World, after: datetime) -> None:
    """Return when a server has caught up after that moment, and everything that it found was dealt with."""
    cursors = Cursors(box.store.engine)
    waiting = select(func.count()).where(deliveries.c.state == "received")
    async with asyncio.timeout(WITHIN):
        while True:
            position = await cursors.get(CURSOR)
            if position is not None and position[1] > after:
                async with box.store.engine.connect() as connection:
                    if (await connection.execute(waiting)).scalar_one() == 0:
                        break
            await asyncio.sleep(0.05)
    await box.github.deliveries_settled()


async def served(box: World) -> dict[str, object]:
    """Everything that the bot did, to compare."""
    jobs = await box.store.recent_jobs(1000)
    numbers = sorted(box.github.world.repository("acme", "hello").issues)  # type: ignore[union-attr]
    return {
        "jobs": sorted((job.id, job.number, str(job.state), job.trigger.event) for job in jobs),
        "comments": {
            number: [(comment.id, comment.body) for comment in our_comments(box, number)]
            for number in numbers
        },
    }


def our_comments(box: World, number: int) -> list[Comment | ReviewComment]:
    """What the bot wrote there, as comments and in the diff."""
    issue = box.github.world.repository(*REPO.split("/")).issues[number]
    found = [*issue.comments.values(), *(issue.pull.comments.values() if issue.pull else ())]
    return [one for one in found if one.login == "agent-conductor[bot]"]


async def new_jobs(box: World) -> list[Job]:
    return [job for job in await box.store.recent_jobs(1000) if not job.id.startswith("j-before-")]


async def each_was_served_once(box: World, day: Day) -> None:
    jobs = await new_jobs(box)
    states = {job.number: job.state for job in jobs}
    assert Counter(job.number for job in jobs) == Counter(day.jobs + day.cancelled)
    assert {number for number, state in states.items() if state is JobState.queued} == set(day.jobs)
    assert {number for number, state in states.items() if state is JobState.cancelled} == set(day.cancelled)
    said = {
        number: our_comments(box, number) for number in [*day.jobs, *day.cancelled, *day.answers, *day.silent]
    }
    for number in day.jobs + day.cancelled:
        assert len(said[number]) == len(box.stickies(number)) == 1, said[number]
    assert {number: len(said[number]) for number in day.answers} == dict(day.answers)
    assert [said[number] for number in day.silent] == [[]] * len(day.silent)


@contextlib.asynccontextmanager
async def away(folder: Path):  # type: ignore[no-untyped-def]
    """The product without a worker, stopped after it was there; what people did meanwhile."""
    async with processes(folder, roles=("redis", "serve")) as (box, product):
        await looked(box, datetime.min.replace(tzinfo=UTC))
        pulls = await work_before(box)
        await product.stop("serve")
        day = await live(box, pulls)
        assert await new_jobs(box) == []
        yield box, product, day


@pytest.mark.timeout(400)
async def test_a_day_without_the_bot(tmp_path: Path) -> None:
    async with away(tmp_path) as (box, product, day):
        await again(box, product)
        await each_was_served_once(box, day)
        before = await served(box)
        await product.stop("serve")
        await again(box, product)
        assert await served(box) == before
        found = [str(problem) for problem in box.github.problems]
        assert not found, found


@pytest.mark.timeout(400)
async def test_the_server_is_killed_while_it_catches_up(tmp_path: Path) -> None:
    async with away(tmp_path) as (box, product, day):
        await product.start("serve")
        async with asyncio.timeout(WITHIN):
            while len(await new_jobs(box)) < 6:
                await asyncio.sleep(0.01)
        await product.kill("serve")
        assert len(await new_jobs(box)) < len(day.jobs) + len(day.cancelled)
        await again(box, product)
        await each_was_served_once(box, day)


async def again(box: World, product: Processes) -> None:
    """Start the server, and wait until it has caught up."""
    now = datetime.now(UTC)
    await product.start("serve")
    try:
        await looked(box, now)
    except TimeoutError:
        raise AssertionError(product.log("serve")[-4000:]) from None
