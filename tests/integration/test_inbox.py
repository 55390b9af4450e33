import asyncio
import os
import sqlite3
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncEngine

from bot import inbox as inbox_module
from bot.database import create_engine, upgrade
from bot.errors import ConfigurationError
from bot.inbox import Delivery, Inbox, InboxFull, InboxUnavailable, State, Stored, Waiting, subject_of
from bot.schema import deliveries


@pytest.fixture
async def inbox(engine: AsyncEngine) -> AsyncIterator[Inbox]:
    inbox = Inbox(engine)
    yield inbox
    await inbox.aclose()


def a_delivery(delivery_id: str = "", *, body: bytes = b'{"action":"labeled"}', ago: float = 0) -> Delivery:
    return Delivery(
        id=delivery_id or str(uuid.uuid4()),
        event="issues",
        action="labeled",
        installation_id=7,
        received_at=datetime.now(UTC) - timedelta(seconds=ago),
        body=body,
    )


async def test_what_was_put_is_read_back(inbox: Inbox) -> None:
    delivery = a_delivery("d1", body='{"action":"labeled","text":"grün\\u0000"}'.encode())
    assert await inbox.put(delivery) is Stored.new
    assert await inbox.get("d1") == delivery
    assert delivery.payload() == {"action": "labeled", "text": "grün\0"}
    (waiting,) = await inbox.pending()
    assert waiting == Waiting(id="d1", received_at=delivery.received_at, subject=None, server=inbox.server)
    assert await inbox.state("d1") is State.received
    assert await inbox.get("unknown") is None
    assert await inbox.state("unknown") is None


async def test_a_received_or_done_delivery_is_a_duplicate(inbox: Inbox) -> None:
    await inbox.put(a_delivery("d1"))
    assert await inbox.put(a_delivery("d1")) is Stored.duplicate
    await inbox.done("d1")
    assert await inbox.put(a_delivery("d1")) is Stored.duplicate
    assert await inbox.state("d1") is State.done
    assert await inbox.get("d1") is None
    assert await inbox.pending() == []


async def test_a_failed_delivery_is_taken_up_again(inbox: Inbox) -> None:
    await inbox.put(a_delivery("d1"))
    await inbox.tried("d1", "GitHub is away")
    first = await inbox.get("d1")
    assert first is not None
    assert first.tries == 1
    await inbox.failed("d1", "gave\0 up")
    assert await inbox.state("d1") is State.failed
    assert await inbox.pending() == []
    assert await inbox.put(a_delivery("d1", body=b'{"again":1}')) is Stored.new
    again = await inbox.get("d1")
    assert again is not None
    assert (again.tries, again.body) == (0, b'{"again":1}')


async def test_puts_at_the_same_time_share_transactions(inbox: Inbox, engine: AsyncEngine) -> None:
    answers = await asyncio.gather(*(inbox.put(a_delivery(f"d{number % 200}")) for number in range(400)))
    assert answers.count(Stored.new) == 200
    assert answers[:200] == [Stored.new] * 200
    assert len(await inbox.pending()) == 200
    async with engine.connect() as connection:
        if engine.dialect.name == "postgresql":
            # each transaction has its own id: the first took one put, the rest were gathered
            query = select(text("count(DISTINCT xmin::text)")).select_from(deliveries)
            assert (await connection.execute(query)).scalar_one() <= 4


async def test_two_servers_store_a_delivery_once(engine: AsyncEngine) -> None:
    inboxes = [Inbox(engine), Inbox(engine)]
    answers = await asyncio.gather(
        *(inbox.put(a_delivery(f"d{number}")) for number in range(60) for inbox in inboxes)
    )
    assert answers.count(Stored.new) == 60
    for inbox in inboxes:
        await inbox.aclose()


async def test_pending_comes_in_pages_oldest_first(inbox: Inbox) -> None:
    await asyncio.gather(*(inbox.put(a_delivery(f"d{number}", ago=100 - number)) for number in range(7)))
    first = await inbox.pending(limit=3)
    second = await inbox.pending(limit=3, after=(first[-1].received_at, first[-1].id))
    third = await inbox.pending(limit=3, after=(second[-1].received_at, second[-1].id))
    assert [one.id for one in first + second + third] == [f"d{number}" for number in range(7)]


