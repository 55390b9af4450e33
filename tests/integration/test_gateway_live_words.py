"""Live words over the gateway's real socket, from the real store: who gets them, once, and who does not."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from sqlalchemy import update
from sqlalchemy.exc import OperationalError

from bot.agent_requests import AgentRequest
from bot.database import create_engine, upgrade
from bot.live_words import MAX_LIVE, Said
from bot.model import Actor, AttemptState, FailureKind, Job, JobState, Repo, TargetKind, Trigger
from bot.prompts import told_prompt
from bot.schema import jobs
from bot.store import Store
from runners.gateway.desk import Desk
from runners.gateway.live_words import LiveWordsRoute
from runners.gateway.server import Gateway

JOB = Job(
    id="j0000000000a1",
    repo=Repo(owner="acme", name="hello", id=10, installation_id=20),
    number=1,
    target=TargetKind.issue,
    trigger=Trigger(
        delivery_id="d0", event="issue_comment.created", actor=Actor(login="maria", id=3, type="User")
    ),
    agent="claude",
    model=None,
    instructions="do it",
    title="T",
    body="B",
    timeout=600,
    state=JobState.queued,
    created_at=datetime(2026, 1, 2, tzinfo=UTC),
    thread_id="10-1",
)
NOTHING = (204, None)


def given(*said: tuple[str, str], event: str = "PostToolUse") -> tuple[int, Any]:
    """The answer that hands these words over."""
    return 200, {"hookSpecificOutput": {"hookEventName": event, "additionalContext": told_prompt(said)}}


@dataclass
class Place:
    """A job at work, and its agent's CLI between two tool calls."""

    store: Store
    desk: Desk
    session: aiohttp.ClientSession

    async def say(self, words: str, by: str = "octocat", *, event: str = "d1/0") -> None:
        assert await self.store.tell(JOB.id, words, by, event=event)

    async def asks(
        self, *, token: str | None = None, body: bytes | None = None, **hook: Any
    ) -> tuple[int, Any]:
        sent = {
            "hook_event_name": "PostToolUse",
            "tool_name": "Bash",
            "tool_response": {"stdout": "x"},
        } | hook
        headers = {"Authorization": f"Bearer {self.desk.token if token is None else token}"}
        data = json.dumps(sent).encode() if body is None else body
        async with self.session.post("/live-words", data=data, headers=headers) as answer:
            return answer.status, await answer.json() if await answer.read() else None

    async def waiting(self) -> list[str]:
        return [one.words for one in await self.store.untold(JOB.id)]


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    """On SQLite alone: what PostgreSQL finds is in tests/contract/test_store.py."""
    engine = create_engine(f"sqlite+aiosqlite:///{tmp_path / 'words.db'}")
    await upgrade(engine)
    yield Store(engine)
    await engine.dispose()


@pytest.fixture
async def place(tmp_path: Path, store: Store) -> AsyncIterator[Place]:
    await store.add_job(JOB)
    claimed = await store.claim_next("h")
    assert claimed is not None
    await store.set_attempt(claimed[1], AttemptState.running)
    desk = Desk.create(tmp_path / "desk", attempt_id=claimed[1].id, mirror=None)
    desk.give({"number": 1})
    gateway = Gateway({"live-words": LiveWordsRoute(store.live_words).serve})
    connector = aiohttp.UnixConnector(str(await gateway.open(desk)))
    async with aiohttp.ClientSession("http://gateway", connector=connector) as session:
        yield Place(store, desk, session)
    await gateway.aclose()
    desk.close()


async def test_each_is_handed_over_once_and_stays_untold(place: Place) -> None:
    assert await place.asks() == NOTHING
    await place.say("Keep the old format.")
    await place.say("And hurry.", "maria", event="d2/0")
    answers = await asyncio.gather(*(place.asks() for _ in range(5)))  # tools that ran side by side
    assert sorted(answers, key=lambda answer: answer[0]) == [
        given(("octocat", "Keep the old format."), ("maria", "And hurry.")),
        *[NOTHING] * 4,
    ]
    await place.say("Really.", event="d3/0")
    failed = "PostToolUseFailure"
    assert await place.asks(hook_event_name=failed) == given(("octocat", "Really."), event=failed)
    # what becomes of the turn decides; a worker that is restarted meanwhile knows what it handed over
    assert await place.waiting() == ["Keep the old format.", "And hurry.", "Really."]
    again = Desk.open(place.desk.directory)
    assert [one.event for words in again.live_words for one in words.said] == ["d1/0", "d2/0", "d3/0"]
    again.close()


