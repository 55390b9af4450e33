"""The webhook server on real sockets: every answer that GitHub, an operator or an attacker can get."""

import asyncio
import io
import json
import os
import signal
import sqlite3
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession
from aiohttp.test_utils import TestServer
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from bot.config import fixed_settings
from bot.database import create_engine, upgrade
from bot.errors import ConfigurationError
from bot.inbox import Delivery, Inbox, State
from bot.signature import Verifier
from bot.web import LARGE_AT_ONCE, LARGE_BODY, MAX_BODY, Wanted, create_app

SECRET = "the webhook secret"
VERIFIER = Verifier(SECRET)
LABELED = json.dumps({"action": "labeled", "installation": {"id": 7}, "issue": {"number": 1}}).encode()
WANTED: Wanted = {"issues": frozenset({"labeled"}), "repository_dispatch": None}

Handle = Callable[[Delivery], Awaitable[None]]


@dataclass
class Handled:
    """Counts what was handed over, and lets a test wait for it."""

    deliveries: list[Delivery] = field(default_factory=list)
    arrived: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def __call__(self, delivery: Delivery) -> None:
        async with self.arrived:
            self.deliveries.append(delivery)
            self.arrived.notify_all()

    async def wait(self, count: int) -> list[Delivery]:
        async with asyncio.timeout(20), self.arrived:
            await self.arrived.wait_for(lambda: len(self.deliveries) >= count)
        return self.deliveries


class Server:
    """A server on a real socket and a client that signs."""

    def __init__(self, engine: AsyncEngine, handle: Handle, **options: Any) -> None:
        self.inbox = Inbox(engine)
        options = {"wanted": WANTED, "checks": {}} | options
        app = create_app(
            fixed_settings(webhook_secret=SECRET), inbox=self.inbox, on_delivery=handle, **options
        )
        self.server = TestServer(app)
        self.client = ClientSession()

    async def __aenter__(self) -> "Server":
        await self.server.start_server()
        return self

    async def __aexit__(self, *_exception: object) -> None:
        await self.client.close()
        await self.server.close()

    async def post(
        self, body: bytes = LABELED, *, event: str = "issues", guid: str | None = None, **headers: str | None
    ) -> tuple[int, dict[str, Any]]:
        """Send ``body`` as GitHub would; ``headers`` (with _ for -) replace or, with None, leave out."""
        sent: dict[str, str | None] = {
            "X-Hub-Signature-256": VERIFIER.sign(body),
            "X-GitHub-Event": event,
            "X-GitHub-Delivery": guid or str(uuid.uuid4()),
            "Content-Type": "application/json",
        }
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        kept = {name: value for name, value in sent.items() if value is not None}
        async with self.client.post(
            self.server.make_url("/webhook"), data=io.BytesIO(body), headers=kept
        ) as answer:
            return answer.status, await answer.json()

    async def get(self, path: str) -> tuple[int, dict[str, Any]]:
        async with self.client.get(self.server.make_url(path)) as answer:
            return answer.status, await answer.json()

    async def until(self, guid: str, state: State) -> None:
        """Return when the delivery is in ``state``."""
        async with asyncio.timeout(20):
            while await self.inbox.state(guid) is not state:
                await asyncio.sleep(0.01)


@pytest.fixture
def handled() -> Handled:
    return Handled()


@pytest.fixture
async def server(engine: AsyncEngine, handled: Handled) -> AsyncIterator[Server]:
    async with Server(engine, handled) as server:
        yield server


async def test_a_wanted_delivery_is_stored_answered_and_handled(server: Server, handled: Handled) -> None:
    assert await server.post(guid="g1") == (202, {"delivery": "g1"})
    (delivery,) = await handled.wait(1)
    assert (delivery.id, delivery.event, delivery.action, delivery.installation_id) == (
        "g1",
        "issues",
        "labeled",
        7,
    )
    assert delivery.payload() == json.loads(LABELED)
    await server.until("g1", State.done)


async def test_a_delivery_that_comes_twice_is_handled_once(server: Server, handled: Handled) -> None:
    await server.post(guid="g1")
    await handled.wait(1)
    await server.until("g1", State.done)
    assert await server.post(guid="g1") == (202, {"delivery": "g1", "duplicate": True})
    await server.post(guid="g2")
    assert [delivery.id for delivery in await handled.wait(2)] == ["g1", "g2"]


