"""Commits through GitHub's API, from a real quarantine to the sandbox GitHub."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from git_host import clone_for_agent, commit, commit_tree, run_git

from bot.api_commits import MAX_BLOBS, MAX_ENTRIES, MAX_FILE, ApiCommits
from bot.errors import JobFailed
from bot.github import GitHub
from bot.model import FailureKind, JobState, Repo
from bot.sandbox.faults import Fault
from bot.sandbox.sandbox import Sandbox
from runners import quarantine
from runners.mirrors import Mirrors
from tests.scenarios.world import REPO, world


@dataclass
class Place:
    """A quarantine beside the sandbox GitHub."""

    sandbox: Sandbox
    commits: ApiCommits
    repo: Repo
    quarantine: Path
    clone: Path
    base: str

    async def made(self, head: str, message: str = "Do it") -> str:
        """Push as the agent, commit through the API; GitHub's commit."""
        run_git(self.clone, "push", "-q", "-f", str(self.quarantine), f"{head}:refs/heads/work")
        tree = await quarantine.tree_of(self.quarantine, head)
        return await self.commits.commit(
            self.repo, self.quarantine, base_sha=self.base, tree=tree, message=message
        )


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    async with Sandbox.start(state_dir=tmp_path / "github") as sandbox:
        key = sandbox.private_key_path.read_text()
        async with GitHub(sandbox.url, str(sandbox.app_id), key, write_spacing=0) as github:
            hello = sandbox.world.repository(*REPO.split("/"))
            repo = Repo(owner="acme", name="hello", id=hello.id, installation_id=sandbox.installation_id)
            token = await github.token(
                repo.installation_id, repository_id=repo.id, permissions={"contents": "read"}
            )
            mirrors = Mirrors(tmp_path / "mirrors")
            mirror = await mirrors.fetch(
                repo, url=f"{sandbox.url}/{REPO}.git", token=token.value, head="main"
            )
            bare = await quarantine.create(tmp_path / "a" / "q.git", mirror, max_input_bytes=200 * 2**20)
            clone = clone_for_agent(mirror, tmp_path / "repo")
            base = run_git(clone, "rev-parse", "HEAD")
            yield Place(sandbox, ApiCommits(github), repo, bare, clone, base)
        assert not sandbox.problems


async def test_the_tree_is_exactly_the_agents(place: Place) -> None:
    run_git(place.clone, "rm", "-rq", ".")
    files: dict[str, str | bytes] = {
        f"many/{number}.txt": f"{number}\n" for number in range(MAX_ENTRIES + 20)
    }
    files |= {
        'ünï cödé/\u202f"quoted".md': "x\r\n\ttext",
        "nul.txt": "a\0b",
        "latin.txt": b"caf\xe9",
        "empty": "",
    }
    files |= {
        "README.md/now-a-folder": "x",
        "large.txt": "line\n" * 200_000,
        "random.bin": os.urandom(300_000),
    }
    commit(place.clone, files)
    (place.clone / "run").write_text("#!/bin/sh\n")
    (place.clone / "run").chmod(0o755)
    (place.clone / "link").symlink_to("many/1.txt")
    head = commit(place.clone)
    sha = await place.made(head, "Words: ü\n\nBody")
    bare = place.quarantine.parents[1] / "github" / "git" / f"{REPO}.git"
    assert run_git(bare, "rev-parse", f"{sha}^{{tree}}") == run_git(
        place.clone, "rev-parse", f"{head}^{{tree}}"
    )
    assert run_git(bare, "log", "-1", "--format=%P|%an|%B", sha).strip() == (
        f"{place.base}|agent-conductor[bot]|Words: ü\n\nBody"
    )
    assert (await place.sandbox.verification(REPO, sha))["verified"]


async def test_the_ref_moves_only_from_where_it_was_expected(place: Place) -> None:
    sha = await place.made(commit(place.clone, {"a.txt": "1\n"}))
    await place.commits.move(place.repo, "agent/x", sha, expected=None)
    await place.commits.move(place.repo, "agent/x", sha, expected=None)  # repeated
    assert (await place.sandbox.branches(REPO))["agent/x"] == sha
    other = await place.made(commit(place.clone, {"a.txt": "2\n"}))
    for expected in (None, place.base, "1" * 40):
        with pytest.raises(JobFailed) as caught:
            await place.commits.move(place.repo, "agent/x", other, expected=expected)
        assert caught.value.kind is FailureKind.conflict
    assert (await place.sandbox.branches(REPO))["agent/x"] == sha
    # it is where it should be, and still no fast-forward
    with pytest.raises(JobFailed, match="not a fast forward"):
        await place.commits.move(place.repo, "agent/x", other, expected=sha)
    assert await place.commits.branch(place.repo, "agent/none") is None


async def test_a_rule_of_the_repository_is_told(place: Place) -> None:
    sha = await place.made(commit(place.clone, {"a.txt": "1\n"}))
    place.sandbox.protect_branch(REPO, "agent/x")
    with pytest.raises(JobFailed, match="through a pull request") as caught:
        await place.commits.move(place.repo, "agent/x", sha, expected=None)
    assert caught.value.kind is FailureKind.refused
    assert caught.value.hint


async def test_what_is_too_large_for_this_way_is_refused_before_anything_is_sent(place: Place) -> None:
    blob = run_git(place.clone, "hash-object", "-w", "--stdin", stdin=b"x" * (MAX_FILE + 1))
    head = commit_tree(place.clone, [("100644", "big.txt", blob)], place.base)
    with pytest.raises(JobFailed, match=r"big\.txt has 25\.0 MiB") as caught:
        await place.made(head)
    assert "ssh" in caught.value.hint
    many = {f"{number}.bin": bytes([255, number % 256, number // 256]) for number in range(MAX_BLOBS + 1)}
    with pytest.raises(JobFailed, match="more than 300 binary files"):
        await place.made(commit(place.clone, many))


async def test_a_name_that_json_cannot_hold_is_refused(place: Place) -> None:
    head = commit_tree(place.clone, [("100644", "caf\udce9", b"x")], place.base)
    with pytest.raises(JobFailed, match="not valid UTF-8"):
        await place.made(head)


async def test_a_github_that_does_not_sign_is_no_success(place: Place) -> None:
    # as a GitHub Enterprise Server answers whose administrator did not switch it on
    answer = place.sandbox.world.repository(*REPO.split("/"))
    answer.signed_by_us = _Forgetful()
    with pytest.raises(JobFailed, match="did not sign") as caught:
        await place.made(commit(place.clone, {"a.txt": "1\n"}))
    assert caught.value.kind is FailureKind.configuration


class _Forgetful(set[str]):
    def __contains__(self, _: object) -> bool:
        return False


@pytest.mark.parametrize("lost", ["/git/trees", "/git/commits", "/git/refs"])
async def test_an_answer_that_is_lost_publishes_once(tmp_path: Path, lost: str) -> None:
    async with world(tmp_path, commit_signing="api") as box:
        box.github.faults.add(Fault(method="POST", path=lost, drop="after"))
        maria = box.github.as_user("maria")
        number = (await maria.open_issue(REPO, "Lost", "```sh\necho 1 > one.txt\n```"))["number"]
        await maria.add_label(REPO, number, "agent")
        job = await box.ended(number, within=300)
        assert job.state is JobState.succeeded, job.message
        assert await box.new_branches() == [job.branch]
        assert (await box.github.branches(REPO))[job.branch or ""] == job.head_sha
        assert len(box.github.pulls(REPO)) == 1
