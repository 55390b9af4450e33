"""A fork's commits as the start of work here: refused when they moved, or change what only people change."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from bot.config import fixed_settings
from bot.errors import JobFailed
from bot.forks import check_fork
from bot.model import FailureKind, Job, JobState, Phase, TargetKind
from bot.repo_config import dump, parse
from tests.jobs import asked_job


def git(folder: Path, *argv: str) -> str:
    return subprocess.run(
        ["git", "-c", "user.name=x", "-c", "user.email=x@example.com", *argv],
        cwd=folder,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    """`main` with one commit."""
    git(tmp_path, "init", "-q", "-b", "main", "work")
    folder = tmp_path / "work"
    (folder / "README.md").write_text("x\n")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "first")
    return folder


def commit(folder: Path, files: dict[str, str], *, orphan: bool = False) -> str:
    """A commit of a fork: on top of main's first one, or of nothing at all."""
    git(folder, "checkout", "-q", *(("--orphan", "fork") if orphan else ("-B", "fork", "main")))
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if text.startswith("-> "):
            path.symlink_to(text.removeprefix("-> "))
        else:
            path.write_text(text)
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "gift", "--allow-empty")
    sha = git(folder, "rev-parse", "HEAD")
    git(folder, "checkout", "-q", "main")
    return sha


def job(base_sha: str | None, config: str = "") -> Job:
    return asked_job(
        event="issue_comment.created",
        number=7,
        target=TargetKind.pull_request,
        state=JobState.running,
        fork=True,
        base_sha=base_sha,
        config=dump(parse(config)),
    )


async def refused(
    mirror: Path, head: str, pinned: str | None, config: str = "", **settings: object
) -> JobFailed | None:
    found = None
    try:
        await check_fork(
            job(pinned, config), fixed_settings(**settings), mirror / ".git", base="main", head=head
        )
    except JobFailed as error:
        found = error
    assert found is None or (found.phase is Phase.workspace and found.hint)
    return found


async def test_plain_changes_may_come_in_also_when_main_went_on(mirror: Path) -> None:
    head = commit(mirror, {"gift.txt": "x\n"})
    (mirror / ".github").mkdir()
    (mirror / ".github" / "new.yml").write_text("x\n")
    git(mirror, "add", ".")
    git(mirror, "commit", "-qm", "main goes on, in a protected path")
    assert await refused(mirror, head, head) is None, "the fork did not change that"


async def test_a_fork_that_moved_is_refused(mirror: Path) -> None:
    seen, now = commit(mirror, {"gift.txt": "x\n"}), commit(mirror, {"gift.txt": "evil\n"})
    error = await refused(mirror, now, seen)
    assert error is not None
    assert error.kind is FailureKind.conflict
    assert "after this was asked for" in error.message


@pytest.mark.parametrize(
    ("files", "config", "settings"),
    [
        ({".github/workflows/ci.yml": "on: push\n"}, "", {}),
        ({".github/conductor.yml": "agent: shell\n"}, "", {}),
        ({".GitHub/workflows/ci.yml": "on: push\n"}, "", {}),
        ({"CODEOWNERS": "* @mallory\n"}, "", {}),
        ({".gitmodules": "x\n"}, "", {}),
        ({".github": "-> elsewhere"}, "", {}),
        ({"deploy/x": "y\n"}, "protected: [deploy]", {}),
        ({"deploy/x": "y\n"}, "", {"protected_paths": ("deploy/**",)}),
    ],
)
async def test_what_only_people_change_is_refused(
    mirror: Path, files: dict[str, str], config: str, settings: dict[str, object]
) -> None:
    head = commit(mirror, {"gift.txt": "x\n"} | files)
    error = await refused(mirror, head, head, config, **settings)
    assert error is not None
    assert error.kind is FailureKind.refused
    assert next(iter(files)) in error.message
    assert "gift.txt" not in error.message


async def test_a_fork_without_common_history_is_refused(mirror: Path) -> None:
    head = commit(mirror, {"gift.txt": "x\n"}, orphan=True)
    error = await refused(mirror, head, head)
    assert error is not None
    assert error.kind is FailureKind.configuration
