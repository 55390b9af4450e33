"""A fork's commits as the start of work here: only the ones that were asked about, and none that change the rules."""

from __future__ import annotations

from pathlib import Path

from bot import repo_config
from bot.changes import ChangeRules, held_back
from bot.config import Settings
from bot.errors import JobFailed
from bot.model import FailureKind, Job, Phase
from runners import quarantine
from runners.git import WARY, GitError, git

#: Names of protected paths that people are told; the others are counted.
_SHOWN = 5


async def check_fork(job: Job, settings: Settings, mirror: Path, *, base: str, head: str) -> None:
    """Make sure that the fork's ``head`` may become part of a branch of this repository.

    There it is code of this repository: its checks run with this repository's secrets, and by this branch's workflows.
    So the commit must be the one that the fork had when somebody with write access asked for the work, and the fork's
    own changes must leave alone what only people change here. ``base`` is the branch that the pull request is for.
    Raises JobFailed with what people may do.
    """
    if job.base_sha is not None and job.base_sha != head:
        raise JobFailed(
            Phase.workspace,
            FailureKind.conflict,
            "The fork's branch was pushed to after this was asked for, so nothing was done.",
            "Look at what is new there, then ask again.",
        )
    try:
        found = await git("merge-base", f"refs/heads/{base}", head, git_dir=mirror, env=WARY, accept=(0, 1))
    except GitError as error:
        raise _unrelated(base) from error
    if found.code or not found.text:
        raise _unrelated(base)
    changes = await quarantine.inspect(mirror, found.text, head)
    rules = ChangeRules.of(settings, protected=repo_config.of(job).protected)
    if not changes.complete:
        raise JobFailed(
            Phase.workspace,
            FailureKind.refused,
            "The fork changes more files than can be looked through.",
            "Split the pull request, then ask again.",
        )
    wrong = [file.path for file in held_back(changes.files, rules.protected)]
    if wrong:
        listed = ", ".join(f"`{_plain(path)}`" for path in wrong[:_SHOWN])
        more = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise JobFailed(
            Phase.workspace,
            FailureKind.refused,
            f"The fork changes what only people bring here: {listed}{more}.",
            "Have that part taken out of the pull request, or work on it yourself.",
        )


def _unrelated(base: str) -> JobFailed:
    return JobFailed(
        Phase.workspace,
        FailureKind.configuration,
        f"The fork's branch has no history in common with `{_plain(base)}`.",
        "Have it rebased, then ask again.",
    )


def _plain(path: str) -> str:
    return path.encode(errors="replace").decode().replace("`", "'")
