"""Where a job's check run stands, and what it says, from the moment when the job was accepted."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from bot.model import JobState, Phase
from tests.scenarios.world import REPO, World, world

pytestmark = pytest.mark.timeout(180)

WORK = "/agent run --agent shell add a line\n```sh\necho two >> feature.txt\n```"


async def busy(box: World, gate: Path) -> int:
    """An issue whose job takes the only slot until ``gate`` is there."""
    maria = box.github.as_user("maria")
    body = f"```sh\nwhile ! test -e {gate}; do sleep 0.1; done\n```"
    number = int((await maria.open_issue(REPO, "Long", body))["number"])
    await maria.add_label(REPO, number, "agent")
    async with asyncio.timeout(60):
        while (await box.job(number)).phase is not Phase.agent:
            await asyncio.sleep(0.05)
    return number


async def feature(box: World) -> int:
    maria = box.github.as_user("maria")
    await maria.push_commit(REPO, "feature", {"feature.txt": "one\n"})
    return int((await maria.open_pull(REPO, "feature", "A feature"))["number"])


def head(box: World) -> str:
    return str(box.github.pulls(REPO)[0]["head"]["sha"])


def runs(box: World, sha: str) -> list[tuple[str, str, str | None]]:
    found: list[dict[str, Any]] = box.github.check_runs(REPO, sha)
    return [(run["name"], run["status"], run["conclusion"]) for run in found]


async def test_queued_then_completed_on_the_head_that_it_was_asked_for(tmp_path: Path) -> None:
    async with world(tmp_path, slots=1) as box:
        gate = tmp_path / "gate"
        await busy(box, gate)
        number = await feature(box)
        began = head(box)
        await box.github.as_user("maria").comment(REPO, number, WORK)
        await box.dealt_with()
        assert (await box.job(number)).state is JobState.queued
        (run,) = box.github.check_runs(REPO, began)
        assert (run["name"], run["status"]) == ("agent", "queued")
        assert f"/pull/{number}#issuecomment-" in run["details_url"]
        assert "<details><summary>Everything that was asked" in run["output"]["text"]
        assert "is there money left" in run["output"]["text"]
        gate.touch()
        job = await box.ended(number)
        assert job.state is JobState.succeeded
        assert runs(box, began) == [("agent", "completed", "success")]
        assert [one["id"] for one in box.github.check_runs(REPO, began)] == [run["id"]]
        assert runs(box, str(job.head_sha)) == [("agent", "completed", "success")]


async def test_cancelled_before_it_began(tmp_path: Path) -> None:
    async with world(tmp_path, slots=1) as box:
        gate = tmp_path / "gate"
        await busy(box, gate)
        number = await feature(box)
        await box.github.as_user("maria").comment(REPO, number, WORK)
        await box.dealt_with()
        await box.github.as_user("maria").comment(REPO, number, "/agent cancel")
        await box.ended(number)
        assert runs(box, head(box)) == [("agent", "completed", "cancelled")]
        gate.touch()


async def test_a_push_while_it_waits_leaves_no_check_run_that_never_ends(tmp_path: Path) -> None:
    async with world(tmp_path, slots=1) as box:
        gate = tmp_path / "gate"
        await busy(box, gate)
        number = await feature(box)
        before = head(box)
        maria = box.github.as_user("maria")
        await maria.comment(REPO, number, WORK)
        await box.dealt_with()
        await maria.push_commit(REPO, "feature", {"more.txt": "x\n"})
        after = head(box)
        gate.touch()
        assert (await box.ended(number)).state is JobState.succeeded
        assert runs(box, before) == [("agent", "completed", "neutral")]
        (left,) = box.github.check_runs(REPO, before)
        assert left["output"]["title"] == f"Goes on at {after[:12]}"
        assert runs(box, after) == [("agent", "completed", "success")]


async def test_a_plan_from_an_issue_has_its_check_run_on_the_draft(tmp_path: Path) -> None:
    async with world(tmp_path) as box:
        maria = box.github.as_user("maria")
        issue = int((await maria.open_issue(REPO, "Numbers", "```sh\nseq 3 > numbers.txt\n```"))["number"])
        await maria.comment(REPO, issue, "/agent plan")
        job = await box.ended(issue)
        assert job.marker_sha == head(box)
        assert ("agent/plan", "completed", "success") in runs(box, head(box))
        assert [one.id for one in await box.store.jobs_at(job.repo.id, head(box))] == [job.id]
        await box.dealt_with()
        # the work: queued and ended on the commit that was approved, and on what it pushed
        await box.github.as_user("octocat").review(
            REPO, int(job.pull_number or 0), "APPROVE", "Go.\n```sh\nseq 4 > numbers.txt\n```"
        )
        work = await box.ended(int(job.pull_number or 0), nth=1)
        assert work.state is JobState.succeeded
        assert ("agent", "completed", "success") in runs(box, str(job.marker_sha))
        assert ("agent", "completed", "success") in runs(box, str(work.head_sha))
