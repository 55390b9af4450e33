"""Deliveries that somebody else made: nothing of them is stored or handled, whatever they claim.

Attack class 23.
"""

import hashlib
import hmac
import json
import zlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import ClientSession
from aiohttp.test_utils import TestServer
from sqlalchemy import func, select

from bot.config import fixed_settings
from bot.database import create_engine, upgrade
from bot.inbox import Delivery, Inbox
from bot.schema import deliveries
from bot.signature import Verifier
from bot.web import create_app

SECRET = "the webhook secret"
BODY = json.dumps({"action": "labeled", "installation": {"id": 7}}).encode()
GOOD = Verifier(SECRET).sign(BODY)


class Target:
    """A running server, and what reached its inbox and its handlers."""

    def __init__(
        self, server: TestServer, client: ClientSession, handled: list[Delivery], folder: Path
    ) -> None:
        self.server, self.client, self.handled = server, client, handled
        self.database = f"sqlite+aiosqlite:///{folder / 'c.db'}"

    async def attack(self, headers: dict[str, str], body: bytes = BODY) -> tuple[int, str]:
        base = {"X-GitHub-Event": "issues", "X-GitHub-Delivery": "g1", "Content-Type": "application/json"}
        url = self.server.make_url("/webhook")
        async with self.client.post(url, data=body, headers=base | headers) as answer:
            return answer.status, await answer.text()

    async def untouched(self) -> bool:
        engine = create_engine(self.database)
        async with engine.connect() as connection:
            rows = (await connection.execute(select(func.count()).select_from(deliveries))).scalar_one()
        await engine.dispose()
        return rows == 0 and not self.handled


@pytest.fixture
async def target(tmp_path: Path) -> AsyncIterator[Target]:
    engine = create_engine(f"sqlite+aiosqlite:///{tmp_path / 'c.db'}")
    await upgrade(engine)
    handled: list[Delivery] = []

    async def handle(delivery: Delivery) -> None:
        handled.append(delivery)

    app = create_app(
        fixed_settings(webhook_secret=SECRET),
        inbox=Inbox(engine),
        wanted={"issues": frozenset({"labeled"})},
        on_delivery=handle,
        checks={},
    )
    async with TestServer(app) as server, ClientSession() as client:
        yield Target(server, client, handled, tmp_path)
    await engine.dispose()


def signed_with(secret: bytes, body: bytes = BODY) -> str:
    return "sha256=" + hmac.digest(secret, body, "sha256").hex()


FORGED: dict[str, dict[str, str]] = {
    "unsigned": {},
    "empty": {"X-Hub-Signature-256": ""},
    "SHA-1 alone, though right": {
        "X-Hub-Signature": "sha1=" + hmac.digest(SECRET.encode(), BODY, "sha1").hex()
    },
    "SHA-1 in the other header": {
        "X-Hub-Signature-256": "sha1=" + hmac.digest(SECRET.encode(), BODY, "sha1").hex()
    },
    "another secret": {"X-Hub-Signature-256": signed_with(b"guess")},
    "the empty secret": {"X-Hub-Signature-256": signed_with(b"")},
    "a hash without a key": {"X-Hub-Signature-256": "sha256=" + hashlib.sha256(BODY).hexdigest()},
    "of another body": {"X-Hub-Signature-256": signed_with(SECRET.encode(), BODY + b" ")},
    "cut": {"X-Hub-Signature-256": GOOD[:-1]},
    "longer": {"X-Hub-Signature-256": GOOD + "00"},
    "upper case": {"X-Hub-Signature-256": GOOD.upper()},
    "without its prefix": {"X-Hub-Signature-256": GOOD.removeprefix("sha256=")},
    "not ASCII": {"X-Hub-Signature-256": GOOD[:-1] + "é"},
    "two values": {"X-Hub-Signature-256": f"{signed_with(b'guess')}, {GOOD}"},
    "the right one in a cookie": {"Cookie": f"X-Hub-Signature-256={GOOD}"},
}


@pytest.mark.parametrize("headers", FORGED.values(), ids=FORGED.keys())
async def test_a_forged_delivery_is_refused(target: Target, headers: dict[str, str]) -> None:
    status, answer = await target.attack(headers)
    assert status == 401
    assert "error" in json.loads(answer)
    assert SECRET not in answer
    assert GOOD.removeprefix("sha256=") not in answer
    assert await target.untouched()


async def test_the_signature_counts_for_every_event(target: Target) -> None:
    for event in ("ping", "star", "issues", "", "installation"):
        assert (await target.attack({"X-GitHub-Event": event, "X-Hub-Signature-256": signed_with(b"guess")}))[
            0
        ] == 401


async def test_one_changed_byte_is_noticed(target: Target) -> None:
    for position in range(len(BODY)):
        changed = bytearray(BODY)
        changed[position] ^= 1
        assert (await target.attack({"X-Hub-Signature-256": GOOD}, bytes(changed)))[0] == 401
    assert await target.untouched()


async def test_a_compressed_body_is_not_a_way_round_the_cap_or_the_signature(target: Target) -> None:
    bomb = zlib.compress(b" " * (100 * 2**20), 9)
    for body, signed in ((bomb, bomb), (bomb, BODY), (zlib.compress(BODY), BODY)):
        status, answer = await target.attack(
            {"X-Hub-Signature-256": signed_with(SECRET.encode(), signed), "Content-Encoding": "deflate"}, body
        )
        assert status == 415
        assert "Content-Encoding" in answer
    assert await target.untouched()


async def test_two_signature_headers_do_not_help(target: Target) -> None:
    url = target.server.make_url("/webhook")
    headers = [
        ("X-Hub-Signature-256", signed_with(b"guess")),
        ("X-Hub-Signature-256", GOOD),
        ("X-GitHub-Event", "issues"),
        ("X-GitHub-Delivery", "g1"),
        ("Content-Type", "application/json"),
    ]
    async with target.client.post(url, data=BODY, headers=headers) as answer:
        assert answer.status == 401
    assert await target.untouched()


async def test_the_right_delivery_passes(target: Target) -> None:
    # so that the refusals above are about the forgery alone
    assert (await target.attack({"X-Hub-Signature-256": GOOD}))[0] == 202
    assert not await target.untouched()
