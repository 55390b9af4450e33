"""Every example payload that GitHub's users collected, posted to the real server."""

import gzip
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession
from aiohttp.test_utils import TestServer
from sqlalchemy.ext.asyncio import AsyncEngine

from bot.config import fixed_settings
from bot.events import Event, NotForUs, parse_event
from bot.inbox import Delivery, Inbox, State
from bot.signature import Verifier
from bot.web import create_app
from handlers.table import router

SECRET = "the webhook secret"
ARCHIVE = Path(__file__).parents[1] / "payloads" / "webhooks-examples.json.gz"


@pytest.fixture(scope="module")
def examples() -> list[tuple[str, dict[str, Any]]]:
    by_event = json.loads(gzip.decompress(ARCHIVE.read_bytes()))
    return [(event, payload) for event, payloads in by_event.items() for payload in payloads]


async def post(client: ClientSession, server: TestServer, guid: str, event: str, body: bytes) -> int:
    headers = {
        "X-Hub-Signature-256": Verifier(SECRET).sign(body),
        "X-GitHub-Event": event,
        "X-GitHub-Delivery": guid,
        "Content-Type": "application/json",
    }
    async with client.post(server.make_url("/webhook"), data=body, headers=headers) as answer:
        await answer.read()
        return answer.status


@pytest.fixture
async def inbox(engine: AsyncEngine) -> AsyncIterator[Inbox]:
    inbox = Inbox(engine)
    yield inbox
    await inbox.aclose()


@pytest.mark.parametrize("all_wanted", [False, True], ids=["as routed", "every event stored and parsed"])
async def test_every_example_payload(
    engine: AsyncEngine,
    inbox: Inbox,
    examples: list[tuple[str, dict[str, Any]]],
    all_wanted: bool,
) -> None:
    seen: dict[str, Event | NotForUs] = {}

    async def handle(delivery: Delivery) -> None:
        try:
            seen[delivery.id] = parse_event(delivery.id, delivery.event, delivery.payload())
        except NotForUs as reason:
            seen[delivery.id] = reason

    assert len(examples) == 329
    app = create_app(
        fixed_settings(webhook_secret=SECRET),
        inbox=Inbox(engine),
        wanted={event: None for event, _ in examples} if all_wanted else router.wanted,
        on_delivery=handle,
        checks={},
        retry_delays=(),  # a crash of the parser shows as a failed delivery
    )
    async with TestServer(app) as server, ClientSession() as client:
        for number, (event, payload) in enumerate(examples):
            status = await post(client, server, f"g{number}", event, json.dumps(payload).encode())
            assert status == (200 if event == "ping" else 202), f"{event} number {number}"
    # the server has stopped: what it had in hand is finished, the rest is in the inbox
    states = [await inbox.state(f"g{number}") for number in range(len(examples))]
    assert State.failed not in states
    for number, (event, payload) in enumerate(examples):
        wanted = event != "ping" and (
            all_wanted or (event in router.wanted and payload.get("action", "") in router.wanted[event])
        )
        if wanted and not all_wanted and payload.get("action") == "edited" and "comment" in payload:
            wanted = payload["comment"]["user"]["id"] != payload["sender"]["id"]  # else their own words
        assert (states[number] is not None) == wanted, f"{event}.{payload.get('action')}"
    assert set(seen) == {f"g{number}" for number, state in enumerate(states) if state is State.done}
    for number, (event, payload) in enumerate(examples):
        found = seen.get(f"g{number}")
        if isinstance(found, Event):
            assert found.name == event
            if "repository" in payload:
                assert found.repo.full_name == payload["repository"]["full_name"]
            else:  # about the App itself: of an account, and of many repositories or none
                assert found.repo.owner == payload["installation"]["account"]["login"]
            assert found.actor.login == payload["sender"]["login"]