async def test_equal_deliveries_at_the_same_moment_are_handled_once(server: Server, handled: Handled) -> None:
    answers = await asyncio.gather(*(server.post(guid="same") for _ in range(20)))
    assert {status for status, _ in answers} == {202}
    assert sum("duplicate" not in answer for _, answer in answers) == 1
    await server.post(guid="next")
    assert sorted(delivery.id for delivery in await handled.wait(2)) == ["next", "same"]


async def test_ping(server: Server) -> None:
    assert await server.post(b'{"zen":"Design for failure."}', event="ping") == (200, {"msg": "pong"})


async def test_what_nobody_wants_is_answered_and_not_stored(server: Server) -> None:
    assert await server.post(b"this is not even JSON", event="star", guid="g1") == (202, {"ignored": "star"})
    assert await server.post(b'{"action":"closed"}', guid="g2") == (202, {"ignored": "issues.closed"})
    assert await server.post(b"{}", guid="g3") == (202, {"ignored": "issues.None"})
    assert await server.post(b'{"action":["labeled"]}', guid="g4") == (202, {"ignored": "issues.['labeled']"})
    assert [await server.inbox.state(f"g{n}") for n in range(1, 5)] == [None] * 4


async def test_who_changes_their_own_comment_is_of_no_interest(engine: AsyncEngine, handled: Handled) -> None:
    """We do so all the time; somebody who changes ours is another matter."""
    async with Server(engine, handled, wanted={"issue_comment": frozenset({"edited"})}) as server:
        for guid, sender in (("own", {"id": 7}), ("other", {"id": 8}), ("odd", None)):
            edited = {"action": "edited", "comment": {"user": {"id": 7}}, "sender": sender}
            status, _ = await server.post(json.dumps(edited).encode(), event="issue_comment", guid=guid)
            assert status == 202
        assert await server.inbox.state("own") is None
        assert sorted(one.id for one in await handled.wait(2)) == ["odd", "other"]


async def test_every_action_of_an_event_may_be_wanted(server: Server, handled: Handled) -> None:
    odd = "x\0" * 100
    body = json.dumps({"action": odd, "installation": {"id": 2**70}}).encode()
    assert (await server.post(body, event="repository_dispatch", guid="g1"))[0] == 202
    assert (await server.post(b"{}", event="repository_dispatch", guid="g2"))[0] == 202
    first, second = sorted(await handled.wait(2), key=lambda delivery: delivery.id)
    assert (first.action, first.installation_id, first.payload()["action"]) == ("x" * 60, None, odd)
    assert (second.action, second.installation_id) == (None, None)


@pytest.mark.parametrize(
    "body", [b"", b"{", b'{"action":"labeled",}', b"\xff", b"null", b"[]", b'"x"', b"NaN"]
)
async def test_broken_json_is_a_bad_request(server: Server, body: bytes) -> None:
    status, answer = await server.post(body, guid="g1")
    assert status == 400
    assert "JSON" in answer["error"]
    assert await server.inbox.state("g1") is None


@pytest.mark.parametrize(
    "headers",
    [
        {"X_GitHub_Event": None},
        {"X_GitHub_Delivery": None},
        {"X_GitHub_Event": ""},
        {"X_GitHub_Event": "issues; drop"},
        {"X_GitHub_Delivery": "a b"},
        {"X_GitHub_Delivery": "a" * 81},
    ],
)
async def test_missing_or_odd_headers_are_a_bad_request(
    server: Server, headers: dict[str, str | None]
) -> None:
    status, answer = await server.post(**headers)
    assert status == 400
    assert "X-GitHub-Event" in answer["error"]


@pytest.mark.parametrize("event", ["ping", "issues", "star"])
async def test_a_form_is_told_the_right_content_type(server: Server, event: str) -> None:
    body = b"payload=%7B%7D"
    status, answer = await server.post(body, event=event, Content_Type="application/x-www-form-urlencoded")
    assert status == 415
    assert "application/json" in answer["error"]


