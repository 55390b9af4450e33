"""Housekeeping with a real database: what it does needs no Redis, and is done by one server at a time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy.ext.asyncio import AsyncEngine

from bot.errors import ConductorError
from bot.github import GitHub
from bot.housekeeping import Housekeeping
from bot.model import Job, JobState
from bot.queue import Dispatcher
from bot.redact import Redactor
from bot.report import Reporter
from bot.scheduling import Scheduler
from bot.store import Store
from tests.jobs import asked_job
from tests.made_once import app_key

NOWHERE = "127.0.0.1:1"


def job(name: str, state: JobState, **changes: Any) -> Job:
    return asked_job(name, **{"state": state, "thread_id": name} | changes)


@asynccontextmanager
async def keeper(
    store: Store, done: list[str], reporter: type[Reporter] = Reporter
) -> AsyncIterator[Housekeeping]:
    """One whose Redis and GitHub are away; parts of others are told to ``done``."""

    async def pruned() -> None:
        done.append("pruned")

    async def also() -> None:
        done.append("also")

    dispatcher = Dispatcher(f"redis://{NOWHERE}/0")
    async with GitHub(f"http://{NOWHERE}", "1", app_key()) as github:
        yield Housekeeping(
            store=store,
            scheduler=Scheduler(store, dispatcher),
            reporter=reporter(github, store, Redactor()),
            prune=pruned,
            patience=timedelta(days=1),
            also=(also,),
        )
    dispatcher.close()


async def test_what_is_looked_after_does_not_wait_for_redis(store: Store) -> None:
    await store.host_seen("one", 1, datetime.now(UTC))
    await store.add_job(job("waits", JobState.queued))
    asked = datetime.now(UTC) - timedelta(days=2)
    await store.add_job(job("asks", JobState.paused, question="?", asked_at=asked, hibernated=True))
    done: list[str] = []
    async with keeper(store, done) as housekeeping:
        await housekeeping.once()
    assert done == ["pruned", "also"]
    ended = await store.job("asks")
    assert ended is not None
    assert (ended.state, "Nobody answered" in ended.message) == (JobState.timed_out, True)


async def test_a_part_that_another_server_is_at_is_left_to_it(engine: AsyncEngine) -> None:
    # the servers of one SQLite file are one: there the lock is the process's
    here = Store(engine)
    other = Store(engine) if engine.dialect.name == "postgresql" else here
    done: list[str] = []
    async with keeper(here, done) as housekeeping:
        async with other.locks.hold("housekeeping:keeper.<locals>.pruned"):
            await housekeeping.once()
        assert done == ["also"]
        await housekeeping.once()
        assert done == ["also", "pruned", "also"]


async def test_a_branch_that_cannot_be_removed_keeps_no_other_one(store: Store) -> None:
    tried = []

    class Archived(Reporter):
        async def remove_branch(self, job: Job) -> None:
            tried.append(job.id)
            if job.id == "newer":
                raise ConductorError("Repository was archived so is read-only.")

    ended = datetime.now(UTC) - timedelta(minutes=1)
    for name, minutes in (("older", 9), ("newer", 5)):
        began = ended - timedelta(minutes=minutes)
        one = job(name, JobState.failed, marker_sha="a" * 40, branch="b", created_at=began, finished_at=ended)
        await store.add_job(one)
        await store.mark_reported(name, JobState.failed)
    async with keeper(store, [], Archived) as housekeeping:
        await housekeeping.once()
    assert tried == ["newer", "older"]
