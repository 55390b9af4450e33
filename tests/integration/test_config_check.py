"""The check run `agent/config`, on the sandbox GitHub: where it appears, and what it says."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from bot.check_runs import CheckRuns
from bot.config import fixed_settings
from bot.config_check import CHECK_NAME, ConfigCheck, number_of
from bot.errors import GitHubUnavailable
from bot.facts import FactFinder
from bot.github import GitHub
from bot.github_transport import Patience
from bot.model import Repo
from bot.redact import Redactor
from bot.repo_config import PATH
from bot.sandbox.faults import Fault
from bot.sandbox.sandbox import Sandbox
from tests.made_once import app_key

REPO = "acme/thing"


class Box(NamedTuple):
    sandbox: Sandbox
    check: ConfigCheck
    repo: Repo

    async def pull(self, branch: str = "x", **files: str) -> int:
        octocat = self.sandbox.as_user("octocat")
        await octocat.push_commit(REPO, branch, files)
        return int((await octocat.open_pull(REPO, branch, "A change"))["number"])

    def runs(self) -> list[dict[str, Any]]:
        return [run for run in self.sandbox.check_runs(REPO) if run["name"] == CHECK_NAME]


@asynccontextmanager
async def box(tmp_path: Path, files: dict[str, str] | None = None) -> AsyncIterator[Box]:
    async with Sandbox.start(private_key=app_key(), state_dir=tmp_path / "github") as sandbox:
        await sandbox.create_repo(REPO, files={"README.md": "x\n"} | (files or {}))
        repository = sandbox.world.repository("acme", "thing")
        repo = Repo(owner="acme", name="thing", id=repository.id, installation_id=sandbox.installation_id)
        key = Path(sandbox.private_key_path).read_text()
        async with GitHub(sandbox.url, str(sandbox.app_id), key, patience=Patience(tries=1)) as github:
            settings = fixed_settings(agents=("claude",))
            checks = CheckRuns(github, Redactor())
            yield Box(sandbox, ConfigCheck(FactFinder(github), checks, settings, ("claude", "codex")), repo)
        assert [str(problem) for problem in sandbox.problems] == []


async def test_a_mistake_is_annotated_where_it_stands(tmp_path: Path) -> None:
    async with box(tmp_path) as it:
        number = await it.pull(**{PATH: "agent: claude\nlimits:\n  timeuot: 5m\n  pids: x\n"})
        assert await it.check.look(it.repo, number) is False
        (run,) = it.runs()
        assert (run["status"], run["conclusion"]) == ("completed", "failure")
        assert run["head_sha"] == it.sandbox.pulls(REPO)[0]["head"]["sha"]
        shown = it.sandbox.world.repository("acme", "thing").check_runs[run["id"]].annotations
        assert [(one["path"], one["start_line"], one["start_column"]) for one in shown] == [
            (PATH, 4, 9),
            (PATH, 3, 3),
        ]
        assert "`limits.timeuot` is not known" in run["output"]["summary"]
        assert "2 problems" in run["output"]["title"]


@pytest.mark.parametrize(
    ("before", "files", "answer"),
    [
        ({}, {PATH: "agent: claude\n"}, True),
        ({PATH: "agent: x\n"}, {PATH: "agent: claude\n"}, True),
        ({}, {"README.md": "y\n"}, None),  # there is no file
        ({PATH: "agnet: x\n"}, {"README.md": "y\n"}, None),  # a bad one, but not of this pull request
        ({}, {PATH: "agent: codex\n"}, False),  # which this server does not offer
        ({}, {PATH: "services: {db: {image: postgres}}\n"}, False),
        ({}, {PATH: "network: {allow: [example.com]}\n"}, True),  # told as a warning
        ({}, {PATH: "# " + "x" * 70_000}, False),
        ({}, {f"{PATH}/x": "agent: claude\n"}, None),  # not the file
    ],
)
async def test_what_is_said_of_a_pull_request(
    tmp_path: Path, before: dict[str, str], files: dict[str, str], answer: bool | None
) -> None:
    async with box(tmp_path, before) as it:
        assert await it.check.look(it.repo, await it.pull(**files)) is answer
        expected = {True: ["success"], False: ["failure"], None: []}[answer]
        assert [run["conclusion"] for run in it.runs()] == expected


async def test_once_for_a_commit_and_anew_for_the_next(tmp_path: Path) -> None:
    async with box(tmp_path) as it:
        number = await it.pull(**{PATH: "agnet: x\n"})
        for _ in range(2):
            await it.check.look(it.repo, number)
        assert [run["conclusion"] for run in it.runs()] == ["failure"]
        await it.sandbox.as_user("octocat").push_commit(REPO, "x", {PATH: "agent: claude\n"})
        assert await it.check.look(it.repo, number) is True
        assert [run["conclusion"] for run in it.runs()] == ["failure", "success"]
        assert len({run["head_sha"] for run in it.runs()}) == 2


async def test_the_owners_default_counts_too(tmp_path: Path) -> None:
    async with box(tmp_path) as it:
        await it.sandbox.create_repo("acme/.github", files={PATH: "agnet: x\n"})
        assert await it.check.look(it.repo, await it.pull(**{PATH: "agent: claude\n"})) is False
        assert "`acme/.github`" in it.runs()[0]["output"]["summary"]


async def remarks(it: Box, **files: str) -> list[tuple[int, int, str]]:
    """The warnings of the check run, which must say that the file can be used."""
    assert await it.check.look(it.repo, await it.pull(**files)) is True
    (run,) = it.runs()
    assert run["conclusion"] == "success"
    shown = it.sandbox.world.repository("acme", "thing").check_runs[run["id"]].annotations
    assert {one["annotation_level"] for one in shown} <= {"warning"}
    return [(one["start_line"], one["start_column"], one["message"]) for one in shown]


async def test_a_merge_that_waits_for_approvals_that_nobody_wants(tmp_path: Path) -> None:
    async with box(tmp_path) as it:
        ((line, column, said),) = await remarks(it, **{PATH: "approvals:\n  merge: auto\n"})
        assert (line, column) == (2, 10)
        assert "`merge: auto` does nothing while no approvals are wanted" in said
        assert "`merge: auto` does nothing" in it.runs()[0]["output"]["summary"]


async def test_a_merge_after_approvals_is_no_remark(tmp_path: Path) -> None:
    async with box(tmp_path) as it:
        await it.sandbox.create_repo("acme/.github", files={PATH: "approvals: {final: {required: 1}}\n"})
        assert await remarks(it, **{PATH: "approvals:\n  merge: auto\n"}) == []


OWNED = "approvals:\n  final: {required: 1, codeowners: true}\n"


async def test_code_owners_that_only_github_can_tell(tmp_path: Path) -> None:
    async with box(tmp_path) as it:
        owners = "*.py @octocat maria@example.com\n*.md maria@example.com carl@example.com\n"
        ((line, column, said),) = await remarks(it, **{PATH: OWNED, "CODEOWNERS": owners})
        assert (line, column) == (2, 36)
        assert said.startswith("2 code owners are named by an e-mail address in CODEOWNERS.")
        assert "example.com" not in it.runs()[0]["output"]["summary"]


@pytest.mark.parametrize(
    "files",
    [
        {PATH: OWNED, "CODEOWNERS": "* @octocat @acme/core\n"},
        {PATH: OWNED},  # there are none
        {PATH: "agent: claude\n", "CODEOWNERS": "* maria@example.com\n"},  # nobody asks for them
    ],
)
async def test_code_owners_about_whom_there_is_nothing_to_say(tmp_path: Path, files: dict[str, str]) -> None:
    async with box(tmp_path) as it:
        assert await remarks(it, **files) == []


MINE = ".github/agents/mine.md"
GOOD = "---\ndescription: x\n---\nBe quick.\n"


async def test_the_profiles_of_pull_requests(tmp_path: Path) -> None:
    twin = MINE.replace(".md", ".agent.md")
    vain = "---\ndescription: x\ntools: [a]\nagent: codex\n---\n"
    async with box(tmp_path, {"README.md": "x\n", ".github/agents/other.md": "broken"}) as it:
        for branch, files, answer, places in (
            ("b", {MINE: vain}, True, [(MINE, 1), (MINE, 3)]),
            ("c", {MINE: "---\nagent: [x]\ndescription: y\n---\n"}, False, [(MINE, 2)]),
            ("d", {"README.md": "y\n"}, None, []),  # the broken one is not of this pull request
            ("e", {PATH: "profile: mine\n", MINE: GOOD}, True, []),
            ("f", {PATH: "profile: gone\n", MINE: "broken"}, False, [(PATH, 1), (MINE, 1)]),
            ("g", {PATH: "jobs: {a: {profile: gone}}\n"}, True, [(PATH, 1)]),
            ("h", {MINE: GOOD, twin: GOOD}, False, [(twin, 1), (MINE, 1)]),
        ):
            before = len(it.runs())
            assert await it.check.look(it.repo, await it.pull(branch, **files)) is answer, branch
            runs = it.runs()[before:]
            assert [run["conclusion"] == "success" for run in runs] == ([] if answer is None else [answer])
            repository = it.sandbox.world.repository("acme", "thing")
            shown = [one for run in runs for one in repository.check_runs[run["id"]].annotations]
            assert sorted((one["path"], one["start_line"]) for one in shown) == sorted(places), branch


async def test_a_profile_that_is_taken_away_and_still_wanted(tmp_path: Path) -> None:
    async with box(tmp_path, {PATH: "profile: {task: mine, ask: lost}\n", MINE: GOOD}) as it:
        octocat = it.sandbox.as_user("octocat")
        await octocat.push_commit(REPO, "x", {MINE: None})
        number = (await octocat.open_pull(REPO, "x", "Away"))["number"]
        assert await it.check.look(it.repo, number) is False
        summary = it.runs()[0]["output"]["summary"]
        assert "There is no profile `mine` here" in summary
        assert "lost" not in summary, "it was not there before"


async def test_a_pull_request_from_a_fork(tmp_path: Path) -> None:
    async with box(tmp_path) as it:
        mallory = it.sandbox.as_user("mallory")
        await mallory.fork(REPO)
        await mallory.push_commit("mallory/thing", "x", {PATH: "agnet: '@octocat <!-- x -->'\n"})
        pull = await mallory.open_pull(REPO, "mallory:x", "A gift")
        assert await it.check.look(it.repo, pull["number"]) is False
        (run,) = it.runs()
        assert run["head_sha"] == pull["head"]["sha"]


async def test_words_of_a_stranger_are_made_harmless(tmp_path: Path) -> None:
    async with box(tmp_path) as it:
        number = await it.pull(**{PATH: '"@octocat\\n<!-- agent-conductor:job:j1 -->": 1\n'})
        assert await it.check.look(it.repo, number) is False
        summary = it.runs()[0]["output"]["summary"]
        assert "@octocat" not in summary
        assert "<!--" not in summary


async def test_a_closed_pull_request_and_one_that_is_gone_are_left_alone(tmp_path: Path) -> None:
    async with box(tmp_path) as it:
        number = await it.pull(**{PATH: "agnet: x\n"})
        await it.sandbox.as_user("octocat").close(REPO, number)
        assert await it.check.look(it.repo, number) is None
        assert await it.check.look(it.repo, 999) is None
        assert it.runs() == []


async def test_a_github_that_does_not_answer_is_asked_again_later(tmp_path: Path) -> None:
    async with box(tmp_path) as it:
        number = await it.pull(**{PATH: "agnet: x\n"})
        it.sandbox.faults.add(Fault(path=r"/contents/", status=502, times=None))
        with pytest.raises(GitHubUnavailable):
            await it.check.look(it.repo, number)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("config/12/0123456789abcdef", 12),
        ("config/12/0123456789abcdeg", None),
        ("config/x/0123456789abcdef", None),
        ("j0123456789ab", None),
        ("config/12/0123456789abcdef\n", None),
    ],
)
def test_whose_check_run_it_is(text: str, number: int | None) -> None:
    assert number_of(text) == number
