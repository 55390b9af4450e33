"""What tests of Git LFS and submodules share: a sandbox GitHub, a worker's half, a client with the real git-lfs."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from git_host import Attempt, git_gateway

from bot.audit import Audit
from bot.database import create_engine, upgrade
from bot.facts import FactFinder
from bot.github import GitHub
from bot.github_transport import Patience
from bot.lfs_publisher import LfsPublisher
from bot.model import Actor, Job, JobState, Repo, TargetKind, Trigger
from bot.redact import Redactor
from bot.sandbox.sandbox import Sandbox
from bot.submodule_finder import Found, SubmoduleFinder
from bot.terms import Terms
from runners import quarantine
from runners.gateway.git import GitRoute
from runners.gateway.lfs import LfsRoute
from runners.lfs_remote import LfsRemote
from runners.lfs_store import ObjectCache
from runners.mirrors import Mirrors
from runners.shim import lfs_settings

REPO = "acme/thing"
ATTRIBUTES = "*.bin filter=lfs diff=lfs merge=lfs -text\n"
MAX_OBJECT = 100_000
MAX_NEW = 250_000
#: A value that the redactor knows.
SECRET = "sk-ant-canary-9911-abcdefghijklmnop"

needs_git_lfs = pytest.mark.skipif(
    shutil.which("git-lfs") is None, reason="git-lfs is not installed; tests/provision.sh provides it"
)


@dataclass
class Lab:
    """Handles on everything."""

    folder: Path
    sandbox: Sandbox
    github: GitHub
    facts: FactFinder
    mirrors: Mirrors
    remote: LfsRemote
    audit: Audit
    publisher: LfsPublisher

    def repo(self, full_name: str = REPO) -> Repo:
        """A repository as our code names it."""
        owner, name = full_name.split("/")
        found = self.sandbox.world.repository(owner, name)
        assert found is not None
        return Repo(owner=owner, name=name, id=found.id, installation_id=self.sandbox.installation_id)

    def job(self, asker: str = "octocat", **changes: Any) -> Job:
        """A job on the repository that has LFS and submodules on."""
        values: dict[str, Any] = {
            "id": "j1",
            "repo": self.repo(),
            "number": 1,
            "target": TargetKind.issue,
            "trigger": Trigger(delivery_id="d", event="e", actor=Actor(login=asker, id=3, type="User")),
            "agent": "shell",
            "model": None,
            "instructions": "",
            "title": "",
            "body": "",
            "timeout": 600,
            "state": JobState.running,
            "created_at": datetime.now(UTC),
            "config": {"checkout": {"lfs": True, "submodules": True}},
        }
        return Job(**values | changes)

    async def mirror(self) -> Path:
        """The repository's mirror, up to date."""
        repo = self.repo()
        token = await self.github.token(
            repo.installation_id, repository_id=repo.id, permissions={"contents": "read"}
        )
        return await self.mirrors.fetch(repo, url=self.sandbox.git_url(REPO), token=token.value, head="main")

    async def find(self, job: Job | None = None, *, declared_at: str = "main") -> Found:
        """What the host finds of the submodules of ``main``, by the ``.gitmodules`` of ``declared_at``."""
        mirror = await self.mirror()
        finder = SubmoduleFinder(
            github_url=self.sandbox.url, github=self.github, facts=self.facts, mirrors=self.mirrors
        )
        return await finder.find(
            job or self.job(),
            mirror,
            attempt="j1-1",
            declared_at=await self.mirrors.resolve(mirror, f"refs/heads/{declared_at}"),
            tree=await self.mirrors.resolve(mirror, "refs/heads/main"),
        )

    async def push(self, files: Mapping[str, str | bytes | None], branch: str = "main") -> str:
        """Somebody's commit."""
        return await self.sandbox.as_user("octocat").push_commit(REPO, branch, files)

    def route(self, **changes: Any) -> GitRoute:
        """The gateway's git route, with LFS."""
        repo = self.repo()

        async def token(installation_id: int, repo_id: int) -> str:
            assert installation_id == repo.installation_id
            found = await self.github.token(
                installation_id, repository_id=repo_id, permissions={"contents": "read"}
            )
            return found.value

        values: dict[str, Any] = {
            "cache": ObjectCache(self.folder / "cache", limit=10 * MAX_OBJECT),
            "remote": self.remote,
            "token": token,
            "max_object_bytes": MAX_OBJECT,
            "max_new_bytes": MAX_NEW,
        }
        return GitRoute(max_push_bytes=2**20, lfs=LfsRoute(**values | changes))

    def terms(self, **changes: Any) -> Terms:
        """What an attempt at the job may do."""
        repo = self.repo()
        values: dict[str, Any] = {
            "lfs": True,
            "repo_id": repo.id,
            "repository": REPO,
            "installation_id": repo.installation_id,
        }
        return Terms(**values | changes)

    async def attempt(self, terms: Terms | None = None, name: str = "attempt") -> Attempt:
        """An attempt with a quarantine of its own."""
        mirror = await self.mirror()
        path = await quarantine.create(self.folder / name / "quarantine.git", mirror, max_input_bytes=2**20)
        return Attempt(mirror, path, terms or self.terms())

    @asynccontextmanager
    async def gateway(self, attempt: Attempt, **changes: Any) -> AsyncIterator[str]:
        """The address of the attempt's repository at its gateway."""
        async with git_gateway(self.route(**changes), attempt) as url:
            yield url


