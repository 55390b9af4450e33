"""A review that approves and says something about lines: nothing is voided, and the next turn is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bot.model import JobState
from tests.scenarios.world import REPO, world

pytestmark = pytest.mark.timeout(180)


def remark(command: str) -> list[dict[str, Any]]:
    return [{"path": "numbers.txt", "line": 1, "body": f"One more:\n```sh\n{command}\n```"}]


async def test_remarks_wait_for_the_next_turn(tmp_path: Path) -> None:
    async with world(tmp_path) as box:
        maria, octocat, rita = (box.github.as_user(login) for login in ("maria", "octocat", "rita"))
        issue = int((await maria.open_issue(REPO, "Numbers", "```sh\nseq 2 > numbers.txt\n```"))["number"])
        await maria.add_label(REPO, issue, "agent")
        done = await box.ended(issue)
        assert done.state is JobState.succeeded
        number = int(done.pull_number or 0)
        await octocat.review(REPO, number, "APPROVE", "", comments=remark("echo 3 > three.txt"))
        await rita.review(REPO, number, "APPROVE", "", comments=remark("echo 5 > five.txt"))
        await box.dealt_with()
        assert len(await box.store.recent_jobs()) == 1
        assert box.github.pulls(REPO)[0]["head"]["sha"] == done.head_sha  # what octocat approved

        await maria.review(REPO, number, "REQUEST_CHANGES", "And four.\n```sh\necho 4 > four.txt\n```")
        turn = await box.ended(number, nth=1)
        assert turn.state is JobState.succeeded, turn.message
        there = {name: await box.github.file(REPO, turn.branch or "", name) for name in FILES}
        assert {name: (text or "").strip() for name, text in there.items()} == FILES

        # it was told, and is not told again
        await maria.review(REPO, number, "REQUEST_CHANGES", "And six.\n```sh\necho 6 > six.txt\n```")
        last = await box.ended(number, nth=2)
        assert last.state is JobState.succeeded, last.message
        assert "three.txt" in turn.instructions
        assert "three.txt" not in last.instructions


FILES = {"three.txt": "3", "four.txt": "4", "five.txt": ""}
