"""Progress is told in order, newest first of its kind, and never later than the end."""

from __future__ import annotations

import asyncio

from bot.errors import InfrastructureError
from bot.progress import Progress


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

    async def works() -> None:
        told.append("works")

    progress = Progress()
    progress.tell("a", fails)
    progress.tell("b", works)
    await progress.close()
    assert told == ["works"]
