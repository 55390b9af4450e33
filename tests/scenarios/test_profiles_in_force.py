"""Which profile a job has, from the command to the row in SQL. No agent runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from bot.model import Job
from bot.profiles import kept
from tests.scenarios.world import REPO, world

pytestmark = pytest.mark.timeout(280)

CONFIG = "profile: {{task: {}}}\n"
CAREFUL = "---\ndescription: x\nagent: shell\ntools: [Read]\n---\n{}\n"


async def test_the_profile_of_each_job(tmp_path: Path) -> None:
    async with world(tmp_path) as box:
        await box.stop_worker()
        octocat, maria = box.github.as_user("octocat"), box.github.as_user("maria")

        async def said(text: str) -> str:
            await maria.comment(REPO, number, text)
            await box.dealt_with()
            return str(box.github.comments(REPO, number)[-1]["body"])

        async def newest() -> Job:
            return (await box.store.recent_jobs(1))[0]

        async def main(task: str, careful: str) -> None:
            files = {
                ".github/conductor.yml": CONFIG.format(task),
                ".github/agents/careful.md": CAREFUL.format(careful),
            }
            await octocat.push_commit(REPO, "main", files)

        await main("careful", "Then.")
        number = (await octocat.open_issue(REPO, "Work", "Do it."))["number"]
        assert "profile `careful` (without effect: `tools`)" in await said("/agent do it")
        usual = await newest()
        await main("gone", "Now.")
        profile = kept(usual)
        assert profile is not None
        assert (profile.text, profile.asked) == ("Then.", False), "as it stood when the job was accepted"
        # nobody can start a task without naming another one
        assert "There is no profile `gone` here; there are `careful`" in await said("/agent do it")
        assert (await newest()).id == usual.id
        assert "profile `careful`" in await said("/agent --profile Careful do it")
        named = kept(await newest())
        assert named is not None
        assert (named.name, named.text, named.asked) == ("careful", "Now.", True)
        assert "profile `none`" in await said("/agent --profile none do it")
        # a plan has no usual one; the same without words of one's own is the same with the same profile only
        assert ", profile" not in await said("/agent plan")
        assert "is at it already" in await said("/agent plan")
        assert "profile `planner`" in await said("/agent plan --profile planner")
        assert "is at it already" in await said("/agent plan --profile planner")
        assert len(await box.store.recent_jobs()) == 5
