"""Who may start and who is first: the same answers from SQLite and from PostgreSQL."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text, update
from sqlalchemy.ext.asyncio import AsyncEngine

from bot.claims import PATIENCE, needs_of, queue_name
from bot.database import create_engine
from bot.migrations.versions.r0003_scheduling import FILL_THREADS
from bot.model import FEEDBACK, Actor, AttemptState, Job, JobState, Repo, Trigger, Waiting
from bot.policy import PERSON, Limits, Load
from bot.schema import hosts, jobs
from bot.store import Store
from tests.jobs import asked_job

NOW = datetime.now(UTC)


def job(
    name: str,
    *,
    repo: int = 10,
    number: int | None = None,
    user: int = 3,
    account: int = 20,
    **changes: object,
) -> Job:
    """A queued job; each on an issue of its own unless ``number`` says otherwise."""
    number = number or int(name[1:])
    values: dict[str, object] = {
        "repo": Repo(owner="acme", name=f"r{repo}", id=repo, installation_id=account),
        "number": number,
        "timeout": 600,
        "created_at": NOW - timedelta(minutes=5) + timedelta(seconds=int(name[1:])),
        "priority": PERSON,
        "thread_id": f"{repo}-{number}",
    }
    return asked_job(name, by=Actor(login=f"u{user}", id=user, type="User"), **values | changes)


async def add(store: Store, *wanted: Job) -> None:
    for one in wanted:
        assert await store.add_job(one)


async def taken(store: Store, *serves: str) -> list[str]:
    """Everything that may start now, in the order in which it is taken."""
    found = []
    while claimed := await store.claim_next("h", serves):
        found.append(claimed[0].id)
    return found


async def end(store: Store, job_id: str) -> None:
    found = await store.job(job_id)
    assert found is not None
    assert await store.move(job_id, JobState.succeeded, expected=[JobState.running], fence=found.fence)


async def test_one_job_of_a_conversation_runs_and_the_others_keep_their_order(store: Store) -> None:
    # the pull request of an issue is the same conversation
    await add(
        store, job("j1", number=1), job("j3", number=9, thread_id="10-1"), job("j2", number=1), job("j4")
    )
    assert await taken(store) == ["j1", "j4"]
    assert (await store.waiting(job("j3", number=9, thread_id="10-1"))).here == 2
    await end(store, "j1")
    assert await taken(store) == ["j2"]
    assert await store.move("j2", JobState.paused, expected=[JobState.running])
    assert await taken(store) == []  # somebody was asked: the conversation is not over
    assert await store.move("j2", JobState.cancelled, expected=[JobState.paused])
    assert await taken(store) == ["j3"]


async def test_a_host_takes_what_it_has_the_capabilities_for(store: Store) -> None:
    await add(
        store,
        job("j1", queue=queue_name(["large", "gpu"])),
        job("j2", queue="gpu"),
        job("j3"),
        job("j4", queue="large"),
    )
    assert await taken(store) == ["j3"]
    assert await taken(store, "gpu") == ["j2"]
    assert await taken(store, "fast", "large", "gpu") == ["j1", "j4"]


@pytest.mark.parametrize(
    ("limits", "names"),
    [
        (Limits(repository=2), ["j1", "j3", "j6", "j2", "j4"]),
        (Limits(user=2), ["j1", "j3", "j6", "j5"]),
        (Limits(installation=3), ["j1", "j3", "j6", "j2"]),
        (Limits(), ["j1", "j3", "j6", "j2", "j4", "j5"]),
    ],
)
async def test_no_more_run_at_once_than_the_limits_let(
    engine: AsyncEngine, limits: Limits, names: list[str]
) -> None:
    store = Store(engine, limits)
    await add(
        store,
        job("j1", repo=10, user=1),
        job("j2", repo=10, user=1),
        job("j3", repo=11, user=1, number=3),
        job("j4", repo=11, user=1, number=4),
        job("j5", repo=11, user=2, number=5),
        job("j6", repo=12, user=2, account=21),
    )
    assert await taken(store) == names


async def test_a_limit_is_never_passed_however_many_hosts_ask(engine: AsyncEngine, database_url: str) -> None:
    limits = Limits(repository=3, user=5)
    engines = [create_engine(database_url) for _ in range(4)]
    stores = [Store(one, limits) for one in engines]
    try:
        for turn in range(5):
            # hosts of different kinds reach for different jobs at the same moment, and for the same limit
            numbers = range(turn * 40 + 1, turn * 40 + 41)
            kinds = ("", "a", "b", "c")
            await add(
                stores[0],
                *(job(f"j{n}", repo=10 + n % 3, user=n % 2, queue=kinds[n // 3 % 4]) for n in numbers),
            )
            claims = await asyncio.gather(
                *(stores[n % 4].claim_next(f"h{n}", {kinds[n % 4]} - {""}) for n in range(40))
            )
            running = [claim[0] for claim in claims if claim]
            assert (
                len({one.id for one in running}) == len(running) == 9
            )  # three in each of three repositories
            for repo in (10, 11, 12):
                assert sum(one.repo.id == repo for one in running) == 3
            for user in (0, 1):
                assert sum(one.trigger.actor.id == user for one in running) <= 5
            for one in await stores[0].active_jobs():
                ending = [JobState.queued, JobState.running]
                assert await stores[0].move(one.id, JobState.cancelled, expected=ending)
    finally:
        for one in engines:
            await one.dispose()


async def test_the_job_of_a_review_waits_for_others_to_join_it(engine: AsyncEngine) -> None:
    store, now = Store(engine, Limits(settle=60)), datetime.now(UTC)
    actor = Actor(login="maria", id=3, type="User")
    review = Trigger(delivery_id="d", event=FEEDBACK, actor=actor)
    young = job("j1", number=1).evolve(trigger=review, created_at=now)
    await add(
        store,
        young,
        job("j2", number=1).evolve(created_at=now + timedelta(seconds=1)),  # a command there is after it
        job("j3", number=3).evolve(created_at=now),  # a command elsewhere waits for nothing
        job("j4", number=4).evolve(trigger=review, created_at=now - timedelta(seconds=61)),
    )
    assert [name for name, _ in await store.startable()] == ["j4", "j3"]
    assert await taken(store) == ["j4", "j3"]
    assert (await store.waiting(young)).settling
    assert not (await store.waiting(job("j2", number=1))).settling
    # whatever server or host asks then: nothing but the database knows since when
    later = Store(engine, Limits(settle=0))
    assert await taken(later) == ["j1"]


async def test_what_is_paused_takes_no_place_of_the_limits(engine: AsyncEngine) -> None:
    store = Store(engine, Limits(user=1))
    await add(store, job("j1"), job("j2"))
    assert await taken(store) == ["j1"]
    assert await store.move("j1", JobState.paused, expected=[JobState.running])
    assert await taken(store) == ["j2"]


async def test_repositories_take_turns(store: Store) -> None:
    await add(
        store, *(job(f"j{n}", repo=10, number=n) for n in range(1, 4)), job("j7", repo=11), job("j9", repo=12)
    )
    assert await taken(store) == ["j1", "j7", "j9", "j2", "j3"]
    for name in ("j1", "j7", "j9", "j2", "j3"):
        await end(store, name)
    # nothing runs: the one that was served longest ago is first, and one that never was before all
    await add(store, job("j21", repo=10), job("j22", repo=11), job("j23", repo=12), job("j24", repo=13))
    first = await store.claim_next("h")
    assert first is not None
    assert first[0].id == "j24"
    assert await taken(store) == ["j22", "j23", "j21"]


async def test_people_come_before_schedules_and_schedules_wait_no_longer_than_patience(store: Store) -> None:
    await add(
        store,
        job("j1", priority=0),
        job("j2", priority=PERSON),
        job("j3", priority=0, created_at=NOW - PATIENCE - timedelta(minutes=1)),
    )
    assert (await store.waiting(job("j1", priority=0))).position == 3
    assert await taken(store) == ["j3", "j2", "j1"]


async def test_an_answered_job_that_hibernates_is_woken_up_like_a_queued_one(store: Store) -> None:
    await add(store, job("j1", number=1), job("j2", number=1))
    claimed = await store.claim_next("h")
    assert claimed is not None
    _, attempt = claimed
    asked_at = attempt.claimed_at + timedelta(seconds=100)
    await store.move("j1", JobState.paused, expected=[JobState.running], asked_at=asked_at, question="which?")
    await store.set_attempt(attempt, AttemptState.ended)
    assert await taken(store) == []
    await store.note("j1", answer="this one")
    assert await taken(store) == []  # its container is there: its host goes on
    await store.note("j1", hibernated=True)
    woken = await store.claim_next("other")
    assert woken is not None
    assert (woken[0].id, woken[0].state, woken[0].fence, woken[0].hibernated) == (
        "j1",
        JobState.running,
        2,
        False,
    )
    assert woken[0].answer == "this one"
    assert woken[1].host == "other"
    # a hundred seconds of its ten minutes were used
    assert woken[1].deadline - woken[1].claimed_at == timedelta(seconds=500)
    lost = await store.take_over("j1", from_fence=2, host="third")
    assert lost is not None
    assert lost[1].deadline == woken[1].deadline


async def test_nobody_takes_what_is_to_be_stopped(store: Store) -> None:
    await add(store, job("j1"), job("j2", state=JobState.paused, hibernated=True, answer="x"))
    for name in ("j1", "j2"):
        assert await store.request_cancel(name, "maria")
    assert await store.startable() == []
    assert await taken(store) == []
    for name in ("j1", "j2"):
        ended = await store.cancel_unowned(name)
        assert ended is not None
        assert ended.state is JobState.cancelled
        assert ended.finished_at is not None


@pytest.mark.parametrize("hibernated", [True, False])
async def test_a_job_that_a_host_owns_is_not_cancelled_behind_its_back(
    store: Store, hibernated: bool
) -> None:
    await add(store, job("j1"), job("j2", state=JobState.paused, hibernated=hibernated))
    await store.claim_next("h", only="j1")
    assert await store.cancel_unowned("j1") is None
    assert (await store.cancel_unowned("j2") is None) is not hibernated


async def test_what_may_start_is_what_is_taken(engine: AsyncEngine) -> None:
    store = Store(engine, Limits(repository=1))
    await add(
        store,
        job("j1"),
        job("j2", queue="gpu", repo=11),
        job("j3", repo=12, number=3),
        job("j4", repo=12, number=3),
    )
    assert await store.startable() == [("j1", ""), ("j2", "gpu"), ("j3", "")]
    assert await taken(store) == ["j1", "j3"]
    assert await store.startable() == [("j2", "gpu")]


async def test_why_a_job_waits(engine: AsyncEngine) -> None:
    store = Store(engine, Limits(user=1, repository=1, installation=1))
    await add(
        store,
        job("j1"),
        job("j2"),
        job("j3", repo=11),
        job("j4", repo=12, user=4),
        job("j5", queue="gpu+large"),
    )
    assert await store.waiting(job("j1")) == Waiting(no_host=True)
    await store.host_seen("one", 1, NOW, ["large"])
    await store.host_seen("two", 1, NOW)
    assert await store.waiting(job("j1")) == Waiting()
    assert await store.waiting(job("j3", repo=11)) == Waiting(position=3)
    await store.claim_next("one", only="j1")
    assert await store.waiting(job("j2")) == Waiting(limit="user", running=1)
    assert await store.waiting(job("j4", repo=12, user=4)) == Waiting(
        limit="installation", running=1, position=3
    )
    # "gpu" alone is missing on the host that has most of it
    assert (await store.waiting(job("j5", queue="gpu+large"))).unserved == ("gpu",)
    assert await store.present() == {frozenset(), frozenset({"large"})}


async def test_a_host_that_is_gone_is_waited_for_and_one_that_never_was_is_not(store: Store) -> None:
    assert await store.unserved([]) == ()
    assert await store.unserved(["gpu"]) == ("gpu",)
    await store.host_seen("one", 1, NOW, ["gpu"])
    async with store.engine.begin() as connection:
        await connection.execute(update(hosts).values(seen_at=NOW - timedelta(days=1)))
    assert await store.present() == set()
    assert await store.unserved(["gpu"]) == ()
    assert await store.unserved(["gpu", "large"]) == ("large",)


async def test_how_much_somebody_asked_for(store: Store) -> None:
    await add(
        store,
        job("j1"),
        job("j2", state=JobState.succeeded),
        job("j3", created_at=NOW - timedelta(minutes=61)),
        job("j4", repo=11),
        job("j5", user=4),
    )
    expected = Load(user_hour=3, queued=3, repository_hour=3, user_repository_hour=2)
    assert await store.load(10, 3) == expected
    for thread, count in (("10-1", 1), ("10-3", 0), ("11-4", 0)):  # of this repository, within the hour
        assert (await store.load(10, 3, thread)).conversation_hour == count


async def test_jobs_of_the_version_before_get_their_conversations(store: Store) -> None:
    await add(
        store, job("j1", number=1, pull_number=9), job("j2", number=9, pull_number=9), job("j3", number=5)
    )
    async with store.engine.begin() as connection:
        await connection.execute(update(jobs).values(thread_id=""))
        await connection.execute(text(FILL_THREADS))
    found = {one.id: one.thread_id for one in await store.recent_jobs()}
    assert found == {"j1": "10-1", "j2": "10-1", "j3": "10-5"}
    assert await store.thread_of(job("j2", number=9)) == "10-1"


def test_capabilities_as_one_word() -> None:
    assert queue_name([]) == ""
    assert queue_name(["large", "gpu", "gpu"]) == "gpu+large"
    assert needs_of("gpu+large") == {"gpu", "large"}
    assert needs_of("") == frozenset()
