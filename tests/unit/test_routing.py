"""Handlers run in order, each on its own."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bot.events import Event
from bot.model import Actor, Repo, TargetKind
from bot.routing import HandlersFailed, Router

EVENT = Event(
    delivery_id="d",
    name="issues",
    action="labeled",
    repo=Repo(owner="a", name="b", id=1, installation_id=2),
    actor=Actor(login="m", id=3, type="User"),
    number=1,
    target=TargetKind.issue,
    title="",
    body="",
    open=True,
)


async def test_a_failing_handler_does_not_silence_the_others_and_is_told() -> None:
    first: Router[list[str]] = Router()
    second: Router[list[str]] = Router()

    @first.on("issues", "labeled")
    async def breaks(event: Event, ran: list[str]) -> None:
        ran.append("breaks")
        raise ValueError(event.kind)

    @second.on("issues", "labeled")
    async def works(event: Event, ran: list[str]) -> None:
        ran.append("works")

    @second.on("issues", "opened")
    async def other(event: Event, ran: list[str]) -> None:
        ran.append("other")

    @second.on("status", "")
    async def without_actions(event: Event, ran: list[str]) -> None:
        ran.append("without actions")

    router = Router(first, second)
    ran: list[str] = []
    with pytest.raises(HandlersFailed) as caught:
        await router.dispatch(EVENT, ran)
    assert ran == ["breaks", "works"]
    assert [str(error) for error in caught.value.exceptions] == ["issues.labeled"]
    assert router.wanted == {"issues": frozenset({"labeled", "opened"}), "status": frozenset({""})}
    await router.dispatch(replace(EVENT, name="status", action=""), ran)
    assert ran[2:] == ["without actions"]
