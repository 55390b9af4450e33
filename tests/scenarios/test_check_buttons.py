"""A job's check run from its first line to its buttons, on the whole program."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from bot.model import Job, JobState
from tests.scenarios.world import REPO, World, world

pytestmark = pytest.mark.timeout(280)

WORK = "/agent run add a line\n```sh\necho two >> feature.txt\ntest -e go || sleep 300\n```"


async def shown(box: World, job: Job, text: str) -> dict[str, Any]:
    """The job's check run when its text holds ``text``."""
    async with asyncio.timeout(90):
        while True:
            for run in box.github.check_runs(REPO):
                if (
                    run["external_id"] == job.id
                    and text in f"{run['output']['title']}\n{run['output']['summary']}"
                ):
                    return run
            await asyncio.sleep(0.05)


def offered(box: World, run: dict[str, Any]) -> list[str]:
    repository = box.github.world.repository(*REPO.split("/"))
    return [button["identifier"] for button in repository.check_runs[run["id"]].actions]


async def test_it_shows_what_is_done_live_and_goes_on_from_there_by_its_buttons(tmp_path: Path) -> None:
    async with world(tmp_path) as box:
        maria, octocat = box.github.as_user("maria"), box.github.as_user("octocat")
        await maria.push_commit(REPO, "feature", {"feature.txt": "one\n"})
        number = int((await maria.open_pull(REPO, "feature", "A feature"))["number"])
        await maria.comment(REPO, number, WORK)
        first = await box.job(number)

        run = await shown(box, first, "What it is doing")  # while it works
        assert (run["name"], run["status"], run["conclusion"]) == ("agent", "in_progress", None)
        assert offered(box, run) == ["cancel"]
        comment = f"{box.github.url}/{REPO}/pull/{number}#issuecomment-"
        assert run["details_url"].startswith(comment)
        assert f"[its comment]({comment}" in run["output"]["summary"]

        await octocat.click_check_button(REPO, run["id"], "cancel")
        assert (await box.ended(number)).state is JobState.cancelled
        run = await shown(box, first, "Cancelled by octocat")
        assert (run["status"], run["conclusion"]) == ("completed", "cancelled")
        assert offered(box, run) == ["retry", "resume"]
        assert len(box.github.check_runs(REPO)) == 1  # the same one, all the time

        await maria.push_commit(REPO, "feature", {"go": ""})
        await octocat.click_check_button(REPO, run["id"], "resume")
        second = await box.ended(number, nth=1)
        assert (second.state, second.retry_of, second.go_on) == (JobState.succeeded, first.id, True)
        assert second.trigger.actor.login == "octocat"
        done = await shown(box, second, "Done by shell")
        assert offered(box, done) == ["retry"]

        # "Re-run all checks" on the new head: the newest job there once more, and nothing older
        path = f"/repos/{REPO}/check-suites/{done['check_suite']['id']}/rerequest"
        await octocat.request("POST", path)
        third = await box.ended(number, nth=2)
        assert (third.retry_of, third.go_on) == (second.id, False)
        assert len(await box.store.recent_jobs()) == 3