async def test_the_next_turn_is_told_again_what_this_one_did_not_take(place: Place) -> None:
    await place.say("Keep the old format.")
    words = given(("octocat", "Keep the old format."))
    assert await place.asks() == words
    place.desk.take_outcome(1, b'{"exit_code": 0}')
    assert await place.asks() == NOTHING  # a program that outlived its turn
    place.desk.give({"number": 2})
    assert await place.asks() == words
    await place.store.told(["d1/0"])
    place.desk.take_outcome(2, b'{"exit_code": 0}')
    place.desk.give({"number": 3})
    assert await place.asks() == NOTHING


async def test_a_sub_agent_gets_nothing(place: Place) -> None:
    await place.say("Keep the old format.")
    assert await place.asks(agent_id="a3b112747d82e9962", agent_type="general-purpose") == NOTHING
    assert await place.asks() == given(("octocat", "Keep the old format."))


async def test_a_token_that_is_not_the_attempt_s_gets_nothing(place: Place, tmp_path: Path) -> None:
    await place.say("Keep the old format.")
    other = Desk.create(tmp_path / "other", attempt_id=f"{JOB.id}-2", mirror=None)
    for token in ("", "nobody's", other.token):
        status, answer = await place.asks(token=token)
        assert (status, "additionalContext" in json.dumps(answer)) == (401, False)
    assert place.desk.live_words == []
    other.close()


async def test_a_job_that_is_not_at_work_is_told_nothing(place: Place) -> None:
    await place.say("Keep the old format.")
    before = {"state": "running", "cancel_requested_by": None, "approval_id": None, "fence": 1}
    for change in (
        *({"state": str(state)} for state in JobState if state is not JobState.running),
        {"cancel_requested_by": "maria"},
        {"approval_id": "a1"},
        {"fence": 2},  # another host has taken over
    ):
        async with place.store.engine.begin() as connection:
            await connection.execute(update(jobs).where(jobs.c.id == JOB.id).values(**(before | change)))
        assert await place.asks() == NOTHING, change
    async with place.store.engine.begin() as connection:
        await connection.execute(update(jobs).where(jobs.c.id == JOB.id).values(**before))
    assert await place.asks() == given(("octocat", "Keep the old format."))


def asked(desk: Desk) -> None:
    desk.take_request(AgentRequest(turn=1, at=1.0, kind=None, reason="Red or blue?"))


@pytest.mark.parametrize(
    "end",
    [asked, Desk.finish, lambda desk: desk.halt(FailureKind.budget, "Too dear.")],
    ids=["asks", "ends", "halts"],
)
async def test_a_turn_that_ends_is_told_nothing_more(place: Place, end: Callable[[Desk], None]) -> None:
    await place.say("Keep the old format.")
    end(place.desk)
    assert await place.asks() == NOTHING
    assert await place.waiting() == ["Keep the old format."]


async def test_what_is_too_long_waits_for_the_end_of_the_turn(place: Place) -> None:
    await place.say("x" * MAX_LIVE)
    assert await place.asks() == NOTHING
    assert len(await place.waiting()) == 1


async def test_what_is_no_question_is_refused_and_takes_nothing(place: Place) -> None:
    await place.say("Keep the old format.")
    for body in (b"", b"[]", b"{}", b'{"hook_event_name": "Stop"}', b'{"hook_event_name": 1}'):
        status, _ = await place.asks(body=body)
        assert status == 400
    assert await place.asks() == given(("octocat", "Keep the old format."))


async def test_the_path_and_the_method(place: Place) -> None:
    headers = {"Authorization": f"Bearer {place.desk.token}"}
    async with place.session.get("/live-words", headers=headers) as answer:
        assert answer.status == 405
    async with place.session.post("/live-words/all", headers=headers) as answer:
        assert answer.status == 404


async def test_without_the_database_the_agent_goes_on(tmp_path: Path) -> None:
    async def fails(_attempt: str) -> list[Said]:
        raise OperationalError("SELECT", {}, Exception("the server went away"))

    desk = Desk.create(tmp_path / "desk", attempt_id="j1-1", mirror=None)
    desk.give({"number": 1})
    gateway = Gateway({"live-words": LiveWordsRoute(fails).serve})
    connector = aiohttp.UnixConnector(str(await gateway.open(desk)))
    async with aiohttp.ClientSession("http://gateway", connector=connector) as session:
        headers = {"Authorization": f"Bearer {desk.token}"}
        async with session.post(
            "/live-words", json={"hook_event_name": "PostToolUse"}, headers=headers
        ) as answer:
            assert (answer.status, await answer.json()) == (503, {"error": "The database does not answer."})
    await gateway.aclose()
    desk.close()
