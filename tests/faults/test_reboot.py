"""A worker host that loses its power while agents work: the job goes on by itself, and not for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from bot.model import FailureKind, JobState, Phase
from tests.faults.gate import GATE, let_go_on
from tests.faults.parts import LOOK, SqliteFile, engine
from tests.faults.plant import Plant, nothing_left, plant
from tests.faults.stories import Story, look, wrongs

WAIT = 120.0  # seconds for each step of the story

REPO = "acme/reboot"


async def until(place: Plant, stories: list[Story], condition: Callable[[], bool], what: str) -> None:
    repo_id = await place.github.own("repository_id", REPO)
    try:
        async with asyncio.timeout(WAIT):
            while not condition():
                await look(place.store, repo_id, stories)
                assert not place.fell(), place.fell()
                await asyncio.sleep(LOOK)
    except TimeoutError:
        told = "\n".join(map(str, stories))
        raise AssertionError(f"never: {what}\n{told}\n{place.worker.log()[-6000:]}") from None


async def asked(place: Plant, title: str) -> Story:
    made = await place.github.as_user("maria", "open_issue", REPO, title, GATE)
    await place.github.as_user("maria", "add_label", REPO, made["number"], "agent")
    return Story(kind="label", title=title, work=0, begins=0, number=made["number"])


def works(story: Story, fence: int) -> Callable[[], bool]:
    return lambda: story.job is not None and (story.job.phase, story.job.fence) == (Phase.agent, fence)


async def reboot(place: Plant) -> None:
    """Everything of the host ends at once; then it comes up again."""
    place.away.add("worker")
    await asyncio.gather(place.worker.kill(), place.engine.lose_power())
    await place.engine.start()
    await place.worker.start()
    place.away.clear()


@pytest.mark.docker
@pytest.mark.slow
@pytest.mark.timeout(0)  # every wait has a limit of its own
async def test_a_host_is_rebooted_while_agents_work(tmp_path: Path, image_files: list[Path]) -> None:
    async with (
        engine(image_files) as own,
        plant(tmp_path, own, SqliteFile(tmp_path), restarts=1) as place,
    ):
        await place.github.look("create_repo", REPO, collaborators={"maria": "write"})
        unlucky = await asked(place, "Unlucky")
        await until(place, [unlucky], works(unlucky, 1), "the agent works")
        await reboot(place)
        lucky = await asked(place, "Lucky")
        both = [unlucky, lucky]
        await until(place, both, works(unlucky, 2), "a new attempt goes on after the reboot")
        await until(place, both, works(lucky, 1), "another agent works")

        await reboot(place)
        await until(place, both, works(lucky, 2), "its second attempt")
        assert lucky.job is not None
        assert await asyncio.to_thread(let_go_on, own, f"{lucky.job.id}-2")
        await until(place, both, lambda: all(one.job and one.job.state.final for one in both), "both end")
        assert lucky.job.state is JobState.succeeded
        assert unlucky.job is not None
        assert (unlucky.job.state, unlucky.job.failure) == (JobState.failed, FailureKind.host)
        assert "restarted while the agent worked, 2 times in all" in unlucky.job.message
        await nothing_left(own, place.settings, place.store)
        async with asyncio.timeout(WAIT):
            while await place.store.unreported_jobs():
                await asyncio.sleep(LOOK)
        seen = await place.github.own("everything", REPO)
        assert wrongs(lucky, seen) == []
        (sticky,) = [one["body"] for one in seen["comments"][str(unlucky.number)]]
        assert "❌" in sticky
        assert "`host`" in sticky