async def test_the_largest_body_is_taken_and_one_byte_more_is_not(server: Server, handled: Handled) -> None:
    frame = b'{"action":"labeled","x":"%s"}'
    largest = frame % (b"x" * (MAX_BODY - len(frame) + 2))
    assert len(largest) == MAX_BODY
    assert (await server.post(largest, guid="g1"))[0] == 202
    (delivery,) = await handled.wait(1)
    assert delivery.body == largest
    status, answer = await server.post(largest + b" ", guid="g2")
    assert status == 413
    assert str(MAX_BODY) in answer["error"]


async def test_26_mib_are_refused_by_the_header_alone(server: Server) -> None:
    reader, writer = await asyncio.open_connection(server.server.host, server.server.port)
    writer.write(
        b"POST /webhook HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"X-Hub-Signature-256: sha256=" + b"0" * 64 + b"\r\nContent-Length: %d\r\n\r\n" % (26 * 2**20)
    )
    assert b" 413 " in await asyncio.wait_for(reader.readline(), 20)
    writer.close()
    await writer.wait_closed()


async def test_26_mib_in_chunks_are_refused(server: Server) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(26):
            yield b" " * 2**20

    headers = {"X-Hub-Signature-256": "sha256=" + "0" * 64, "Content-Type": "application/json"}
    url = server.server.make_url("/webhook")
    async with server.client.post(url, data=chunks(), headers=headers) as answer:
        assert answer.status == 413


class Stalled:
    """A sender that announces a large body and waits."""

    def __init__(self, body: bytes, guid: str) -> None:
        self.body, self.guid = body, guid

    async def begin(self, server: Server) -> None:
        """Send all but the last byte, after the server has said that it reads."""
        self.reader, self.writer = await asyncio.open_connection(server.server.host, server.server.port)
        head = (
            f"POST /webhook HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nX-GitHub-Event: issues\r\n"
            f"X-GitHub-Delivery: {self.guid}\r\nX-Hub-Signature-256: {VERIFIER.sign(self.body)}\r\n"
            f"Expect: 100-continue\r\nContent-Length: {len(self.body)}\r\n\r\n"
        )
        self.writer.write(head.encode())
        assert b" 100 " in await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 20)
        self.writer.write(self.body[:-1])

    async def status(self) -> int:
        """Wait for the answer."""
        line = await asyncio.wait_for(self.reader.readline(), 20)
        self.writer.close()
        return int(line.split()[1])


async def test_a_sender_that_stalls_is_cut_off(engine: AsyncEngine, handled: Handled) -> None:
    async with Server(engine, handled, body_timeout=0.2) as server:
        stalled = Stalled(LABELED, "slow")
        await stalled.begin(server)
        assert await stalled.status() == 408
        assert await server.inbox.state("slow") is None


async def test_only_a_few_large_bodies_are_read_at_once(server: Server) -> None:
    large = b'{"action":"labeled","x":"%s"}' % (b"x" * LARGE_BODY)
    senders = [Stalled(large, f"large{number}") for number in range(LARGE_AT_ONCE)]
    for sender in senders:
        await sender.begin(server)
    waiting = asyncio.create_task(server.post(large, guid="waiting"))
    assert (await server.post(guid="small"))[0] == 202  # the usual delivery is not held up
    assert not waiting.done()
    senders[0].writer.write(large[-1:])
    assert await senders[0].status() == 202
    assert (await waiting)[0] == 202
    for sender in senders[1:]:
        sender.writer.write(large[-1:])
        assert await sender.status() == 202


async def test_other_methods_and_paths(server: Server) -> None:
    async with server.client.get(server.server.make_url("/webhook")) as answer:
        assert answer.status == 405
    async with server.client.post(server.server.make_url("/")) as answer:
        assert answer.status == 404


async def test_an_unreachable_database_is_503_and_the_redelivery_works(
    server: Server, engine: AsyncEngine, handled: Handled
) -> None:
    async with engine.begin() as connection:
        await connection.execute(text("ALTER TABLE deliveries RENAME TO gone"))
    url, headers = server.server.make_url("/webhook"), {"X-Hub-Signature-256": VERIFIER.sign(LABELED)}
    headers |= {"X-GitHub-Event": "issues", "X-GitHub-Delivery": "g1", "Content-Type": "application/json"}
    async with server.client.post(url, data=LABELED, headers=headers) as answer:
        assert answer.status == 503
        assert int(answer.headers["Retry-After"]) > 0
        assert "database" in (await answer.json())["error"]
    assert (await server.post(b"{}", event="star"))[0] == 202  # what is not stored needs no database
    async with engine.begin() as connection:
        await connection.execute(text("ALTER TABLE gone RENAME TO deliveries"))
    assert await server.post(guid="g1") == (202, {"delivery": "g1"})
    await handled.wait(1)


