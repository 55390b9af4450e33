"""Work is done once more, or goes on, by another agent: with what was done, and under no approval of other work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bot.model import ApprovalState, JobKind, JobState
from tests.scenarios.test_plan_gate import FAILS, STEPS, approvals, approved, planned, said
from tests.scenarios.test_refused_at_the_yes import forget_the_hour, refused_at_the_yes
from tests.scenarios.world import REPO, world

STOPS = "echo 1 > one.txt; mkdir -p $HOME/.first; echo mine > $HOME/.first/session; exit 1"
ENDS = """test ! -e "$HOME/.first/session" || exit 3
cat one.txt > two.txt
echo '<result>{"status": "done", "title": "Two", "summary": "Done."}</result>'"""
AGENTS: dict[str, Any] = {
    "first": {"argv": ["bash", "-c", STOPS], "output": "text", "llm": "openai", "session_paths": [".first"]},
    "second": {"argv": ["bash", "-c", ENDS], "output": "text", "llm": "openai"},
}
SETTINGS: dict[str, Any] = {"custom_agents": AGENTS, "agents": ("shell", "first", "second")}
WHY = "This is planned anew: nobody has approved that another agent, model or profile is used."

pytestmark = pytest.mark.timeout(180)


async def test_another_agent_goes_on_with_the_work_and_not_in_the_session(tmp_path: Path) -> None:
    async with world(tmp_path, **SETTINGS) as box:
        maria = box.github.as_user("maria")
        issue = (await maria.open_issue(REPO, "Count", "Count."))["number"]
        await maria.comment(REPO, issue, "/agent --agent first count")
        assert (await box.ended(issue)).state is JobState.failed
        await maria.comment(REPO, issue, "/agent resume --agent nobody")
        await box.dealt_with()
        assert said(box, issue, "The agent `nobody` is not offered here")
        await maria.comment(REPO, issue, "/agent resume --agent second")
        job = await box.ended(issue, nth=1)
        assert (job.agent, job.state) == ("second", JobState.succeeded), job.message
        assert await box.github.file(REPO, job.branch or "", "two.txt") == "1"


async def test_approved_work_is_planned_anew_for_another_agent(tmp_path: Path) -> None:
    async with world(tmp_path, plan_first=True, **SETTINGS) as box:
        number = await planned(box)
        failed, _ = await approved(box, number, FAILS)
        assert failed.state is JobState.failed
        await box.stop_worker()
        await box.github.as_user("maria").comment(REPO, number, "/agent retry --agent second")
        job = await box.job(number, nth=2)
        assert (job.kind, job.approval_id, job.agent) == (JobKind.plan, None, "second")
        await box.dealt_with()
        assert said(box, number, WHY)


async def test_a_yes_that_nobody_used_is_none_for_another_agent(tmp_path: Path) -> None:
    async with world(tmp_path, plan_first=True, limit_conversation_hour=1, **SETTINGS) as box:
        issue, _, _ = await refused_at_the_yes(box)
        await forget_the_hour(box)
        await box.stop_worker()
        await box.github.as_user("maria").comment(REPO, issue, "/agent retry --agent second")
        job = await box.job(issue, nth=1)
        assert (job.kind, job.approval_id, job.agent) == (JobKind.plan, None, "second")
        assert STEPS in job.body
        await box.dealt_with()
        assert said(box, issue, WHY)
        assert [one.state for one in await approvals(box).recent()] == [ApprovalState.approved]
