"""Drafts that people decide in: their text is what is true now, and one of which nothing came is closed."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from bot.audit import Audit, Wanted
from bot.audit_chain import AuditKind, Entry
from bot.model import Job, JobState
from bot.schema import jobs
from tests.scenarios.world import REPO, World, world

pytestmark = pytest.mark.timeout(180)

THREE, FOUR, FIVE = (f"```sh\nseq {count} > numbers.txt\n```" for count in (3, 4, 5))


async def planned(box: World) -> tuple[int, int]:
    """An issue of maria's, and the draft pull request with its plan."""
    maria = box.github.as_user("maria")
    issue = int((await maria.open_issue(REPO, "Numbers", THREE))["number"])
    await maria.comment(REPO, issue, "/agent plan")
    assert (await box.ended(issue)).state is JobState.succeeded
    await box.dealt_with()
    return issue, int(pull(box)["number"])


def pull(box: World, nth: int = 0) -> dict[str, Any]:
    return box.github.pulls(REPO)[nth]


async def long_ago(box: World) -> None:
    """Every job ended so long ago that drafts may be looked after."""
    async with box.store.engine.begin() as connection:
        ended = datetime.now(UTC) - timedelta(hours=1)
        await connection.execute(
            update(jobs).where(jobs.c.finished_at.is_not(None)).values(finished_at=ended)
        )


async def looked_after(box: World) -> None:
    """Wait until nothing is left to be closed."""
    async with asyncio.timeout(60):
        while await box.store.jobs_with_idle_drafts():
            await asyncio.sleep(0.1)


async def recorded(box: World, kind: AuditKind) -> list[Entry]:
    found = [entry async for entry in Audit(box.store.engine, box.redactor).entries(Wanted(kinds=[kind]))]
    assert all(isinstance(entry, Entry) for entry in found)
    return [entry for entry in found if isinstance(entry, Entry)]


async def test_the_text_is_the_plan_of_now_and_then_the_result(tmp_path: Path) -> None:
    async with world(tmp_path) as box:
        issue, number = await planned(box)
        first = pull(box)
        assert first["title"].startswith("Plan: ")
        assert "seq 3" in first["body"]
        octocat = box.github.as_user("octocat")
        await octocat.review(REPO, number, "REQUEST_CHANGES", f"Four.\n{FOUR}")
        assert (await box.ended(number, nth=1)).state is JobState.succeeded
        await box.dealt_with()
        second = pull(box)
        assert "seq 4" in second["body"]
        assert "seq 3" not in second["body"]
        assert f"Closes #{issue}" in second["body"]
        await octocat.review(REPO, number, "APPROVE", f"Go.\n{FIVE}")
        done = await box.ended(number, nth=2)
        assert done.state is JobState.succeeded
        third = pull(box)
        assert (third["draft"], third["title"].startswith("Plan: ")) == (False, False)
        assert "seq 5" in third["body"]
        assert f"Closes #{issue}" in third["body"]
        assert f"#{number}" not in third["body"]
        assert done.id in third["body"]


async def test_a_text_that_people_changed_stays_theirs(tmp_path: Path) -> None:
    async with world(tmp_path) as box:
        _, number = await planned(box)
        mine = f"{pull(box)['body']}\n\nRead this first."
        # whoever hears of it shows the question once more, and counts no review of the very same second
        url, box.github.webhook_url = box.github.webhook_url, None
        await box.github.as_user("octocat").edit_issue(REPO, number, body=mine)
        box.github.webhook_url = url
        await box.github.as_user("octocat").review(REPO, number, "APPROVE", f"Go.\n{FIVE}")
        assert (await box.ended(number, nth=1)).state is JobState.succeeded
        assert pull(box)["body"].replace("\r\n", "\n") == mine
        assert not pull(box)["draft"]


async def test_a_plan_that_was_taken_back_is_closed_and_done_afresh(tmp_path: Path) -> None:
    async with world(tmp_path) as box:
        issue, number = await planned(box)
        maria = box.github.as_user("maria")
        await maria.comment(REPO, issue, "/agent cancel")
        await box.dealt_with()
        await long_ago(box)
        await looked_after(box)
        assert pull(box)["state"] == "closed"
        assert await box.new_branches() == []
        closing = [
            one["body"] for one in box.github.comments(REPO, number) if "Closed, because" in one["body"]
        ]
        assert len(closing) == 1
        assert [entry.details["pull"] for entry in await recorded(box, AuditKind.pull_closed)] == [number]
        assert len(await recorded(box, AuditKind.branch_removed)) == 1
        await maria.comment(REPO, number, "/agent retry")
        async with asyncio.timeout(60):
            while len(box.github.pulls(REPO)) < 2:
                await asyncio.sleep(0.05)
        assert pull(box, 1)["draft"]


async def test_a_draft_that_somebody_pushed_to_stays_open(tmp_path: Path) -> None:
    async with world(tmp_path) as box:
        issue, _ = await planned(box)
        maria = box.github.as_user("maria")
        await maria.comment(REPO, issue, "/agent cancel")
        await box.dealt_with()
        await maria.push_commit(REPO, pull(box)["head"]["ref"], {"mine.txt": "1\n"})
        await long_ago(box)
        await looked_after(box)
        assert pull(box)["state"] == "open"
        assert len(await box.new_branches()) == 1
        assert await recorded(box, AuditKind.pull_closed) == []


async def test_a_draft_whose_plan_waits_for_a_decision_stays_open(tmp_path: Path) -> None:
    async with world(tmp_path) as box:
        issue, _ = await planned(box)
        await long_ago(box)
        assert await box.store.jobs_with_idle_drafts() == []
        # done once more, too: people may still decide about the first
        await box.github.as_user("maria").comment(REPO, issue, "/agent retry")
        again: Job = await box.ended(issue, nth=1)
        assert again.state is JobState.succeeded
        assert await box.store.jobs_with_idle_drafts() == []