async def test_an_empty_secret_is_refused_at_once(engine: AsyncEngine, handled: Handled) -> None:
    inbox = Inbox(engine)
    with pytest.raises(ConfigurationError, match="CONDUCTOR_WEBHOOK_SECRET"):
        create_app(fixed_settings(), inbox=inbox, wanted=WANTED, on_delivery=handled, checks={})
    await inbox.aclose()


# --- health


async def test_healthz(server: Server) -> None:
    assert await server.get("/healthz") == (200, {"alive": True})


async def test_readyz_tells_each_check(engine: AsyncEngine, handled: Handled) -> None:
    async def good() -> None: ...

    async def bad() -> None:
        raise ConnectionRefusedError("redis://:password@host")

    never = asyncio.Event()

    async def hangs() -> None:
        await never.wait()

    async with Server(engine, handled, checks={"database": good}) as server:
        assert await server.get("/readyz") == (
            200,
            {"ready": True, "draining": False, "checks": {"database": "ok"}},
        )
        await server.server.app.shutdown()  # type: ignore[union-attr]
        assert await server.get("/readyz") == (
            503,
            {"ready": False, "draining": True, "checks": {"database": "ok"}},
        )
    checks = {"database": good, "redis": bad, "other": hangs}
    async with Server(engine, handled, checks=checks) as server:
        status, answer = await server.get("/readyz")
    assert status == 503
    assert answer["checks"] == {
        "database": "ok",
        "redis": "ConnectionRefusedError",
        "other": "no answer within 2 s",
    }


# --- processing


async def test_a_failing_delivery_is_tried_five_times_and_given_up(engine: AsyncEngine) -> None:
    tries: list[int] = []

    async def fails(delivery: Delivery) -> None:
        tries.append(delivery.tries)
        raise RuntimeError("GitHub is away")

    async with Server(engine, fails, retry_delays=(0, 0, 0, 0)) as server:
        await server.post(guid="g1")
        await server.until("g1", State.failed)
    assert tries == [0, 1, 2, 3, 4]
    async with engine.connect() as connection:
        row = (await connection.execute(text("SELECT tries, error FROM deliveries"))).one()
    assert tuple(row) == (5, "RuntimeError: GitHub is away")


async def test_a_redelivery_takes_up_what_was_given_up(engine: AsyncEngine, handled: Handled) -> None:
    away = True

    async def fails_at_first(delivery: Delivery) -> None:
        if away:
            raise RuntimeError("GitHub is away")
        await handled(delivery)

    async with Server(engine, fails_at_first, retry_delays=()) as server:
        await server.post(guid="g1")
        await server.until("g1", State.failed)
        away = False
        assert await server.post(guid="g1") == (202, {"delivery": "g1"})
        await server.until("g1", State.done)
    assert [delivery.tries for delivery in handled.deliveries] == [0]


async def test_one_failing_delivery_does_not_hold_up_the_others(
    engine: AsyncEngine, handled: Handled
) -> None:
    async def picky(delivery: Delivery) -> None:
        if delivery.id == "bad":
            raise RuntimeError("never")
        await handled(delivery)

    async with Server(engine, picky, retry_delays=(3600,)) as server:
        await server.post(guid="bad")
        await server.post(guid="good")
        await handled.wait(1)
        await server.until("good", State.done)
        assert await server.inbox.state("bad") is State.received


async def test_a_done_that_cannot_be_written_is_repeated(engine: AsyncEngine, handled: Handled) -> None:
    async def breaks_the_database(delivery: Delivery) -> None:
        first = not handled.deliveries
        await handled(delivery)
        if first:
            async with engine.begin() as connection:
                await connection.execute(text("ALTER TABLE deliveries RENAME TO gone"))

    async with Server(engine, breaks_the_database, retry_delays=(0.05,) * 4) as server:
        await server.post(guid="g1")
        await handled.wait(1)
        async with engine.connect() as connection, asyncio.timeout(20):
            while True:  # until the first try is over
                async with engine.begin() as connection:
                    try:
                        await connection.execute(text("ALTER TABLE gone RENAME TO deliveries"))
                        break
                    except Exception:
                        await asyncio.sleep(0.01)
        await server.until("g1", State.done)


