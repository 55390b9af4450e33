"""Commits with failed checks, in both databases: when to look again, what was begun, and that it is begun once."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from bot.failing_heads import FailingHeads

SHA, OTHER = "a" * 40, "b" * 40


@pytest.fixture
def heads(engine: AsyncEngine) -> FailingHeads:
    return FailingHeads(engine)


def in_future() -> datetime:
    return datetime.now(UTC) + timedelta(hours=1)


async def test_it_is_due_at_once_and_seen_once(heads: FailingHeads) -> None:
    first = await heads.see(1, 2, SHA)
    assert await heads.see(1, 2, SHA) == first
    assert await heads.due() == [first]


async def test_later_is_later(heads: FailingHeads) -> None:
    head = await heads.see(1, 2, SHA)
    await heads.later(head, in_future())
    assert await heads.due() == []
    assert (await heads.see(1, 2, SHA)).seen_at == head.seen_at  # it still waits


async def test_what_is_closed_is_not_due_until_there_are_news(heads: FailingHeads) -> None:
    head = await heads.see(1, 2, SHA)
    await heads.close(head, "x" * 10_000)
    assert await heads.due() == []
    again = await heads.see(1, 2, SHA)
    assert again.look_at is not None
    assert again.seen_at >= head.seen_at


async def test_what_was_begun_is_never_begun_again(heads: FailingHeads) -> None:
    head = await heads.see(1, 2, SHA)
    assert await heads.begin(head, "j1", "print")
    assert not await heads.begin(head, "j2", "print")
    await heads.close(head, "a job is at it")
    assert (await heads.see(1, 2, SHA)).look_at is None
    assert not await heads.begin(head, "j3", "print")


async def test_nothing_is_begun_that_was_closed(heads: FailingHeads) -> None:
    head = await heads.see(1, 2, SHA)
    await heads.close(head, "somebody else's commit")
    assert not await heads.begin(head, "j1", "print")


async def test_of_many_at_once_one_begins(heads: FailingHeads) -> None:
    head = await heads.see(1, 2, SHA)
    begun = await asyncio.gather(*(heads.begin(head, "j1", "print") for _ in range(8)))
    assert sorted(begun) == [False] * 7 + [True]


async def test_the_tries_of_a_pull_request(heads: FailingHeads) -> None:
    for number, sha, begun in ((2, SHA, True), (2, OTHER, True), (2, "c" * 40, False), (3, SHA, True)):
        head = await heads.see(1, number, sha)
        if begun:
            await heads.begin(head, "j1", f"print of {number} {sha[0]}")
    assert await heads.tried(1, 2, None) == {SHA: "print of 2 a", OTHER: "print of 2 b"}
    assert await heads.tried(1, 2, in_future()) == {}
    assert await heads.tried(2, 2, None) == {}
