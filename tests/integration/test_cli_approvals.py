"""`conductor approvals` as an operator meets it: what waits, and a word in place of a review."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from bot.approval_store import ApprovalStore
from bot.audit import Audit, Wanted
from bot.database import create_engine
from bot.model import (
    Actor,
    Approval,
    ApprovalKind,
    ApprovalState,
    JobState,
    Repo,
    TargetKind,
)
from bot.redact import Redactor
from bot.sandbox.sandbox import Sandbox
from bot.store import Store
from tests.integration.test_cli import conductor
from tests.jobs import asked_job
from tests.made_once import app_key, migrated

REPO = "acme/thing"


@dataclass
class Place:
    """A paused job that asks for a host on a sandbox GitHub, and an operator's shell."""

    sandbox: Sandbox
    folder: Path
    variables: dict[str, str]
    store: Store
    approvals: ApprovalStore
    audit: Audit

    async def run(self, *arguments: str) -> CompletedProcess[str]:
        return await asyncio.to_thread(
            conductor, "approvals", *arguments, folder=self.folder, **self.variables
        )


@pytest.fixture
async def place(tmp_path: Path, clean_redis: str) -> AsyncIterator[Place]:
    url = migrated(tmp_path / "c.db")
    engine = create_engine(url)
    async with Sandbox.start(private_key=app_key(), state_dir=tmp_path / "github") as sandbox:
        await sandbox.create_repo(REPO, files={"a.py": "1\n"}, collaborators={"octocat": "admin"})
        sha = await sandbox.as_user("octocat").push_commit(REPO, "agent/1", {"a.py": "2\n"})
        pull = await sandbox.as_user("octocat").open_pull(REPO, "agent/1", "main", "T")
        repository = sandbox.world.repository("acme", "thing")
        repo = Repo(owner="acme", name="thing", id=repository.id, installation_id=sandbox.installation_id)
        store, audit = Store(engine), Audit(engine, Redactor([]))
        approvals = ApprovalStore(engine, audit)
        now = datetime.now(UTC)
        job = asked_job(
            by=Actor(login="octocat", id=sandbox.world.users["octocat"].id, type="User"),
            event="issue_comment.created",
            repo=repo,
            number=pull["number"],
            target=TargetKind.pull_request,
            agent="claude",
            timeout=600,
            state=JobState.paused,
            pull_number=pull["number"],
            question="May I reach example.com?",
        )
        await store.add_job(job)
        await approvals.ask(
            Approval(
                id="p0123456789ab",
                kind=ApprovalKind.network,
                job_id="j1",
                repo=repo,
                pull_number=pull["number"],
                subject="May I reach `example.com`?\x1b[31m",
                sha=sha,
                state=ApprovalState.pending,
                asked_at=now,
                expires_at=now + timedelta(hours=2),
                details={"host": "example.com"},
            )
        )
        variables = {
            "GITHUB_API_URL": sandbox.url,
            "GITHUB_APP_ID": str(sandbox.app_id),
            "GITHUB_PRIVATE_KEY": str(sandbox.private_key_path),
            "WEBHOOK_SECRET": "s3cret-s3cret",
            "DATA_DIR": str(tmp_path / "data"),
            "DATABASE_URL": url,
            "REDIS_URL": clean_redis,
            "MODE": "dev",
        }
        yield Place(sandbox, tmp_path, variables, store, approvals, audit)
    await engine.dispose()


async def test_what_waits_is_listed(place: Place) -> None:
    for arguments in ((), ("list",), ("list", "--all")):
        done = await place.run(*arguments)
        assert done.returncode == 0, done.stderr
        (line,) = done.stdout.splitlines()
        assert "p0123456789ab network acme/thing#" in line
        assert "pending, 1 h 59 min left" in line
        assert "\x1b" not in done.stdout


async def test_an_operator_approves_once(place: Place) -> None:
    done = await place.run("approve", "p0123456789ab", "--reason", "on call")
    assert done.returncode == 0, done.stderr
    assert "p0123456789ab is approved by operator:" in done.stdout
    found = await place.approvals.approval("p0123456789ab")
    assert found is not None
    assert (found.state, found.words, found.decided_by_id) == ("approved", "on call", None)
    job = await place.store.job("j1")
    assert job is not None
    assert job.answer is not None  # the job that waited goes on
    assert "on call" in job.answer
    entries = place.audit.entries(Wanted(kinds={"approval.asked", "override", "approval.granted"}))
    assert [getattr(one, "kind", "") async for one in entries] == [
        "approval.asked",
        "override",
        "approval.granted",
    ]
    again = await place.run("deny", "p0123456789ab", "--reason", "no")
    assert again.returncode == 1
    assert "not pending: it is approved by operator:" in again.stderr
    assert (await place.run()).stdout == "Nothing waits for a decision.\n"
    assert "approved by operator:" in (await place.run("list", "--all")).stdout


async def test_a_no_needs_a_reason(place: Place) -> None:
    done = await place.run("deny", "p0123456789ab")
    assert done.returncode == 2
    assert "--reason" in done.stderr
    done = await place.run("deny", "p0123456789ab", "--reason", "use the mirror")
    assert "is refused by operator:" in done.stdout
    job = await place.store.job("j1")
    assert job is not None
    assert "use the mirror" in (job.answer or "")


async def test_what_nobody_asked_cannot_be_decided(place: Place) -> None:
    done = await place.run("approve", "p1")
    assert done.returncode == 1
    assert "There is no approval 'p1'" in done.stderr
    assert "Traceback" not in done.stderr
