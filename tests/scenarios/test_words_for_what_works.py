"""Live words whose hand-over goes wrong: they reach the next attempt, or the next turn, and are not lost."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from bot.model import Job, JobState, Phase
from bot.schema import turns
from runners.local import LocalRunner
from tests.scenarios.world import REPO, World, world

pytestmark = pytest.mark.timeout(120)

WORDS = "Keep the old format."
#: An agent that asks as Claude Code's hooks do, until it is told something. The first time it then stands still, or
#: (``silent``) ends its turn without a word of it, as when another program in the container had fetched it.
HEARS = """
import json, os, pathlib, sys, time, urllib.request

gateway, silent, begun = sys.argv[1:4]
given = sys.stdin.read()
first = not pathlib.Path(begun).exists()


def says(**event):
    print(json.dumps(event), flush=True)


def hook():
    headers = {"Authorization": "Bearer " + os.environ["TOKEN"]}
    body = json.dumps({"hook_event_name": "PostToolUse"}).encode()
    request = urllib.request.Request(gateway + "/live-words", body, headers)
    return urllib.request.urlopen(request, timeout=10).read().decode()


pathlib.Path(os.environ["HOME"], ".hears").mkdir(exist_ok=True)
says(type="system", subtype="init", session_id="s1", model="m")
if first or not silent:
    while not (answer := hook()):
        time.sleep(0.02)
    if not silent:
        says(type="system", subtype="hook_response", outcome="success", stdout=answer)
        given += json.loads(answer)["hookSpecificOutput"]["additionalContext"]
    if first:
        pathlib.Path(begun).touch()
    if first and not silent:
        time.sleep(600)
pathlib.Path("told.txt").write_text(given)
done = '<result>{"status": "done", "title": "Told", "summary": "Done."}</result>'
says(type="result", subtype="success", is_error=False, session_id="s1", result=done)
"""


async def told(box: World, begun: Path) -> int:
    """Maria asks for work, Octocat tells its agent more, and the agent gets it. The issue's number."""
    maria, octocat = box.github.as_user("maria"), box.github.as_user("octocat")
    number: int = (await maria.open_issue(REPO, "Export", "Rewrite the export."))["number"]
    await maria.comment(REPO, number, "/agent --agent hears do it")
    async with asyncio.timeout(60):
        while (await box.job(number)).phase is not Phase.agent:
            await asyncio.sleep(0.02)
        await octocat.comment(REPO, number, f"/agent tell {WORDS}")
        while not begun.exists():
            await asyncio.sleep(0.02)
    return number


def settings(folder: Path, *, silent: bool = False) -> tuple[Path, dict[str, Any]]:
    begun, program = folder / "begun", folder / "hears.py"
    program.write_text(HEARS)
    argv = [sys.executable, str(program), "{gateway}", "silent" if silent else "", str(begun)]
    about = {"argv": argv, "resume": argv, "output": "claude-stream-json", "session_paths": [".hears"]}
    agents = {"hears": about | {"llm": "own", "env": {"TOKEN": "{token}"}}}
    return begun, {"custom_agents": agents, "agents": ("shell", "hears")}


async def ended(box: World, number: int) -> tuple[Job, str, list[tuple[str, int]]]:
    """The job at its end, what its agent was told in its last turn, and its turns."""
    job = await box.ended(number, within=60)
    assert job.state is JobState.succeeded, job.message
    assert await box.store.untold(job.id) == []
    async with box.store.engine.connect() as connection:
        found = await connection.execute(
            select(turns.c.attempt_id, turns.c.number).order_by(turns.c.started_at)
        )
        given = [(row.attempt_id, row.number) for row in found]
    return job, await box.github.file(REPO, job.branch or "", "told.txt") or "", given


async def test_the_next_attempt_is_told_what_died_with_a_container(tmp_path: Path) -> None:
    begun, values = settings(tmp_path)
    async with world(tmp_path, **values) as box:
        number = await told(box, begun)
        await box.stop_worker()
        runner = LocalRunner(box.settings)
        for container in await runner.list():
            await runner.remove(container)
        await runner.close()
        (waiting,) = await box.store.untold((await box.job(number)).id)
        assert waiting.words == WORDS
        await box.start_worker()
        job, said, given = await ended(box, number)
    assert job.fence == 2
    assert said.count(WORDS) == 1
    assert given == [(f"{job.id}-1", 1), (f"{job.id}-2", 1)]  # told at once, and not once more at the end
    assert f"told: octocat: {WORDS}" in job.recent_log


async def test_the_next_turn_is_told_what_the_agent_does_not_say_that_it_took(tmp_path: Path) -> None:
    begun, values = settings(tmp_path, silent=True)
    async with world(tmp_path, **values) as box:
        job, said, given = await ended(box, await told(box, begun))
    assert said.count(WORDS) == 1
    assert given == [(f"{job.id}-1", 1), (f"{job.id}-1", 2)]
    assert "told:" not in job.recent_log


async def test_an_agent_that_has_not_begun_is_told_as_soon_as_it_works(tmp_path: Path) -> None:
    _, values = settings(tmp_path)
    async with world(tmp_path, **values) as box:
        await box.stop_worker()
        maria = box.github.as_user("maria")
        number: int = (await maria.open_issue(REPO, "Export", "Rewrite the export."))["number"]
        await maria.comment(REPO, number, "/agent --agent hears do it")
        await box.github.as_user("octocat").comment(REPO, number, f"/agent tell {WORDS}")
        await box.dealt_with()
        waits = await box.job(number)
        assert [one.words for one in await box.store.untold(waits.id)] == [WORDS]
        (tmp_path / "begun").touch()  # so that it does not stand still
        await box.start_worker()
        _, said, given = await ended(box, number)
    assert said.count(WORDS) == 1
    assert len(given) == 1
