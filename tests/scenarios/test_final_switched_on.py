"""The check run of the final approval on pull requests that were open before it was wanted, in the whole program."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.scenarios.test_merge_queue import approval, until
from tests.scenarios.world import REPO, World, world

pytestmark = pytest.mark.timeout(180)

CONFIG = ".github/conductor.yml"
FINAL = "approvals: {final: {required: 1}}\n"


def config_check(box: World, sha: str) -> dict[str, Any]:
    """The check run on the configuration, as people see it."""
    (found,) = [run for run in box.github.check_runs(REPO, sha) if run["name"] == "agent/config"]
    return found


async def opened(box: World, branch: str, files: dict[str, str]) -> tuple[int, str]:
    """A pull request of maria's, when the bot has looked at it: its number and its head."""
    maria = box.github.as_user("maria")
    sha = await maria.push_commit(REPO, branch, files)
    number = int((await maria.open_pull(REPO, branch, branch))["number"])
    await box.dealt_with()
    assert approval(box, sha) is None
    return number, sha


async def test_a_merge_a_review_and_re_run_all_checks_bring_it(tmp_path: Path) -> None:
    async with world(tmp_path) as box:
        octocat = box.github.as_user("octocat")
        _, first = await opened(box, "first", {"first.txt": "1"})
        second, head = await opened(box, "second", {"second.txt": "2"})
        _, third = await opened(box, "third", {CONFIG: "agent: shell\n"})
        await octocat.push_commit(REPO, "main", {CONFIG: FINAL})
        await box.dealt_with()
        await octocat.review(REPO, second, "COMMENT", "Is that all?")
        await until(lambda: approval(box, head) == "neutral")

        shown = config_check(box, third)
        repository = box.github.world.repository(*REPO.split("/"))
        repository.check_runs[shown["id"]].title = "What was so yesterday"
        suite = shown["check_suite"]["id"]
        await octocat.request("POST", f"/repos/{REPO}/check-suites/{suite}/rerequest")
        await until(lambda: approval(box, third) == "neutral")
        assert config_check(box, third)["output"]["title"] == "The configuration can be used"

        assert approval(box, first) is None
        await octocat.push_commit(REPO, "brings", {CONFIG: f"agent: shell\n{FINAL}"})
        await octocat.merge(REPO, (await octocat.open_pull(REPO, "brings", "Approvals"))["number"])
        await until(lambda: approval(box, first) == "neutral")