@asynccontextmanager
async def lab(folder: Path, files: Mapping[str, str | bytes] | None = None) -> AsyncIterator[Lab]:
    """A sandbox with ``acme/thing``, where octocat may write. At the end no request must have been a wrong one."""
    async with AsyncExitStack() as stack:
        sandbox = await stack.enter_async_context(Sandbox.start(state_dir=folder / "github"))
        engine = create_engine(f"sqlite+aiosqlite:///{folder / 'audit.db'}")
        stack.push_async_callback(engine.dispose)
        await upgrade(engine)
        redactor = Redactor([SECRET])
        audit = Audit(engine, redactor)
        await sandbox.create_repo(REPO, files={"README.md": "x\n", **(files or {})})
        sandbox.set_role(REPO, "octocat", "write")
        key = Path(sandbox.private_key_path).read_text()
        github = await stack.enter_async_context(
            GitHub(sandbox.url, str(sandbox.app_id), key, patience=Patience(tries=1), write_spacing=0)
        )
        remote = LfsRemote(sandbox.url, retry_delays=(0.0, 0.0))
        stack.push_async_callback(remote.close)
        yield Lab(
            folder=folder,
            sandbox=sandbox,
            github=github,
            facts=FactFinder(github),
            mirrors=Mirrors(folder / "mirrors"),
            remote=remote,
            audit=audit,
            publisher=LfsPublisher(
                github=github,
                remote=remote,
                cache=ObjectCache(folder / "cache", limit=10 * MAX_OBJECT),
                redactor=redactor,
                audit=audit,
            ),
        )
        assert [str(problem) for problem in sandbox.problems] == []


async def lfs_git(folder: Path, *argv: str, url: str = "", ok: bool = True, lfs: bool = True) -> str:
    """What the shim's git does in an attempt at ``url``; its output, or what it complains about (``ok=False``)."""
    settings = [
        ("user.name", "a"),
        ("user.email", "a@example.org"),
        *(lfs_settings(url) if lfs and url else []),
    ]
    env = {
        "PATH": os.environ["PATH"],
        "HOME": "/nonexistent",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_CONFIG_COUNT": str(len(settings)),
    }
    for number, (key, value) in enumerate(settings):
        env[f"GIT_CONFIG_KEY_{number}"], env[f"GIT_CONFIG_VALUE_{number}"] = key, value

    def run() -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            ["git", *argv], cwd=folder, env=env, capture_output=True, check=False, timeout=120
        )

    done = await asyncio.to_thread(run)
    said = (done.stdout + done.stderr).decode("utf-8", "replace")
    assert (done.returncode == 0) is ok, said
    return said if not ok else done.stdout.decode().strip()
