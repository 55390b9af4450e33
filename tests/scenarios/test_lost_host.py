"""A worker host is lost between the push and what comes after it: another one asks and tells the rest, once."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest

from bot.approval_store import ApprovalStore
from bot.audit import Audit
from bot.model import ApprovalKind, ApprovalState, JobState
from bot.sandbox.faults import Fault
from tests.scenarios.world import REPO, World, world

pytestmark = pytest.mark.timeout(180)

#: Changes something that it may, and what only people may when it is asked for; answers the thread that it is shown.
WORKS = """given=$(cat)
date +%s%N > new.txt
case "$given" in *workflow*) mkdir -p .github/workflows; date > .github/workflows/ci.yml;; esac
thread=$(printf '%s' "$given" | grep -oiE 'thread:? *`?[0-9]+' | grep -oE '[0-9]+' | head -1)
reply='{"thread": "'$thread'", "text": "It was the wrong way round."}'
echo '<result>{"status": "done", "title": "Turned", "summary": "I turned it.", "replies": ['"$reply"']}</result>'
"""
WORKER: dict[str, Any] = {
    "custom_agents": {"works": {"argv": ["bash", "-c", WORKS], "llm": "own"}},
    "agents": ("works",),
    "default_agent": "works",
}


async def pushed_and_lost(box: World, branch: str, before: str) -> None:
    """The worker pushes to the branch, hears nothing more of GitHub, and its host is lost with its disk."""
    async with asyncio.timeout(60):
        while (await box.github.branches(REPO)).get(branch, before) == before:
            await asyncio.sleep(0.02)
    # nothing else is done; but the push's token is still given back
    box.github.faults.waiting.insert(0, Fault(method="GET|POST|PATCH|PUT", status=503, times=None))
    await box.stop_worker()
    shutil.rmtree(box.settings.data_dir / "attempts")
    box.github.faults.clear()


def cut_off_after_the_push(box: World) -> None:
    """The worker is never told what became of its push."""
    box.github.faults.add(Fault(method="POST", path="git-receive-pack", drop="after", times=None))


async def held_back(box: World) -> list[tuple[str, str]]:
    """What was asked about protected files: the job and the commit."""
    asked = await ApprovalStore(box.store.engine, Audit(box.store.engine, box.redactor)).recent()
    assert all((one.kind, one.state) == (ApprovalKind.protected, ApprovalState.pending) for one in asked)
    return [(one.job_id, one.sha) for one in asked]


async def test_what_comes_after_the_push_is_done_by_another_host(tmp_path: Path) -> None:
    async with world(tmp_path, **WORKER) as box:
        maria, octocat = box.github.as_user("maria"), box.github.as_user("octocat")
        issue = (await maria.open_issue(REPO, "Turn it", "Please."))["number"]
        await maria.add_label(REPO, issue, "agent")
        first = await box.ended(issue)
        assert first.state is JobState.succeeded, first.message
        await box.dealt_with()
        number, branch = first.pull_number or 0, first.branch or ""
        assert await held_back(box) == []
        cut_off_after_the_push(box)
        await octocat.review(
            REPO,
            number,
            "REQUEST_CHANGES",
            "Once more, and mind the workflow.",
            comments=[{"path": "new.txt", "line": 1, "body": "Why?"}],
        )
        await pushed_and_lost(box, branch, first.head_sha or "")
        job = await box.job(number, nth=1)
        assert job.state is JobState.running
        assert await replies(box, number) == []
        await box.start_worker()
        done = await box.ended(number, nth=1)
        assert (done.id, done.state) == (job.id, JobState.succeeded), done.message
        assert done.head_sha == (await box.github.branches(REPO))[branch]
        assert done.summary == "I turned it."
        (answer,) = await replies(box, number)
        assert "It was the wrong way round." in answer
        assert await held_back(box) == [(job.id, done.head_sha)]
        assert len(await box.store.recent_jobs()) == 2


async def replies(box: World, number: int) -> list[str]:
    """What the bot wrote into threads of the diff."""
    said = await box.github.as_user("maria").request("GET", f"/repos/{REPO}/pulls/{number}/comments")
    return [one["body"] for one in said if one["user"]["type"] == "Bot"]


async def test_the_pull_request_is_opened_by_another_host_in_the_agent_s_words(tmp_path: Path) -> None:
    async with world(tmp_path, **WORKER) as box:
        maria, branch = box.github.as_user("maria"), ""
        cut_off_after_the_push(box)
        issue = (await maria.open_issue(REPO, "Turn it", "And the workflow."))["number"]
        await maria.add_label(REPO, issue, "agent")
        job = await box.job(issue)
        async with asyncio.timeout(60):
            while not branch:
                branch = (await box.job(issue)).branch or ""
                await asyncio.sleep(0.02)
        await pushed_and_lost(box, branch, "")
        assert box.github.pulls(REPO) == []
        await box.start_worker()
        done = await box.ended(issue)
        assert (done.id, done.state) == (job.id, JobState.succeeded), done.message
        (pull,) = box.github.pulls(REPO)
        assert (pull["title"], pull["number"]) == ("Turned", done.pull_number)
        assert await held_back(box) == [(job.id, done.head_sha)]
