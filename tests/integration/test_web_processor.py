"""The processor on a real inbox: what it takes, what it leaves, and when it comes back to it."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Collection
from datetime import UTC, datetime

import pytest
import structlog
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from bot.inbox import Delivery, Inbox, State
from bot.processor import RETRY_DELAYS, Processor


@pytest.fixture
async def inbox(engine: AsyncEngine) -> AsyncIterator[Inbox]:
    inbox = Inbox(engine)
    yield inbox
    await inbox.aclose()


async def store(inbox: Inbox, *ids: str) -> None:
    await asyncio.gather(
        *(
            inbox.put(
                Delivery(
                    id=delivery_id,
                    event="issues",
                    action="labeled",
                    installation_id=7,
                    received_at=datetime.now(UTC),
                    body=b"{}",
                )
            )
            for delivery_id in ids
        )
    )


async def until(inbox: Inbox, state: State, *ids: str) -> None:
    async with asyncio.timeout(20):
        for delivery_id in ids:
            while await inbox.state(delivery_id) is not state:
                await asyncio.sleep(0.01)


class Recorder:
    """A handler that notes what it was given."""

    def __init__(self) -> None:
        self.ids: list[str] = []

    async def __call__(self, delivery: Delivery) -> None:
        self.ids.append(delivery.id)


async def test_what_does_not_fit_into_memory_is_read_from_the_inbox_later(inbox: Inbox) -> None:
    handle = Recorder()
    processor = Processor(inbox, handle, known_limit=5, at_once=2)
    processor.start()
    ids = [f"d{number}" for number in range(40)]
    await store(inbox, *ids)
    for delivery_id in ids:
        processor.take(delivery_id)
    await until(inbox, State.done, *ids)
    await processor.close()
    assert sorted(handle.ids) == sorted(ids)  # each once


async def test_what_a_dead_server_left_behind_is_taken_up_and_nothing_of_a_living_one(
    engine: AsyncEngine,
) -> None:
    living, dying, mine = (Inbox(engine, server=name) for name in ("living", "dying", "mine"))
    dead: set[str] = set()

    async def gone(names: Collection[str]) -> set[str]:
        return dead & set(names)

    handle = Recorder()
    await store(living, "l1")
    await store(dying, "d1", "d2")
    processor = Processor(mine, handle, sweep=0.02, gone=gone)
    processor.start()
    await store(mine, "m1")
    processor.take("m1")
    await until(mine, State.done, "m1")
    assert [await mine.state(key) for key in ("l1", "d1", "d2")] == [State.received] * 3
    dead.add("dying")
    await until(mine, State.done, "d1", "d2")
    assert await mine.state("l1") is State.received
    assert await living.get("l1") is not None  # still its own
    await processor.close()
    assert sorted(handle.ids) == ["d1", "d2", "m1"]
    for inbox in (living, dying, mine):
        await inbox.aclose()


async def test_three_servers_share_what_a_dead_one_left(engine: AsyncEngine) -> None:
    dead = Inbox(engine, server="dead")
    ids = [f"d{number:03}" for number in range(120)]
    await store(dead, *ids)
    await dead.aclose()
    handle = Recorder()

    async def gone(names: Collection[str]) -> set[str]:
        return {"dead"} & set(names)

    inboxes = [Inbox(engine, server=f"s{number}") for number in range(3)]
    processors = [Processor(inbox, handle, sweep=0.02, gone=gone) for inbox in inboxes]
    for processor in processors:
        processor.start()
    await until(inboxes[0], State.done, *ids)
    for processor in processors:
        await processor.close()
    assert sorted(handle.ids) == ids  # each once
    for inbox in inboxes:
        await inbox.aclose()


async def test_deliveries_about_one_thing_are_dealt_with_in_turn(inbox: Inbox) -> None:
    at_work: dict[str, int] = {}
    most: dict[str, int] = {}
    order: list[str] = []

    async def handle(delivery: Delivery) -> None:
        subject = delivery.id.partition("/")[0]
        at_work[subject] = at_work.get(subject, 0) + 1
        most[subject] = max(most.get(subject, 0), at_work[subject])
        for _ in range(5):
            await asyncio.sleep(0)
        at_work[subject] -= 1
        order.append(delivery.id)

    processor = Processor(inbox, handle)
    ids = [f"{subject}/{number:02}" for number, subject in itertools.product(range(10), "abc")]
    await store(inbox, *ids)
    processor.start()
    for delivery_id in ids:
        processor.take(delivery_id, delivery_id.partition("/")[0])
    await until(inbox, State.done, *ids)
    await processor.close()
    assert most == {"a": 1, "b": 1, "c": 1}
    for subject in "abc":
        mine = [key for key in order if key.startswith(subject)]
        assert mine == sorted(mine)


async def test_one_that_fails_does_not_hold_up_those_about_the_same_thing(inbox: Inbox) -> None:
    order: list[str] = []

    async def handle(delivery: Delivery) -> None:
        order.append(delivery.id)
        if delivery.id == "d1" and delivery.tries == 0:
            raise RuntimeError("away")

    processor = Processor(inbox, handle, retry_delays=(0.05,))
    await store(inbox, "d1", "d2", "d3")
    processor.start()
    for delivery_id in ("d1", "d2", "d3"):
        processor.take(delivery_id, "7-1")
    await until(inbox, State.done, "d1", "d2", "d3")
    await processor.close()
    assert order[:2] == ["d1", "d2"]
    assert order.count("d1") == 2


async def test_a_handler_that_hangs_is_ended_and_tried_again(inbox: Inbox) -> None:
    tries: list[int] = []

    async def hangs_once(delivery: Delivery) -> None:
        tries.append(delivery.tries)
        if delivery.tries == 0:
            await asyncio.Event().wait()

    processor = Processor(inbox, hangs_once, handle_limit=0.05, retry_delays=(0,))
    processor.start()
    await store(inbox, "d1")
    processor.take("d1")
    await until(inbox, State.done, "d1")
    await processor.close()
    assert tries == [0, 1]


async def test_what_fails_while_the_database_is_away_is_tried_again_soon(
    inbox: Inbox, engine: AsyncEngine
) -> None:
    """Neither its failure nor its try can be written down then: that puts nothing off to the last of the delays."""
    failed = asyncio.Event()

    async def rename(before: str, after: str) -> None:
        async with engine.begin() as connection:
            await connection.execute(text(f"ALTER TABLE {before} RENAME TO {after}"))

    async def fails_once(_delivery: Delivery) -> None:
        if not failed.is_set():
            await rename("deliveries", "away")
            failed.set()
            raise RuntimeError("as the database is away")

    processor = Processor(inbox, fails_once, retry_delays=(3600.0,), unwritten_delay=0.05)
    processor.start()
    await store(inbox, "d1")
    with structlog.testing.capture_logs() as logs:
        processor.take("d1")
        await failed.wait()
        async with asyncio.timeout(20):
            while not any("could not be written down" in one["event"] for one in logs):
                await asyncio.sleep(0.01)
    await rename("away", "deliveries")
    await until(inbox, State.done, "d1")
    await processor.close()


async def test_what_is_not_finished_at_the_end_stays_for_the_next_start(inbox: Inbox) -> None:
    started: list[str] = []
    busy = asyncio.Event()

    async def hangs(delivery: Delivery) -> None:
        started.append(delivery.id)
        if len(started) == 2:
            busy.set()
        await asyncio.Event().wait()

    processor = Processor(inbox, hangs, at_once=2, drain_timeout=0.05)
    processor.start()
    ids = ["d1", "d2", "d3"]
    await store(inbox, *ids)
    for delivery_id in ids:
        processor.take(delivery_id)
    await asyncio.wait_for(busy.wait(), 20)
    await processor.close()
    processor.take("d4")  # ignored, and no error
    assert len(started) == 2
    assert [await inbox.state(delivery_id) for delivery_id in ids] == [State.received] * 3

    handle = Recorder()
    next_one = Processor(inbox, handle)
    next_one.start()
    await until(inbox, State.done, *ids)
    await next_one.close()
    assert sorted(handle.ids) == ids


async def test_a_retry_that_waits_does_not_hold_up_the_end(inbox: Inbox) -> None:
    async def fails(_delivery: Delivery) -> None:
        raise RuntimeError("away")

    processor = Processor(inbox, fails, retry_delays=(3600,))
    processor.start()
    await store(inbox, "d1")
    processor.take("d1")
    async with asyncio.timeout(20):
        while True:
            delivery = await inbox.get("d1")
            if delivery is not None and delivery.tries == 1:
                break
            await asyncio.sleep(0.01)
        await processor.close()
    assert await inbox.state("d1") is State.received


async def test_what_was_given_up_and_put_back_is_tried_once(inbox: Inbox) -> None:
    seen = Recorder()
    await store(inbox, "d1", "d2")
    for key in ("d1", "d2"):
        for _ in RETRY_DELAYS:
            await inbox.tried(key, "GitHub is away")
        await inbox.failed(key, "GitHub is away")

    async def handle(delivery: Delivery) -> None:
        await seen(delivery)
        if delivery.id == "d1":
            raise RuntimeError("GitHub is away")

    processor = Processor(inbox, handle)
    processor.start()
    now = datetime.now(UTC)
    for one in await inbox.put_back(came_after=datetime.min.replace(tzinfo=UTC), failed_before=now, limit=9):
        processor.take(one.id, one.subject)
    await until(inbox, State.failed, "d1")
    await until(inbox, State.done, "d2")
    await processor.close()
    assert sorted(seen.ids) == ["d1", "d2"]


async def test_every_line_of_a_handler_carries_the_delivery(inbox: Inbox) -> None:
    seen: list[str] = []

    async def handle(delivery: Delivery) -> None:
        seen.append(structlog.contextvars.get_contextvars()["correlation"])

    processor = Processor(inbox, handle)
    processor.start()
    await store(inbox, "d1", "d2")
    processor.take("d1")
    processor.take("d2")
    await until(inbox, State.done, "d1", "d2")
    await processor.close()
    assert sorted(seen) == ["d1", "d2"]