async def test_deliveries_are_handled_in_the_order_of_their_arrival(
    engine: AsyncEngine, handled: Handled
) -> None:
    async with Server(engine, handled) as server:
        for number in range(30):
            await server.post(guid=f"g{number:02}")
        deliveries = await handled.wait(30)
    arrivals = [delivery.received_at for delivery in deliveries]
    positions = [abs(sorted(arrivals).index(arrived) - index) for index, arrived in enumerate(arrivals)]
    assert max(positions) <= 16  # as many as are in hand at once


async def test_a_stopping_server_finishes_what_is_in_hand(engine: AsyncEngine, handled: Handled) -> None:
    started, go_on = asyncio.Event(), asyncio.Event()

    async def slow(delivery: Delivery) -> None:
        started.set()
        await go_on.wait()
        await handled(delivery)

    server = Server(engine, slow)
    await server.server.start_server()
    await server.post(guid="g1")
    await started.wait()
    await server.client.close()
    closing = asyncio.create_task(server.server.close())
    go_on.set()
    await closing
    assert [delivery.id for delivery in handled.deliveries] == ["g1"]
    assert await server.inbox.state("g1") is State.done


# --- what a crash leaves behind


async def test_what_was_stored_and_not_handled_is_replayed_at_start(
    engine: AsyncEngine, handled: Handled
) -> None:
    crashed = Inbox(engine)  # a server that died between the 202 and the handler
    start = datetime.now(UTC)
    for number in range(1200):  # more than a page
        await crashed.put(
            Delivery(
                id=f"g{number:04}",
                event="issues",
                action="labeled",
                installation_id=7,
                received_at=start + timedelta(milliseconds=number),
                body=LABELED,
            )
        )
    await crashed.done("g0003")
    await crashed.failed("g0004", "no")
    await crashed.aclose()
    async with Server(engine, handled) as server:
        deliveries = await handled.wait(1198)
        await server.until(deliveries[-1].id, State.done)
    assert sorted(delivery.id for delivery in deliveries) == [
        f"g{number:04}" for number in range(1200) if number not in (3, 4)
    ]


SERVER = """
import asyncio, sys
from aiohttp import web
from bot.config import fixed_settings
from bot.database import create_engine
from bot.inbox import Inbox
from bot.web import create_app

async def never(delivery):
    await asyncio.Event().wait()

async def main():
    app = create_app(fixed_settings(webhook_secret=sys.argv[2]), inbox=Inbox(create_engine(sys.argv[1])),
                     wanted={"issues": frozenset({"labeled"})}, on_delivery=never, checks={})
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_nothing_is_lost_by_kill_9_between_the_202_and_the_handler(
    tmp_path: Path, handled: Handled
) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path / 'c.db'}"
    engine = create_engine(url)
    await upgrade(engine)
    process = subprocess.Popen([sys.executable, "-c", SERVER, url, SECRET], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        port = int(await asyncio.to_thread(process.stdout.readline))
        async with ClientSession() as client:

            async def post(guid: str) -> int:
                headers = {"X-Hub-Signature-256": VERIFIER.sign(LABELED), "X-GitHub-Event": "issues"}
                headers |= {"X-GitHub-Delivery": guid, "Content-Type": "application/json"}
                async with client.post(
                    f"http://127.0.0.1:{port}/webhook", data=LABELED, headers=headers
                ) as answer:
                    return answer.status

            statuses = await asyncio.gather(*(post(f"g{number}") for number in range(40)))
            assert statuses == [202] * 40
            os.kill(process.pid, signal.SIGKILL)
    finally:
        process.kill()
        process.wait(20)
        if process.stdout is not None:
            process.stdout.close()
    async with Server(engine, handled):
        deliveries = await handled.wait(40)
    assert sorted(delivery.id for delivery in deliveries) == sorted(f"g{number}" for number in range(40))
    await engine.dispose()
    check = sqlite3.connect(tmp_path / "c.db")
    assert check.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    check.close()
