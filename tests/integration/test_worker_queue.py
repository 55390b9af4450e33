"""RQ, the slots and the supervisor on a real Redis and a real database."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import redis
from rq.exceptions import DeserializationError
from rq.job import Job as RQJob
from rq.serializers import JSONSerializer
from sqlalchemy import select, text

from bot.database import create_engine
from bot.errors import InfrastructureError
from bot.model import Attempt, AttemptState, Job, JobState
from bot.queue import ENTRY, Dispatcher
from bot.schema import attempts, hosts
from bot.store import Store
from runners import worker as rq_side
from runners.supervisor import Perform, Slots, Supervisor
from tests.jobs import asked_job
from tests.made_once import migrated


def job(number: int) -> Job:
    return asked_job(f"j{number}", number=number, timeout=600)


class Workers:
    """A performer that waits until it is let go, and remembers who was there."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.started: list[str] = []
        self.stopped: list[str] = []
        self.go = asyncio.Event()
        self.changed = asyncio.Condition()

    async def perform(self, job: Job, attempt: Attempt, stop: asyncio.Event) -> None:
        self.started.append(job.id)
        async with self.changed:
            self.changed.notify_all()
        waits = [asyncio.create_task(self.go.wait()), asyncio.create_task(stop.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        state = JobState.cancelled if stop.is_set() else JobState.succeeded
        await self.store.move(job.id, state, expected=[JobState.running], fence=attempt.fence)
        await self.store.set_attempt(attempt, AttemptState.ended)
        async with self.changed:
            self.changed.notify_all()

    async def until(self, condition: object) -> None:
        async with asyncio.timeout(20), self.changed:
            await self.changed.wait_for(condition)  # type: ignore[arg-type]


@asynccontextmanager
async def host(
    name: str, url: str, store: Store, perform: Perform, slots: int = 2
) -> AsyncIterator[Supervisor]:
    supervisor = Supervisor(
        store=store, host=name, slots=Slots(slots), lease=timedelta(seconds=60), perform=perform
    )
    await supervisor.adopt()
    thread = rq_side.QueueThread(url, supervisor, asyncio.get_running_loop())
    watching = asyncio.create_task(supervisor.run())
    thread.start()
    try:
        yield supervisor
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        await supervisor.close()
        await thread.stop()


@pytest.fixture
async def sqlite(tmp_path: Path) -> AsyncIterator[Store]:
    engine = create_engine(migrated(tmp_path / "c.db"))
    yield Store(engine)
    await engine.dispose()


async def test_a_host_takes_as_much_as_it_has_slots_for(clean_redis: str, sqlite: Store) -> None:
    dispatcher = Dispatcher(clean_redis)
    workers = Workers(sqlite)
    for number in range(4):
        await sqlite.add_job(job(number))
        await dispatcher.offer([job(number).id])
    async with host("h", clean_redis, sqlite, workers.perform) as supervisor:
        await workers.until(lambda: len(workers.started) == 2)
        assert workers.started == ["j0", "j1"]
        assert supervisor.slots.free == 0
        assert await dispatcher.waiting() == 2  # what cannot be started stays for another host
        workers.go.set()
        await workers.until(lambda: len(workers.started) == 4)
        async with asyncio.timeout(10):
            while await sqlite.active_jobs():
                await asyncio.sleep(0.02)
    dispatcher.close()
    assert {found.state for found in await sqlite.recent_jobs()} == {JobState.succeeded}


async def test_an_id_that_comes_twice_or_means_nothing_starts_nothing(
    clean_redis: str, sqlite: Store
) -> None:
    dispatcher = Dispatcher(clean_redis)
    workers = Workers(sqlite)
    await sqlite.add_job(job(1))
    await dispatcher.offer(["j1"])
    await dispatcher.offer(["j1"])
    assert await dispatcher.waiting() == 1
    await dispatcher.offer(["nobody"])
    async with host("h", clean_redis, sqlite, workers.perform):
        await workers.until(lambda: workers.started == ["j1"])
        await dispatcher.offer(["j1", "nobody"])  # running already, and never heard of
        async with asyncio.timeout(20):
            while await dispatcher.waiting():
                await asyncio.sleep(0.02)
        await sqlite.add_job(job(2))
        await dispatcher.offer(["j2"])
        await workers.until(lambda: len(workers.started) == 2)
        assert workers.started == ["j1", "j2"]
        workers.go.set()
    dispatcher.close()


async def test_a_cancellation_reaches_the_attempt(clean_redis: str, sqlite: Store) -> None:
    dispatcher = Dispatcher(clean_redis)
    workers = Workers(sqlite)
    await sqlite.add_job(job(1))
    await dispatcher.offer(["j1"])
    async with host("h", clean_redis, sqlite, workers.perform):
        await workers.until(lambda: workers.started == ["j1"])
        assert await sqlite.request_cancel("j1", "maria")
        async with asyncio.timeout(20):
            while (found := await sqlite.job("j1")) is None or not found.state.final:
                await asyncio.sleep(0.05)
        assert found.state is JobState.cancelled
    dispatcher.close()


async def test_a_restarted_host_adopts_what_ran(clean_redis: str, sqlite: Store) -> None:
    dispatcher = Dispatcher(clean_redis)
    await sqlite.add_job(job(1))
    await dispatcher.offer(["j1"])
    first, second = Workers(sqlite), Workers(sqlite)
    async with host("h", clean_redis, sqlite, first.perform):
        await first.until(lambda: first.started == ["j1"])
    running = await sqlite.job("j1")
    assert running is not None
    assert running.state is JobState.running  # closing a worker ends no job
    second.go.set()
    async with host("h", clean_redis, sqlite, second.perform), asyncio.timeout(20):
        while (found := await sqlite.job("j1")) is None or not found.state.final:
            await asyncio.sleep(0.02)
    assert second.started == ["j1"]
    assert found.fence == 1  # the same attempt went on
    dispatcher.close()


async def test_a_fault_of_what_we_depend_on_interrupts_and_does_not_end_a_job(
    clean_redis: str, sqlite: Store
) -> None:
    dispatcher = Dispatcher(clean_redis)
    tries: list[str] = []

    async def perform(job: Job, attempt: Attempt, stop: asyncio.Event) -> None:
        tries.append(attempt.id)
        if len(tries) == 1:
            raise InfrastructureError("GitHub is away.")
        await sqlite.move(job.id, JobState.succeeded, expected=[JobState.running], fence=attempt.fence)

    await sqlite.add_job(job(1))
    await dispatcher.offer(["j1"])
    async with host("h", clean_redis, sqlite, perform), asyncio.timeout(20):
        while (found := await sqlite.job("j1")) is None or not found.state.final:
            await asyncio.sleep(0.02)
    assert tries == ["j1-1", "j1-1"]
    assert found.state is JobState.succeeded
    dispatcher.close()


async def test_a_host_survives_a_redis_that_goes_away(tmp_path: Path, sqlite: Store) -> None:
    from bot.embedded_redis import EmbeddedRedis

    workers = Workers(sqlite)
    workers.go.set()
    # the second one ends after the host, whose RQ worker would else go on looking for it
    async with contextlib.AsyncExitStack() as servers, EmbeddedRedis(tmp_path / "r") as server:
        url = server.url
        dispatcher = Dispatcher(url)
        async with host("h", url, sqlite, workers.perform):
            await sqlite.add_job(job(1))
            await dispatcher.offer(["j1"])
            await workers.until(lambda: workers.started == ["j1"])
            await server.__aexit__(None, None, None)
            await sqlite.add_job(job(2))
            with pytest.raises(InfrastructureError, match="Redis does not answer"):
                await dispatcher.offer(["j2"])
            await servers.enter_async_context(EmbeddedRedis(tmp_path / "r"))
            await dispatcher.offer(["j2"])
            await workers.until(lambda: workers.started == ["j1", "j2"])
        dispatcher.close()


def test_a_pickled_job_is_refused(clean_redis: str) -> None:
    """Whoever can write to Redis must not run code here (rq#2389)."""
    import pickle

    with redis.Redis.from_url(clean_redis) as connection:
        call = pickle.dumps(("os.system", None, ("true",), {}))
        connection.hset("rq:job:evil", mapping={"data": call, "created_at": "2026-01-01T00:00:00Z"})
        found = RQJob.fetch("evil", connection=connection, serializer=JSONSerializer)
        with pytest.raises(DeserializationError):
            _ = found.func_name
        assert f"{rq_side.take.__module__}.{rq_side.take.__name__}" == ENTRY


def test_the_entry_refuses_to_run_outside_of_a_worker_host() -> None:
    with pytest.raises(RuntimeError, match="conductor worker"):
        rq_side.take("j1")


async def test_an_interrupted_attempt_goes_on_as_what_it_has_become(clean_redis: str, sqlite: Store) -> None:
    dispatcher = Dispatcher(clean_redis)
    seen: list[Attempt] = []
    later = datetime.now(UTC) + timedelta(days=1)

    async def perform(job: Job, attempt: Attempt, stop: asyncio.Event) -> None:
        seen.append(attempt)
        if len(seen) == 1:
            await sqlite.set_attempt(attempt, AttemptState.running)
            await sqlite.renew(replace(attempt, deadline=later), as_of=later)
            raise InfrastructureError("The engine is away.")
        await sqlite.move(job.id, JobState.succeeded, expected=[JobState.running], fence=attempt.fence)

    await sqlite.add_job(job(1))
    await dispatcher.offer(["j1"])
    async with host("h", clean_redis, sqlite, perform), asyncio.timeout(20):
        while (found := await sqlite.job("j1")) is None or not found.state.final:
            await asyncio.sleep(0.02)
    # else its container would be started a second time, and its old deadline would count
    assert [attempt.state for attempt in seen[:2]] == [AttemptState.starting, AttemptState.running]
    assert seen[1].deadline == later
    dispatcher.close()


async def test_a_take_over_that_the_database_refuses_keeps_no_slot(sqlite: Store) -> None:
    await sqlite.add_job(job(1))
    assert await sqlite.claim_next("silent") is not None
    long_ago = datetime.now(UTC) - timedelta(hours=1)
    async with sqlite.engine.begin() as connection:
        await connection.execute(attempts.update().values(claimed_at=long_ago))
        refuse = "CREATE TRIGGER full BEFORE INSERT ON attempts BEGIN SELECT RAISE(ABORT, 'disk full'); END"
        await connection.execute(text(refuse))
    tried = asyncio.Event()

    async def perform(job: Job, attempt: Attempt, stop: asyncio.Event) -> None:
        tried.set()

    supervisor = Supervisor(
        store=sqlite, host="h", slots=Slots(1), lease=timedelta(seconds=3), perform=perform
    )

    async def beats() -> set[datetime]:
        async with sqlite.engine.connect() as connection:
            return set((await connection.execute(select(hosts.c.seen_at))).scalars())

    watching = asyncio.create_task(supervisor.run())
    async with asyncio.timeout(30):
        while not (first := await beats()):
            await asyncio.sleep(0.02)
        while await beats() == first:  # the next one comes after its first try
            await asyncio.sleep(0.02)
        async with sqlite.engine.begin() as connection:
            await connection.execute(text("DROP TRIGGER full"))
        await tried.wait()
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    await supervisor.close()


async def test_what_ended_a_moment_ago_is_not_begun_again(sqlite: Store) -> None:
    """The list of a host's attempts is old by the time that it is gone through."""
    started: list[str] = []

    async def perform(job: Job, attempt: Attempt, stop: asyncio.Event) -> None:
        started.append(job.id)
        await sqlite.set_attempt(attempt, AttemptState.ended)

    supervisor = Supervisor(
        store=sqlite, host="h", slots=Slots(200), lease=timedelta(seconds=60), perform=perform
    )
    watching = asyncio.create_task(supervisor.run())
    numbers = range(150)
    for number in numbers:
        await sqlite.add_job(job(number))
        assert await supervisor.take_next()
    async with asyncio.timeout(30):
        while len(started) < len(numbers) or await sqlite.attempts_of("h"):
            await asyncio.sleep(0.02)
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    await supervisor.close()
    assert sorted(started) == sorted(f"j{number}" for number in numbers)
