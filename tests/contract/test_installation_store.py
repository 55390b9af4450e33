"""Installations in SQL, and the jobs and approvals that follow a repository."""

from __future__ import annotations

import pytest

from bot.installation_store import Installation, InstallationStore
from bot.model import Job, JobState, Repo
from bot.store import Store
from tests.jobs import asked_job

HOME = Repo(owner="acme", name="hello", id=7, installation_id=5)


def job(number: int, repo: Repo = HOME, state: JobState = JobState.queued) -> Job:
    return asked_job(f"job-{number}", repo=repo, number=number, state=state, thread_id=f"{repo.id}-{number}")


@pytest.fixture
def states(store: Store) -> InstallationStore:
    return InstallationStore(store.engine)


async def test_an_installation_is_remembered(states: InstallationStore) -> None:
    assert await states.get(5) is None
    here = Installation(id=5, account="acme", account_type="Organization", permissions={"issues": "write"})
    await states.put(here)
    assert await states.get(5) == here
    gone = Installation(id=5, account="acme2", suspended=True, removed=True, permissions={})
    await states.put(gone)
    await states.put(Installation(id=4, account="tom", permissions={}))
    assert [one.id for one in await states.all()] == [4, 5]
    assert await states.get(5) == gone


async def test_open_jobs(states: InstallationStore, store: Store) -> None:
    other = Repo(owner="acme", name="other", id=8, installation_id=5)
    foreign = Repo(owner="tom", name="x", id=9, installation_id=6)
    for one in (job(1), job(2, other), job(3, foreign)):
        await store.add_job(one)
    assert await states.open_jobs(5) == ["job-1", "job-2"]
    assert await states.open_jobs(5, [8]) == ["job-2"]
    assert await states.open_jobs(5, []) == []
    await store.cancel_unowned("job-1")
    assert await states.open_jobs(5) == ["job-2"]


async def test_a_repository_moves(states: InstallationStore, store: Store) -> None:
    await store.add_job(job(1))
    await store.add_job(job(2, Repo(owner="acme", name="other", id=8, installation_id=5)))
    there = Repo(owner="tom", name="hi", id=7, installation_id=6)
    assert await states.moved(there) == 1
    assert await states.moved(there) == 0
    found, untouched = await store.job("job-1"), await store.job("job-2")
    assert found is not None
    assert untouched is not None
    assert (found.repo, untouched.repo.full_name) == (there, "acme/other")
    assert found.thread_id == "7-1"


async def test_nobody_is_told(states: InstallationStore, store: Store) -> None:
    await store.add_job(job(1))
    await store.add_job(job(2))
    await store.cancel_unowned("job-1")
    assert [one.id for one in await store.unreported_jobs()] == ["job-1"]
    assert await states.tell_nobody(6) == 0
    assert await states.tell_nobody(5, [8]) == 0
    assert await states.tell_nobody(5) == 1
    assert await store.unreported_jobs() == []
