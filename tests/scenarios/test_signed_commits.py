"""Repositories that require signed commits, by the whole product: unsigned, signed by GitHub, signed by a key."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from pathlib import Path

import pytest

from bot.errors import ConfigurationError
from bot.model import FailureKind, JobState, Phase
from tests.scenarios.world import REPO, World, world

WORK = (
    "```sh\nmkdir -p sub; printf 'bye\\n' > sub/bye.txt; printf '\\0\\377' > b.bin; ln -s sub/bye.txt link; "
    "printf '#!/bin/sh\\n' > run; chmod +x run; git rm -q README.md; mkdir README.md; echo x > README.md/x\n```"
)


def bare(folder: Path) -> Path:
    """The sandbox's own copy of the repository."""
    return folder / "github" / "git" / f"{REPO}.git"


async def play(box: World, work: str = WORK, title: str = "Sign it") -> int:
    number = (await box.github.as_user("maria").open_issue(REPO, title, work))["number"]
    await box.github.as_user("maria").add_label(REPO, number, "agent")
    return int(number)


async def test_unsigned_commits_are_refused_and_the_operators_way_out_is_named(tmp_path: Path) -> None:
    async with world(tmp_path) as box:
        box.github.require_signatures(REPO, "agent/*")
        job = await box.ended(await play(box))
        assert (job.state, job.phase, job.failure) == (JobState.failed, Phase.publish, FailureKind.refused)
        assert "wants signed commits" in job.message
        assert "commit_signing" in job.message
        assert job.head_sha is None
        assert await box.new_branches() == []


async def test_github_signs_what_is_committed_through_its_api(tmp_path: Path) -> None:
    async with world(tmp_path, commit_signing="api") as box:
        box.github.require_signatures(REPO)
        job = await box.ended(await play(box))
        assert job.state is JobState.succeeded, job.message
        assert (await box.github.verification(REPO, job.head_sha or ""))["verified"]
        files = [
            await box.github.file(REPO, job.branch or "", name) for name in ("sub/bye.txt", "README.md/x")
        ]
        assert files == ["bye", "x"]
        git = bare(tmp_path)
        listed = _git(git, "ls-tree", "-r", job.head_sha or "")
        modes = {line.split("\t")[1]: line[:6] for line in listed.splitlines()}
        assert modes["run"] == "100755"
        assert modes["link"] == "120000"
        assert modes["b.bin"] == "100644"
        message = _git(git, "log", "-1", "--format=%an <%ae>%n%B", job.head_sha or "")
        assert message.startswith("agent-conductor[bot] <")
        assert "\nCo-authored-by: maria <" in message
        # the next job goes on on the same branch, where GitHub compares the old head
        pull = box.github.pulls(REPO)[0]["number"]
        await box.github.as_user("maria").comment(REPO, pull, "/agent run more\n```sh\necho 2 > two.txt\n```")
        more = await box.ended(pull, nth=1)
        assert more.state is JobState.succeeded, more.message
        assert more.base_sha == job.head_sha
        assert (await box.github.verification(REPO, more.head_sha or ""))["verified"]


async def test_a_branch_that_moved_is_a_conflict_through_the_api_too(tmp_path: Path) -> None:
    async with world(tmp_path, commit_signing="api") as box:
        maria = box.github.as_user("maria")
        await maria.push_commit(REPO, "feature", {"a.txt": "1\n"})
        number = (await maria.open_pull(REPO, "feature", "A feature"))["number"]
        await maria.comment(REPO, number, "/agent run x\n```sh\necho 2 > b.txt; sleep 4\n```")
        async with asyncio.timeout(60):
            while (await box.job(number)).phase is not Phase.agent:
                await asyncio.sleep(0.05)
        moved = await maria.push_commit(REPO, "feature", {"a.txt": "mine\n"})
        job = await box.ended(number)
        assert (job.state, job.failure) == (JobState.failed, FailureKind.conflict)
        assert (await box.github.branches(REPO))["feature"] == moved


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="needs ssh-keygen (openssh-client)")
async def test_an_operators_key_signs_and_github_knows_it(tmp_path: Path) -> None:
    key = tmp_path / "signing"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True, timeout=60)
    settings = {
        "commit_signing": "ssh",
        "signing_key": str(key),
        "signing_committer": "octocat <{}>",
    }
    async with world(
        tmp_path / "unknown", **(settings | {"signing_committer": "Machine <m@example.org>"})
    ) as box:
        box.github.require_signatures(REPO)
        job = await box.ended(await play(box))
        assert (job.state, job.failure) == (JobState.failed, FailureKind.refused)
        assert "verified signatures" in job.message
        email = box.github.world.users["octocat"].email
    settings["signing_committer"] = f"octocat <{email}>"
    async with world(tmp_path / "known", **settings) as box:
        box.github.require_signatures(REPO)
        box.github.add_signing_key("octocat", key.with_suffix(".pub").read_text())
        job = await box.ended(await play(box))
        assert job.state is JobState.succeeded, job.message
        assert (await box.github.verification(REPO, job.head_sha or ""))["verified"]
        people = _git(bare(tmp_path / "known"), "log", "-1", "--format=%an|%cn|%ce", job.head_sha or "")
        assert people == f"agent-conductor[bot]|octocat|{email}"


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="needs ssh-keygen (openssh-client)")
async def test_a_worker_whose_key_cannot_sign_does_not_start(tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "passphrase", "-f", str(locked)], check=True, timeout=60
    )
    for key, words in [
        ("", "no signing_key"),
        (str(locked), "passphrase"),
        ("-----BEGIN x", "cannot be used"),
    ]:
        with pytest.raises(ConfigurationError, match=words) as caught:
            async with world(
                tmp_path / words[:5],
                commit_signing="ssh",
                signing_key=key,
                signing_committer="a <a@example.org>",
            ):
                pass
        assert caught.value.hint
    with pytest.raises(ConfigurationError, match="signing_committer"):
        async with world(
            tmp_path / "c", commit_signing="ssh", signing_key=str(locked), signing_committer="octocat"
        ):
            pass


def _git(folder: Path, *argv: str) -> str:
    done = subprocess.run(["git", *argv], cwd=folder, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.strip()
