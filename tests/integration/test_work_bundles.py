"""Work in progress between attempts, on real git: which of it is kept, and where it began."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from git_host import REPO, TOKEN, clone_for_agent, commit, git_host, run_git

from runners import quarantine, work
from runners.mirrors import Mirrors


@dataclass
class Place:
    """An attempt's quarantine, its clone, and the mirror that both stand on."""

    mirror: Path
    quarantine: Path
    clone: Path
    base: str
    bundle: Path

    def push(self, branch: str) -> str:
        """What the clone has now, as the shim pushes it."""
        run_git(self.clone, "push", "-q", "-f", str(self.quarantine), f"HEAD:refs/heads/{branch}")
        return run_git(self.clone, "rev-parse", "HEAD")

    async def kept(self, *, finished: bool) -> work.Bundle:
        """What is kept of the attempt."""
        assert await work.pack(self.quarantine, self.base, self.bundle, finished=finished)
        found = await work.describe(self.bundle)
        assert found is not None
        return found


@pytest.fixture
async def place(tmp_path: Path):
    async with git_host(tmp_path / "host") as host:
        mirror = await Mirrors(tmp_path / "mirrors").fetch(REPO, url=host.repo_url, token=TOKEN, head="main")
        bare = await quarantine.create(tmp_path / "q.git", mirror, max_input_bytes=10 * 2**20)
        clone = clone_for_agent(mirror, tmp_path / "repo")
        yield Place(mirror, bare, clone, host.branch("main"), tmp_path / "kept.bundle")


async def test_what_a_turn_handed_in_is_not_replaced_by_its_last_checkpoint(place: Place):
    commit(place.clone, {"a.txt": "1"})
    place.push("checkpoint")
    handed_in = commit(place.clone, {"a.txt": "2"})
    place.push("work")
    await quarantine.forget_checkpoint(place.quarantine)
    await quarantine.forget_checkpoint(place.quarantine)  # as after a kill
    assert (await place.kept(finished=False)).head == handed_in
    commit(place.clone, {"a.txt": "3"})
    newer = place.push("checkpoint")
    assert (await place.kept(finished=False)).head == newer


async def test_work_that_merged_another_branch_began_where_the_attempt_began(place: Place):
    # main goes on beside the branch that the attempt works on
    run_git(place.clone, "checkout", "-q", "-b", "other", place.base)
    commit(place.clone, {"other.txt": "1"})
    run_git(place.clone, "checkout", "-q", "-B", "work", place.base)
    began = commit(place.clone, {"a.txt": "1"})
    run_git(place.clone, "push", "-q", str(place.mirror), "HEAD:refs/heads/feature")
    run_git(place.clone, "merge", "-q", "--no-edit", "other")
    merged = place.push("work")
    place.base = began
    found = await place.kept(finished=True)
    assert len(found.needs) == 2
    assert found.head == merged
    assert await work.began_at(found, place.mirror) == began


async def test_work_on_a_commit_that_is_not_there_any_more_does_not_fit(place: Place):
    gone = commit(place.clone, {"a.txt": "1"})
    place.push("work")
    commit(place.clone, {"a.txt": "2"})
    place.push("work")
    place.base = gone
    assert await work.began_at(await place.kept(finished=True), place.mirror) is None
