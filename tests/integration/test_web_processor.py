"""The processor on a real inbox: what it takes, what it leaves, and when it comes back to it."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest
import structlog
from sqlalchemy.ext.asyncio import AsyncEngine

from bot.inbox import Delivery, Inbox, State
from bot.processor import Processor


@pytest.fixture
async def inbox(engine: AsyncEngine) -> AsyncIterator[Inbox]:
    inbox = Inbox(engine)
    yield inbox
    await inbox.aclose()


async def store(inbox: Inbox, *ids: str, ago: timedelta = timedelta()) -> None:
    await asyncio.gather(
        *(
            inbox.put(
                Delivery(
                    id=delivery_id,
                    event="issues",
                    action="labeled",
                    installation_id=7,
                    received_at=datetime.now(UTC) - ago,
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


async def test_what_another_server_left_behind_is_taken_up(inbox: Inbox) -> None:
    handle = Recorder()
    processor = Processor(inbox, handle, sweep=0.02, abandoned=timedelta(minutes=5))
    processor.start()
    await store(inbox, "mine")
    processor.take("mine")
    await until(inbox, State.done, "mine")  # the first look is over
    await store(inbox, "young")  # another server's, in hand there
    await store(inbox, "old", ago=timedelta(minutes=6))
    await until(inbox, State.done, "old")
    assert await inbox.state("young") is State.received
    await processor.close()
    assert handle.ids == ["mine", "old"]


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
