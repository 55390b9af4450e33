"""The ledger on SQLite and on PostgreSQL: sums for budgets, and reports."""

from __future__ import annotations

import asyncio
from datetime import UTC, date, datetime, timedelta

import pytest
from sqlalchemy import insert

from bot.budget import Scope
from bot.ledger import GROUPS, Entry, Ledger, day_of, today
from bot.model import Actor, Job, Repo, Usage
from bot.schema import attempts, turns
from bot.store import Store
from bot.terms import Terms
from tests.jobs import asked_job

NOW = datetime.now(UTC)
MINE = Terms(job_id="j1", thread_id="10-1", repo_id=10, actor_id=3)


def entry(cost: float | None, at: datetime = NOW, model: str = "m", **terms: object) -> Entry:
    usage = Usage(input_tokens=100, output_tokens=20, cached_tokens=3, requests=1, cost=cost)
    return Entry(terms=MINE.model_copy(update=terms), attempt_id="j1-1", at=at, model=model, usage=usage)


@pytest.fixture
def ledger(store: Store) -> Ledger:
    return Ledger(store.engine)


def job(number: int, login: str, actor_id: int, repo: str) -> Job:
    return asked_job(
        f"j{number}",
        by=Actor(login=login, id=actor_id, type="User"),
        repo=Repo(owner="acme", name=repo, id=10 * number, installation_id=20),
        number=number,
        agent="claude",
        model="m",
        created_at=NOW,
    )


async def test_each_scope_has_its_own_sum(ledger: Ledger) -> None:
    yesterday = NOW - timedelta(days=1)
    await ledger.add(
        [
            entry(1),
            entry(2, job_id="j2"),  # another job of the same thread
            entry(4, job_id="j3", thread_id="10-2"),
            entry(8, job_id="j4", thread_id="11-1", repo_id=11),
            entry(16, job_id="j5", thread_id="12-1", repo_id=12, actor_id=4),
            entry(32, job_id="j6", thread_id="10-3", actor_id=4),
            entry(64, yesterday),
            entry(None),
        ]
    )
    assert await ledger.spent(MINE, list(Scope)) == {
        Scope.job: 1 + 64,
        Scope.thread: 1 + 2 + 64,
        Scope.user_day: 1 + 2 + 4 + 8,
        Scope.repository_day: 1 + 2 + 4 + 32,
        Scope.day: 63,
    }
    assert await ledger.spent(MINE, [Scope.user_day]) == {Scope.user_day: 15}
    assert await ledger.spent(MINE, []) == {}


async def test_nothing_spent_is_zero(ledger: Ledger) -> None:
    assert await ledger.spent(MINE, list(Scope)) == dict.fromkeys(Scope, 0.0)


async def test_many_hosts_write_at_once(ledger: Ledger) -> None:
    await asyncio.gather(*(ledger.add([entry(0.25)]) for _ in range(20)))
    assert await ledger.spent(MINE, [Scope.job]) == {Scope.job: 5.0}


async def test_reports_by_everything(ledger: Ledger, store: Store) -> None:
    await store.add_job(job(1, "maria", 3, "hello"))
    await store.add_job(job(2, "tom", 4, "world"))
    first = {"job_id": "j1", "thread_id": "10-1", "repo_id": 10, "actor_id": 3}
    second = {"job_id": "j2", "thread_id": "20-2", "repo_id": 20, "actor_id": 4}
    yesterday = NOW - timedelta(days=1)
    await ledger.add(
        [
            entry(0.5, yesterday, **first),
            entry(0.25, model="n", **first),
            entry(2, **second),
            entry(None, model="unheard-of", **second),
        ]
    )
    names = {by: [line.name for line in await ledger.report(by=by)] for by in GROUPS}
    assert names["day"] == [day_of(yesterday), today()]
    assert names["repository"] == ["acme/world", "acme/hello"]
    assert names["user"] == ["tom", "maria"]
    assert names["model"] == ["m", "n", "unheard-of"]
    assert names["job"] == ["j2", "j1"]
    (tom, maria) = await ledger.report(by="user")
    assert (tom.calls, tom.cost, tom.unpriced, tom.input_tokens, tom.cached_tokens) == (2, 2.0, 1, 200, 6)
    assert (maria.calls, maria.cost, maria.unpriced) == (2, 0.75, 0)
    (only,) = await ledger.report(by="day", since=date.fromisoformat(today()))
    assert (only.calls, only.cost) == (3, 2.25)


async def test_a_job_that_is_gone_keeps_its_cost(ledger: Ledger) -> None:
    await ledger.add([entry(1)])
    assert [line.name for line in await ledger.report(by="user")] == ["3"]
    assert [line.name for line in await ledger.report(by="repository")] == ["10"]


async def test_calls_belong_to_the_turn_during_which_they_were_made(ledger: Ledger, store: Store) -> None:
    await store.add_job(job(1, "maria", 3, "hello"))
    minute = timedelta(minutes=1)
    async with store.engine.begin() as connection:
        claimed = {"host": "h", "state": "running", "claimed_at": NOW, "deadline": NOW + 60 * minute}
        await connection.execute(insert(attempts).values(id="j1-1", job_id="j1", fence=1, **claimed))
        for number, start, end in ((1, NOW, NOW + minute), (2, NOW + 2 * minute, None)):
            values = {"number": number, "prompt": "", "started_at": start, "finished_at": end}
            await connection.execute(insert(turns).values(attempt_id="j1-1", **values))
    await ledger.add(
        [
            entry(1, NOW + minute / 2),
            entry(2, NOW + 3 * minute),
            entry(4, NOW + 4 * minute),
            entry(8, NOW - minute),
        ]
    )
    found = {line.name: (line.calls, line.cost) for line in await ledger.report(by="turn")}
    assert found == {"j1-1/1": (1, 1.0), "j1-1/2": (2, 6.0), "j1-1/?": (1, 8.0)}
