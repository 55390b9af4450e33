"""A review of what plain steps made: who has no model cannot follow it, so somebody else does, or people are told."""

from __future__ import annotations

from pathlib import Path

import pytest

from bot.model import JobKind, JobState
from tests.scenarios.test_questions import SETTINGS
from tests.scenarios.world import REPO, world

RULES = "jobs: {numbers: {steps: ['seq 4 > numbers.txt']}}\n"


@pytest.mark.timeout(120)
async def test_somebody_with_a_model_follows_it_or_people_are_told_once(tmp_path: Path) -> None:
    async with world(tmp_path, **SETTINGS) as box:
        maria, octocat = box.github.as_user("maria"), box.github.as_user("octocat")
        await maria.push_commit(REPO, "main", {".github/conductor.yml": RULES})
        issue = (await maria.open_issue(REPO, "Numbers", "Count."))["number"]
        await maria.comment(REPO, issue, "/agent job numbers")
        made = await box.ended(issue)
        assert (made.state, made.agent) == (JobState.succeeded, "shell")
        number = int(made.pull_number or 0)
        await box.stop_worker()
        for words in ("In Roman numerals, please.", "Still not Roman."):
            await octocat.review(REPO, number, "REQUEST_CHANGES", words)
            await box.dealt_with()
        told = [one["body"] for one in box.github.comments(REPO, number) if "--agent NAME" in one["body"]]
        assert len(told) == 1
        assert "has no model to understand more" in told[0]
        assert len(await box.store.recent_jobs()) == 1
        await maria.push_commit(REPO, "main", {".github/conductor.yml": f"agent: asker\n{RULES}"})
        await octocat.review(REPO, number, "REQUEST_CHANGES", "In Roman numerals, please.")
        job = await box.job(number, nth=1)
        assert (job.agent, job.kind, job.model) == ("asker", JobKind.task, None)
