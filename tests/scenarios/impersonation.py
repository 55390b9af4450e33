"""Deliveries of what GitHub does not let somebody do: signed, and shaped as GitHub's own."""

from __future__ import annotations

import json
import uuid
from typing import Any

import aiohttp

from bot.signature import Verifier
from tests.scenarios.world import CANARIES, World


async def send(box: World, event: str, payload: dict[str, Any]) -> str:
    """Send a delivery as GitHub would; returns its GUID."""
    body, guid = json.dumps(payload).encode(), str(uuid.uuid4())
    headers = {
        "X-GitHub-Event": event,
        "X-GitHub-Delivery": guid,
        "X-Hub-Signature-256": Verifier(CANARIES["webhook"]).sign(body),
        "Content-Type": "application/json",
    }
    async with (
        aiohttp.ClientSession() as client,
        client.post(str(box.github.webhook_url), data=body, headers=headers) as answer,
    ):
        assert answer.status == 202
    return guid


async def deliver(box: World, event: str, payload: dict[str, Any]) -> None:
    """Send a delivery as GitHub would, and wait until it was dealt with."""
    await send(box, event, payload)
    await box.dealt_with()


def as_somebody_else(payload: dict[str, Any], login: str, box: World) -> dict[str, Any]:
    """The payload, changed so that an account that exists has done it and written what it holds."""
    user = box.github.world.users[login]
    who = {"login": login, "id": user.id, "type": user.type}
    payload["sender"].update(who)
    texts = ("issue", "pull_request") if payload.get("action") == "opened" else ("comment", "review")
    for text in texts:
        if text in payload:
            payload[text]["user"].update(who)
    return payload