async def test_pending_pages_through_equal_times(inbox: Inbox) -> None:
    now = datetime.now(UTC)
    same = [
        Delivery(id=f"d{n}", event="e", action=None, installation_id=None, received_at=now, body=b"{}")
        for n in range(5)
    ]
    await asyncio.gather(*map(inbox.put, same))
    page = await inbox.pending(limit=2)
    rest = await inbox.pending(limit=9, after=(page[-1].received_at, page[-1].id))
    assert [one.id for one in page + rest] == [f"d{n}" for n in range(5)]


async def test_prune_keeps_what_waits_and_what_is_young(inbox: Inbox) -> None:
    for key in ("waits", "done", "failed", "young"):
        await inbox.put(a_delivery(key, ago=1_000_000))
    await inbox.done("done")
    await inbox.failed("failed", "no")
    between = datetime.now(UTC)
    await inbox.done("young")
    assert await inbox.prune(between) == 2
    assert [await inbox.state(key) for key in ("waits", "done", "failed", "young")] == [
        State.received,
        None,
        None,
        State.done,
    ]


async def test_a_failing_database_fails_every_put_of_the_batch(inbox: Inbox, engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        await connection.execute(text("ALTER TABLE deliveries RENAME TO gone"))
    answers = await asyncio.gather(*(inbox.put(a_delivery()) for _ in range(20)), return_exceptions=True)
    assert all(isinstance(answer, InboxUnavailable) for answer in answers)
    assert "CONDUCTOR_DATABASE_URL" in str(answers[0])
    with pytest.raises(InboxUnavailable):
        await inbox.done("d1")
    async with engine.begin() as connection:
        await connection.execute(text("ALTER TABLE gone RENAME TO deliveries"))
    assert await inbox.put(a_delivery("d1")) is Stored.new  # and goes on when the database is back


async def test_one_impossible_row_does_not_hang_its_batch(inbox: Inbox) -> None:
    naive = Delivery(
        id="naive",
        event="e",
        action=None,
        installation_id=None,
        received_at=datetime(2026, 1, 1),  # noqa: DTZ001
        body=b"{}",
    )
    with pytest.raises(InboxUnavailable, match="naive"):
        await inbox.put(naive)
    assert await inbox.put(a_delivery("d1")) is Stored.new


async def test_the_queue_is_bounded(inbox: Inbox) -> None:
    fill = [asyncio.ensure_future(inbox.put(a_delivery())) for _ in range(inbox_module.WAITING_LIMIT)]
    await asyncio.sleep(0)  # all have queued, none was written
    with pytest.raises(InboxFull):
        await inbox.put(a_delivery())
    assert set(await asyncio.gather(*fill)) == {Stored.new}
    assert await inbox.put(a_delivery()) is Stored.new


async def test_the_queue_is_bounded_in_bytes(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite+aiosqlite:///{tmp_path / 'c.db'}")
    await upgrade(engine)
    inbox = Inbox(engine)
    holder = sqlite3.connect(tmp_path / "c.db")
    holder.execute("BEGIN EXCLUSIVE")  # so that the first commit waits, and everything else behind it
    first = asyncio.ensure_future(inbox.put(a_delivery()))
    big = os.urandom(15 * 2**20)  # deflates to as much: four fit
    puts = [asyncio.ensure_future(inbox.put(a_delivery(body=big))) for _ in range(5)]
    (refused,), waiting = await asyncio.wait(puts, return_when=asyncio.FIRST_COMPLETED)
    assert isinstance(refused.exception(), InboxFull)
    small = asyncio.ensure_future(inbox.put(a_delivery()))
    holder.rollback()
    holder.close()
    assert set(await asyncio.gather(first, small, *waiting)) == {Stored.new}
    assert await inbox.put(a_delivery(body=big)) is Stored.new  # there is room again
    await inbox.aclose()
    await engine.dispose()


async def test_closing_writes_what_waits_and_refuses_what_comes(engine: AsyncEngine) -> None:
    inbox = Inbox(engine)
    puts = [asyncio.ensure_future(inbox.put(a_delivery(f"d{number}"))) for number in range(50)]
    await asyncio.sleep(0)
    await inbox.aclose()
    assert {await put for put in puts} == {Stored.new}
    with pytest.raises(InboxUnavailable, match="shutting down"):
        await inbox.put(a_delivery())
    with pytest.raises(InboxUnavailable, match="shutting down"):
        await inbox.done("d1")
    assert len(await Inbox(engine).pending()) == 50


async def test_a_locked_sqlite_file_is_an_error_in_time(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite+aiosqlite:///{tmp_path / 'c.db'}")
    await upgrade(engine)
    inbox = Inbox(engine)
    holder = sqlite3.connect(tmp_path / "c.db")
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(InboxUnavailable, match="locked"):
        await inbox.put(a_delivery("d1"))
    holder.rollback()
    holder.close()
    assert await inbox.put(a_delivery("d1")) is Stored.new
    await inbox.aclose()
    await engine.dispose()


async def test_memory_is_refused() -> None:
    engine = create_engine("sqlite+aiosqlite:///:memory:")
    with pytest.raises(ConfigurationError, match="not durable"):
        Inbox(engine)
    await engine.dispose()


KILLED_AFTER_PUT = """
import asyncio, os, signal, sys
from datetime import UTC, datetime
from bot.database import create_engine
from bot.inbox import Delivery, Inbox

async def main():
    inbox = Inbox(create_engine(sys.argv[1]))
    put = lambda n: inbox.put(Delivery(id=f"d{n}", event="issues", action=None, installation_id=None,
                                       received_at=datetime.now(UTC), body=b"{}"))
    await asyncio.gather(*map(put, range(30)))
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


async def test_what_was_put_survives_kill_9(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path / 'c.db'}"
    engine = create_engine(url)
    await upgrade(engine)
    died = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", KILLED_AFTER_PUT, url], timeout=60, check=False
    )
    assert died.returncode == -9
    inbox = Inbox(engine)
    assert len(await inbox.pending()) == 30
    assert await inbox.get("d1") is None  # the dead one's, until it is claimed
    assert len(await inbox.claim(await inbox.pending())) == 30
    assert await inbox.get("d1") is not None
    await inbox.aclose()
    await engine.dispose()


# --- whose a delivery is


async def test_a_delivery_belongs_to_the_server_that_stored_it(engine: AsyncEngine) -> None:
    mine, theirs = Inbox(engine, server="mine"), Inbox(engine, server="theirs")
    await mine.put(a_delivery("d1"))
    await theirs.put(a_delivery("d2"))
    assert await mine.put(a_delivery("d2")) is Stored.duplicate  # and stays theirs
    assert await mine.get("d2") is None
    assert (await theirs.get("d2")) is not None
    assert await mine.servers() == {"mine", "theirs"}
    assert [one.id for one in await mine.pending(but_of={"theirs"})] == ["d1"]
    await mine.done("d1")
    assert await mine.servers() == {"theirs"}
    await mine.aclose()
    await theirs.aclose()


async def test_of_several_that_claim_one_gets_it(engine: AsyncEngine) -> None:
    dead = Inbox(engine, server="dead")
    await asyncio.gather(*(dead.put(a_delivery(f"d{number}")) for number in range(40)))
    await dead.aclose()
    heirs = [Inbox(engine, server=f"heir{number}") for number in range(3)]
    waiting = await heirs[0].pending()
    claims = await asyncio.gather(*(heir.claim(waiting) for heir in heirs))
    assert sorted(key for claimed in claims for key in claimed) == sorted(one.id for one in waiting)
    for heir, claimed in zip(heirs, claims, strict=True):
        got = [one.id for one in waiting if await heir.get(one.id) is not None]
        assert set(got) == claimed
        await heir.aclose()


async def test_what_was_dealt_with_cannot_be_claimed(engine: AsyncEngine) -> None:
    dead, heir = Inbox(engine, server="dead"), Inbox(engine, server="heir")
    await dead.put(a_delivery("d1"))
    waiting = await heir.pending()
    await dead.done("d1")
    assert await heir.claim(waiting) == set()
    await dead.aclose()
    await heir.aclose()


async def test_what_the_version_before_left_belongs_to_nobody(engine: AsyncEngine) -> None:
    old, new = Inbox(engine, server="old"), Inbox(engine, server="new")
    await old.put(a_delivery("d1"))
    async with engine.begin() as connection:
        await connection.execute(text("UPDATE deliveries SET server = NULL"))
    (waiting,) = await new.pending(but_of={"old"})
    assert waiting.server is None
    assert await new.servers() == set()
    assert await new.claim([waiting]) == {"d1"}
    await old.aclose()
    await new.aclose()


async def test_a_failed_delivery_becomes_that_of_who_got_it_again(engine: AsyncEngine) -> None:
    first, second = Inbox(engine, server="first"), Inbox(engine, server="second")
    await first.put(a_delivery("d1"))
    await first.failed("d1", "no")
    assert await second.put(a_delivery("d1")) is Stored.new
    assert await second.get("d1") is not None
    assert await first.get("d1") is None
    await first.aclose()
    await second.aclose()


async def test_what_was_given_up_is_put_back_once(engine: AsyncEngine) -> None:
    """By one of several servers, as often as it is put back with one try each, and neither too old nor too young."""
    one, other = Inbox(engine, server="one"), Inbox(engine, server="other")
    hour = timedelta(hours=1)
    for key, ago in (
        ("younger", 10.0),
        ("older", 20.0),
        ("too old", 7200.0),
        ("done", 10.0),
        ("waits", 10.0),
    ):
        await one.put(a_delivery(key, body=b'{"kept":1}', ago=ago))
    for key in ("younger", "older", "too old"):
        await one.failed(key, "no")
    await one.done("done")
    now = datetime.now(UTC)
    assert await other.put_back(came_after=now - hour, failed_before=now - hour, limit=9) == []
    found = await asyncio.gather(
        *(inbox.put_back(came_after=now - hour, failed_before=now + hour, limit=9) for inbox in (one, other))
    )
    (mine,) = (waiting for waiting in found if waiting)
    assert [waiting.id for waiting in mine] == ["older", "younger"]
    whose = one if mine[0].server == "one" else other
    again = await whose.get("older")
    assert again is not None
    assert (again.tries, again.body) == (1, b'{"kept":1}')
    assert await other.states(["too old", "done", "waits"]) == {
        "too old": State.failed,
        "done": State.done,
        "waits": State.received,
    }
    await whose.failed("younger", "no")
    await whose.failed("older", "no")
    (first,) = await whose.put_back(came_after=now - hour, failed_before=now + hour, limit=1)
    assert first.id == "younger"  # the other one failed after it
    await one.aclose()
    await other.aclose()


async def test_states_of_many(inbox: Inbox) -> None:
    for key in ("waits", "done", "failed"):
        await inbox.put(a_delivery(key))
    await inbox.done("done")
    await inbox.failed("failed", "no")
    known = await inbox.states(["waits", "done", "failed", "unknown"])
    assert known == {"waits": State.received, "done": State.done, "failed": State.failed}
    assert await inbox.states([]) == {}


@pytest.mark.parametrize(
    ("payload", "subject"),
    [
        ({"issue": {"number": 3}, "repository": {"id": 7}}, "7-3"),
        ({"pull_request": {"number": 4}, "repository": {"id": 7}}, "7-4"),
        ({"check_run": {"id": 1}, "repository": {"id": 7}}, None),
        ({"issue": {"number": "3"}, "repository": {"id": 7}}, None),
        ({"issue": [], "repository": {"id": 7}}, None),
        ({"issue": {"number": 10**40}, "repository": {"id": 10**40}}, None),
        ({"issue": {"number": True}, "repository": {"id": 7}}, None),
        ({"issue": {"number": 3}}, None),
    ],
)
def test_what_a_payload_is_about(payload: dict[str, object], subject: str | None) -> None:
    assert subject_of(payload) == subject
