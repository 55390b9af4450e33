"""Many jobs, hosts and limits at once, on a real Redis and on both databases, with nobody to repair what gets lost."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from bot.claims import needs_of, queue_name
from bot.database import create_engine
from bot.model import Actor, Attempt, AttemptState, Job, JobState, Repo, TargetKind, Trigger
from bot.policy import PERSON, Limits
from bot.queue import Dispatcher
from bot.scheduling import Scheduler
from bot.store import Store
from runners.supervisor import Slots, Supervisor
from runners.worker import QueueThread

LIMITS = Limits(repository=3, installation=8, user=4)
HOSTS = {"one": [], "two": [], "three": ["gpu"], "four": ["gpu", "large"]}
SLOTS = 3
JOBS = 40


class Story:
    """What happened to all jobs, and what must never happen."""

    def __init__(self, store: Store, scheduler: Scheduler, chance: random.Random) -> None:
        self.store = store
        self.scheduler = scheduler
        self.chance = chance
        self.running: dict[str, Job] = {}
        self.begun: list[Job] = []
        self.ended: list[str] = []
        self.asked: list[asyncio.Task[None]] = []
        self.wrong: list[str] = []
        self.changed = asyncio.Condition()

    def performer(self, host: str) -> object:
        async def perform(job: Job, attempt: Attempt, _stop: asyncio.Event) -> None:
            await self.work(host, job, attempt)

        return perform

    async def work(self, host: str, job: Job, attempt: Attempt) -> None:
        """What the performer of jobs does, as far as the line is concerned."""
        if job.fence == 1:
            self.begun.append(job)
        self.running[job.id] = job
        self.look(host, job)
        await asyncio.sleep(self.chance.random() * 0.02)
        del self.running[job.id]
        if job.fence == 1 and self.chance.random() < 0.2:
            paused = await self.store.move(
                job.id, JobState.paused, expected=[JobState.running], fence=1, asked_at=datetime.now(UTC)
            )
            assert paused is not None
            await self.store.note(job.id, fence=1, hibernated=True)
            self.asked.append(asyncio.create_task(self.answer(job)))
        else:
            state = self.chance.choice([JobState.succeeded, JobState.failed])
            moved = await self.store.move(job.id, state, expected=[JobState.running], fence=attempt.fence)
            if moved is None:
                self.wrong.append(f"{job.id} ended twice")
            self.ended.append(job.id)
        await self.store.set_attempt(attempt, AttemptState.ended)
        await self.scheduler.offer_waiting()
        async with self.changed:
            self.changed.notify_all()

    async def answer(self, job: Job) -> None:
        await asyncio.sleep(self.chance.random() * 0.05)
        assert await self.store.answer(job.id, "yes", "maria", event="d/0")
        await self.scheduler.offer_waiting()

    def look(self, host: str, job: Job) -> None:
        """Whether what runs now may run together."""
        now = list(self.running.values())
        if not needs_of(job.queue) <= set(HOSTS[host]):
            self.wrong.append(f"{job.id} needs {job.queue} and is on {host}")
        for name, bound, counted in (
            ("conversation", 1, Counter(one.thread_id for one in now)),
            ("repository", LIMITS.repository, Counter(one.repo.id for one in now)),
            ("installation", LIMITS.installation, Counter(one.repo.installation_id for one in now)),
            ("user", LIMITS.user, Counter(one.trigger.actor.id for one in now)),
        ):
            if max(counted.values()) > bound:
                self.wrong.append(f"{name}: {counted}")

    async def until_all_ended(self, count: int) -> None:
        async with asyncio.timeout(120), self.changed:
            await self.changed.wait_for(lambda: len(self.ended) >= count)


def some_job(number: int, chance: random.Random, start: datetime) -> Job:
    repo = chance.randrange(6)
    issue = chance.randrange(4)
    user = chance.randrange(5)
    return Job(
        id=f"j{number:04}",
        repo=Repo(owner="acme", name=f"r{repo}", id=100 + repo, installation_id=20 + repo % 2),
        number=issue + 1,
        target=TargetKind.issue,
        trigger=Trigger(
            delivery_id=f"d{number}", event="e", actor=Actor(login=f"u{user}", id=user, type="User")
        ),
        agent="shell",
        model=None,
        instructions="",
        title="",
        body="",
        timeout=600,
        state=JobState.queued,
        created_at=start + timedelta(milliseconds=number),
        thread_id=f"{100 + repo}-{issue + 1}",
        queue=queue_name(chance.choice([[], [], [], ["gpu"], ["large"], ["gpu", "large"]])),
        priority=chance.choice([0, PERSON]),
    )


@asynccontextmanager
async def hosts(url: str, database_url: str, story: Story) -> AsyncIterator[list[Supervisor]]:
    """Every host with a database engine and an RQ worker of its own."""
    async with AsyncExitStack() as stack:
        found = []
        for name, serves in HOSTS.items():
            engine = create_engine(database_url)
            stack.push_async_callback(engine.dispose)
            supervisor = Supervisor(
                store=Store(engine, LIMITS),
                host=name,
                slots=Slots(SLOTS),
                lease=timedelta(seconds=600),
                perform=story.performer(name),  # type: ignore[arg-type]
                serves=serves,
            )
            await supervisor.adopt()
            thread = QueueThread(url, supervisor, asyncio.get_running_loop())
            stack.push_async_callback(supervisor.close)
            stack.push_async_callback(thread.stop)
            thread.start()
            found.append(supervisor)
        yield found


@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", range(2))
async def test_every_job_runs_once_in_order_and_within_the_limits(
    seed: int, clean_redis: str, engine: AsyncEngine, database_url: str
) -> None:
    chance = random.Random(seed)
    dispatcher = Dispatcher(clean_redis)
    store = Store(engine, LIMITS)
    scheduler = Scheduler(store, dispatcher)
    story = Story(store, scheduler, chance)
    jobs = [some_job(number, chance, datetime.now(UTC)) for number in range(JOBS)]
    cancelled = {job.id for job in chance.sample(jobs, 5)}

    async def ask(job: Job) -> None:
        # a wake-up for another job may be there already: so it is to be stopped before it can be seen
        await store.add_job(job.evolve(cancel_requested_by="maria" if job.id in cancelled else None))
        if job.id in cancelled:
            assert await store.cancel_unowned(job.id)
            await scheduler.offer_waiting()
        else:
            await scheduler.offer(job)

    async with hosts(clean_redis, database_url, story) as supervisors:
        for job in jobs:
            await ask(job)
        await story.until_all_ended(JOBS - len(cancelled))
        await asyncio.gather(*story.asked)
        async with asyncio.timeout(30):
            while any(supervisor.running for supervisor in supervisors):
                await asyncio.sleep(0.02)
    dispatcher.close()

    assert story.wrong == [], f"seed {seed}"
    assert sorted(story.ended) == sorted(job.id for job in jobs if job.id not in cancelled)
    order: dict[str, list[str]] = {}
    for job in story.begun:
        order.setdefault(job.thread_id, []).append(job.id)
    assert all(names == sorted(names) for names in order.values()), order
    assert {job.state for job in await store.recent_jobs(1000)} <= {
        JobState.succeeded,
        JobState.failed,
        JobState.cancelled,
    }


async def test_a_job_is_offered_to_every_kind_of_host_that_can_do_it(
    clean_redis: str, engine: AsyncEngine
) -> None:
    store, dispatcher, chance = Store(engine), Dispatcher(clean_redis), random.Random(0)
    scheduler = Scheduler(store, dispatcher)
    for name, serves in HOSTS.items():
        await store.host_seen(name, 1, datetime.now(UTC), serves)
    one = some_job(1, chance, datetime.now(UTC)).evolve(queue="gpu", thread_id="1")
    two = some_job(2, chance, datetime.now(UTC)).evolve(queue="", thread_id="2")
    for job in (one, two):
        await store.add_job(job)
    for _ in range(2):  # again changes nothing
        await scheduler.offer(one)
        await scheduler.offer_waiting()
    assert await dispatcher.waiting() == 1
    assert await dispatcher.waiting(["gpu"]) == 2
    assert await dispatcher.waiting(["large", "gpu"]) == 2
    dispatcher.close()


async def test_a_redis_that_is_away_keeps_nobody_from_asking(engine: AsyncEngine) -> None:
    store, dispatcher = Store(engine), Dispatcher("redis://127.0.0.1:1/0")
    await store.host_seen("one", 1, datetime.now(UTC))
    job = some_job(1, random.Random(0), datetime.now(UTC)).evolve(queue="")
    await store.add_job(job)
    scheduler = Scheduler(store, dispatcher)
    await scheduler.offer(job)
    await scheduler.offer_waiting()
    assert [found for found, _ in await store.startable()] == [job.id]
    dispatcher.close()
