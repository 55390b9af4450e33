"""Progress is told in order, newest first of its kind, and never later than the end."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy.exc import OperationalError

from bot.errors import InfrastructureError, StaleAttempt
from bot.progress import Progress, look_while

AWAY = OperationalError("UPDATE jobs", {}, ConnectionError("gone"))


async def test_only_the_newest_of_a_kind_is_told_and_nothing_after_the_end() -> None:
    told: list[str] = []
    begun, go = asyncio.Event(), asyncio.Event()

    async def slow() -> None:
        begun.set()
        await go.wait()
        told.append("first")

    def say(word: str):  # type: ignore[no-untyped-def]
        async def report() -> None:
            told.append(word)

        return report

    progress = Progress()
    progress.tell("sticky", slow)
    await begun.wait()
    progress.tell("started", say("started"))
    progress.tell("sticky", say("old"))
    progress.tell("sticky", say("new"))
    go.set()
    await progress.close()
    assert told == ["first", "started", "new"]
    progress.tell("sticky", say("dropped"))
    progress.tell("check", say("kept"))
    await progress.close("sticky")
    assert told[3:] == ["kept"]


async def test_a_report_that_fails_does_not_stop_the_others() -> None:
    told: list[str] = []

    async def fails() -> None:
        raise InfrastructureError("GitHub is away.")

    async def fails_too() -> None:
        raise AWAY

    async def works() -> None:
        told.append("works")

    progress = Progress()
    progress.tell("a", fails)
    progress.tell("c", fails_too)
    progress.tell("b", works)
    await progress.close()
    assert told == ["works"]


async def test_a_database_that_is_away_for_a_while_does_not_end_the_looks() -> None:
    running: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    troubles: list[Exception | None] = [AWAY, InfrastructureError("The disk is full."), OSError("torn"), None]

    async def look() -> None:
        trouble = troubles.pop(0)
        if trouble is not None:
            raise trouble
        running.set_result(None)

    async with asyncio.timeout(10):
        await look_while(running, look, every=0.001)
    assert troubles == []


async def test_an_attempt_that_lost_its_job_looks_no_more() -> None:
    async def look() -> None:
        raise StaleAttempt("A newer attempt owns the job.")

    with pytest.raises(StaleAttempt):
        await look_while(asyncio.get_running_loop().create_future(), look, every=0.001)
